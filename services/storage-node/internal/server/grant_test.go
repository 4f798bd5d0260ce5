package server

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/token"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

// tokenKeys returns what has a server ask for tokens, what makes them, and how many callers were turned away.
func tokenKeys(t *testing.T) (ask func(s *Server), issue func(valid time.Duration, verbs token.Verbs, tenants ...string) string, refused *atomic.Int64) {
	t.Helper()
	private, public, err := token.Generate()
	require.NoError(t, err)
	key, err := token.PrivateKey(private)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "keys.pem")
	require.NoError(t, os.WriteFile(path, public, 0o600))
	keys, err := token.Open(path, "c")
	require.NoError(t, err)
	refused = &atomic.Int64{}
	ask = func(s *Server) {
		s.node.Tokens = keys
		s.node.Refused = func(context.Context, string, string) { refused.Add(1) }
	}
	issue = func(valid time.Duration, verbs token.Verbs, tenants ...string) string {
		t.Helper()
		text, err := token.Sign(key, "c", token.Grant{Subject: "app", Tenants: tenants, Verbs: verbs, Expires: time.Now().Add(valid)}, time.Now())
		require.NoError(t, err)
		return text
	}
	return ask, issue, refused
}

func with(ctx context.Context, text string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, tokenKey, tokenScheme+text)
}

// Danger: a method that forgets to ask gives everybody the keys of every tenant. So each is tried.
func TestEveryMethodOfTheStorageServiceAsksForAToken(t *testing.T) {
	ask, issue, refused := tokenKeys(t)
	var mu sync.Mutex
	var told string // to the log
	w := start(t, func(w *world, _ *Options) {
		ask(w.server)
		count := w.server.node.Refused
		w.server.node.Refused = func(ctx context.Context, method, why string) {
			mu.Lock()
			defer mu.Unlock()
			told += why + "\n"
			count(ctx, method, why)
		}
	})
	record := &datav1.Record{Tenant: "a", Key: "k", Siblings: []*datav1.Sibling{{Value: []byte("v"), Clock: clockOf(1, 3), Timestamp: 1}}}
	first := func(recv func() error, err error) error {
		if err == nil {
			err = recv()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	pipelined := func(ctx context.Context, op *storagev1.PipelineOp) error {
		s, err := w.storage.Pipeline(ctx)
		if err != nil {
			return err
		}
		if err := s.Send(&storagev1.PipelineRequest{Tenant: "a", Ops: []*storagev1.PipelineOp{op}}); err != nil {
			_, err = s.Recv()
			return err
		}
		r, err := s.Recv()
		if err != nil {
			return err
		}
		if e := r.GetResults()[0].GetError(); e != nil {
			return status.Error(codes.Code(e.GetCode()), e.GetReason()+": "+e.GetMessage())
		}
		return nil
	}
	methods := map[string]struct {
		verbs token.Verbs
		call  func(ctx context.Context) error
	}{
		"Write": {token.Write, func(ctx context.Context) error {
			_, err := w.storage.Write(ctx, &storagev1.WriteRequest{Tenant: "a", Key: "k", Value: []byte("v")})
			return err
		}},
		"Delete": {token.Write, func(ctx context.Context) error {
			_, err := w.storage.Delete(ctx, &storagev1.DeleteRequest{Tenant: "a", Key: "k"})
			return err
		}},
		"Repair": {token.Write, func(ctx context.Context) error {
			_, err := w.storage.Repair(ctx, &storagev1.RepairRequest{Record: record})
			return err
		}},
		"BatchWrite": {token.Write, func(ctx context.Context) error {
			_, err := w.storage.BatchWrite(ctx, &storagev1.BatchWriteRequest{Tenant: "a"})
			return err
		}},
		"Read": {token.Read, func(ctx context.Context) error {
			_, err := w.storage.Read(ctx, &storagev1.ReadRequest{Tenant: "a", Key: "k"})
			return err
		}},
		"BatchRead": {token.Read, func(ctx context.Context) error {
			_, err := w.storage.BatchRead(ctx, &storagev1.BatchReadRequest{Tenant: "a", Keys: []string{"k"}})
			return err
		}},
		"GetKeyRange": {token.Read, func(ctx context.Context) error {
			_, err := w.storage.GetKeyRange(ctx, &storagev1.GetKeyRangeRequest{Tenant: "a"})
			return err
		}},
		"StreamKeys": {token.Read, func(ctx context.Context) error {
			s, err := w.storage.StreamKeys(ctx, &storagev1.StreamKeysRequest{Tenant: "a"})
			return first(func() error { _, err := s.Recv(); return err }, err)
		}},
		"Watch": {token.Read, func(ctx context.Context) error {
			s, err := w.storage.Watch(ctx, &storagev1.WatchRequest{Tenant: "a"})
			return first(func() error { _, err := s.Recv(); return err }, err)
		}},
		"Pipeline":           {token.Read, func(ctx context.Context) error { return pipelined(ctx, readOp(1, "k")) }},
		"Pipeline of writes": {token.Write, func(ctx context.Context) error { return pipelined(ctx, putOp(1, "k", "v")) }},
	}
	for method := range served(w.grpc) {
		if name, ok := strings.CutPrefix(method, "/pairdb.storage.v1.StorageService/"); ok {
			require.Contains(t, methods, name, "it is not tried here")
		}
	}
	for name, m := range methods {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		turned := refused.Load()
		fails := func(ctx context.Context, code codes.Code, reason string) {
			t.Helper()
			err := m.call(ctx)
			require.Equal(t, code, status.Code(err), "%s: %v", name, err)
			if got := errorInfo(err).GetReason(); got != "" {
				require.Equal(t, reason, got, name)
			} else {
				require.ErrorContains(t, err, reason, name) // in the answer of a pipeline
			}
			turned++
			require.Equal(t, turned, refused.Load(), "%s: it is told", name)
		}
		good := issue(time.Hour, m.verbs, "a", "b")
		fails(ctx, codes.Unauthenticated, "TOKEN_INVALID")
		fails(with(ctx, "nonsense"), codes.Unauthenticated, "TOKEN_INVALID")
		fails(with(ctx, good+"A"), codes.Unauthenticated, "TOKEN_INVALID")
		fails(with(with(ctx, good), good), codes.Unauthenticated, "TOKEN_INVALID")
		fails(metadata.AppendToOutgoingContext(ctx, tokenKey, good), codes.Unauthenticated, "TOKEN_INVALID")
		fails(with(ctx, issue(time.Hour, token.Read|token.Write, "b")), codes.PermissionDenied, "TOKEN_NOT_GRANTED")
		fails(with(ctx, issue(time.Hour, (token.Read|token.Write)&^m.verbs, "a")), codes.PermissionDenied, "TOKEN_NOT_GRANTED")
		err := m.call(with(ctx, good))
		require.NotContains(t, []codes.Code{codes.Unauthenticated, codes.PermissionDenied}, status.Code(err), "%s: %v", name, err)
		require.Equal(t, turned, refused.Load(), name)
		mu.Lock()
		require.Contains(t, told, "no valid token", name)
		require.NotContains(t, told, strings.Split(good, ".")[2], "%s: a token is in the log", name)
		mu.Unlock()
		cancel()
	}
}

// Danger: whoever has opened a stream goes on reading when the token is over.
func TestStreamsEndWithTheirToken(t *testing.T) {
	ask, issue, _ := tokenKeys(t)
	w := startReal(t, time.Minute)
	ask(w.server)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := w.dial().Watch(with(ctx, issue(2*time.Second, token.Read, "a")), &storagev1.WatchRequest{Tenant: "a"})
	require.NoError(t, err)
	for err == nil {
		_, err = s.Recv()
	}
	require.Equal(t, codes.Unauthenticated, status.Code(err), "%v", err)
	require.ErrorContains(t, err, "go on with a new one")
}
