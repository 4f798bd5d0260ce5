package cmd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"

	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

// node answers as a test tells it to, and keeps the last request.
type node struct {
	storagev1.UnimplementedStorageServiceServer
	request proto.Message
	err     error
	answer  *storagev1.WriteResponse
	watch   func(*storagev1.WatchRequest, grpc.ServerStreamingServer[storagev1.WatchResponse]) error
}

func (n *node) Write(_ context.Context, r *storagev1.WriteRequest) (*storagev1.WriteResponse, error) {
	n.request = r
	return n.answer, n.err
}

func (n *node) Delete(_ context.Context, r *storagev1.DeleteRequest) (*storagev1.DeleteResponse, error) {
	n.request = r
	return &storagev1.DeleteResponse{Outcome: n.answer.GetOutcome()}, n.err
}

func (n *node) Watch(r *storagev1.WatchRequest, s grpc.ServerStreamingServer[storagev1.WatchResponse]) error {
	n.request = r
	return n.watch(r, s)
}

// serve starts a node and returns its address.
func serve(t *testing.T, n *node) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := grpc.NewServer()
	storagev1.RegisterStorageServiceServer(s, n)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		require.NoError(t, <-served)
	})
	return l.Addr().String()
}

func run(ctx context.Context, addr string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = Run(ctx, append([]string{"--addr", addr}, args...), Streams{In: strings.NewReader("from stdin"), Out: &out, Err: &errs})
	return code, out.String(), errs.String()
}

func clock(entries ...*datav1.ClockEntry) *datav1.VectorClock {
	return &datav1.VectorClock{Entries: entries}
}

func TestFlagsOfAWriteReachTheNode(t *testing.T) {
	// A condition or a context that is dropped on the way turns a careful write into a blind one.
	sum := sha256.Sum256([]byte("old"))
	empty := sha256.Sum256(nil)
	both := clock(&datav1.ClockEntry{NodeId: "node-0/1", Counter: 7}, &datav1.ClockEntry{NodeId: "a:b", Counter: 1})
	for _, c := range []struct {
		args []string
		want proto.Message
	}{
		{[]string{"put", "k", "-", "--ttl", "90s"}, &storagev1.WriteRequest{Value: []byte("from stdin"), TtlSeconds: 90}},
		{[]string{"put", "k", "v", "--if-absent"}, &storagev1.WriteRequest{Value: []byte("v"),
			Condition: &storagev1.Condition{When: &storagev1.Condition_Absent{Absent: true}}}},
		{[]string{"put", "k", "v", "--if-value", "old"}, &storagev1.WriteRequest{Value: []byte("v"),
			Condition: &storagev1.Condition{When: &storagev1.Condition_ValueSha256{ValueSha256: sum[:]}}}},
		{[]string{"put", "k", "v", "--if-value", ""}, &storagev1.WriteRequest{Value: []byte("v"),
			Condition: &storagev1.Condition{When: &storagev1.Condition_ValueSha256{ValueSha256: empty[:]}}}},
		{[]string{"put", "k", "v", "--if-clock", "node-0/1:7,a:b:1"}, &storagev1.WriteRequest{Value: []byte("v"),
			Condition: &storagev1.Condition{When: &storagev1.Condition_Clock{Clock: both}}}},
		{[]string{"put", "k", "v", "--if-clock", ""}, &storagev1.WriteRequest{Value: []byte("v"),
			Condition: &storagev1.Condition{When: &storagev1.Condition_Clock{Clock: clock()}}}},
		{[]string{"put", "k", "v", "--context", "node-0/1:7,a:b:1"}, &storagev1.WriteRequest{Value: []byte("v"),
			Causality: &storagev1.WriteRequest_Context{Context: both}}},
		{[]string{"put", "k", "v", "--context", "", "--idempotency-key", "order-17"}, &storagev1.WriteRequest{Value: []byte("v"),
			Causality: &storagev1.WriteRequest_Context{Context: clock()}, IdempotencyKey: "order-17"}},
		{[]string{"delete", "k", "--if-value", "old", "--context", "node-0/1:7,a:b:1", "--idempotency-key", "order-18"}, &storagev1.DeleteRequest{
			Causality: &storagev1.DeleteRequest_Context{Context: both}, IdempotencyKey: "order-18",
			Condition: &storagev1.Condition{When: &storagev1.Condition_ValueSha256{ValueSha256: sum[:]}}}},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			n := &node{answer: &storagev1.WriteResponse{Outcome: storagev1.Outcome_OUTCOME_APPLIED, Siblings: 1}}
			code, stdout, stderr := run(t.Context(), serve(t, n), append(c.args, "--tenant", "shop")...)
			require.Zero(t, code, stderr)
			require.Equal(t, "APPLIED\n", stdout)
			switch r := n.request.(type) {
			case *storagev1.WriteRequest:
				w := c.want.(*storagev1.WriteRequest)
				w.Tenant, w.Key = "shop", "k"
				if w.IdempotencyKey == "" {
					require.NotEmpty(t, r.IdempotencyKey, "a repeat must be exact")
					w.IdempotencyKey = r.IdempotencyKey
				}
			case *storagev1.DeleteRequest:
				w := c.want.(*storagev1.DeleteRequest)
				w.Tenant, w.Key = "shop", "k"
			}
			require.True(t, proto.Equal(c.want, n.request), "%v, %v", c.want, n.request)
		})
	}
}

func TestWrongFlagsAreRefusedBeforeTheNodeIsAsked(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"put", "k", "v", "--if-absent", "--if-value", "x"}, "one condition"},
		{[]string{"put", "k", "v", "--ttl", "-1s"}, "over already"},
		{[]string{"put", "k", "v", "--idempotency-key", ""}, "is empty"},
		{[]string{"put", "k", "v", "--context", "node-0"}, "NODE:COUNTER"},
		{[]string{"put", "k", "v", "--context", ":7"}, "NODE:COUNTER"},
		{[]string{"put", "k", "v", "--context", "a:1,"}, "NODE:COUNTER"},
		{[]string{"put", "k", "v", "--if-clock", "a:0"}, `the counter of a is "0"`},
		{[]string{"delete", "k", "--if-clock", "a:x"}, `the counter of a is "x"`},
		{[]string{"delete", "k", "--if-absent"}, "unknown flag"},
		{[]string{"watch", "--limit", "-1"}, "--limit"},
		{[]string{"watch", "--after", "-1"}, "invalid argument"},
		{[]string{"watch", "a", "b"}, "at most one"},
		{[]string{"import", "a", "b"}, "at most one"},
		{[]string{"export", "a", "b"}, "at most one"},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			code, _, stderr := run(t.Context(), "127.0.0.1:1", c.args...)
			require.Equal(t, exitUsage, code, stderr)
			require.Contains(t, stderr, c.want)
		})
	}
}

func refusal(code codes.Code, reason string, details ...protoadapt.MessageV1) error {
	s, err := status.New(code, "refused").WithDetails(append(details, &errdetails.ErrorInfo{Domain: "pairdb", Reason: reason})...)
	if err != nil {
		panic(err)
	}
	return s.Err()
}

func TestErrorsSayWhatToDo(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
		want string
	}{
		{refusal(codes.FailedPrecondition, "CONDITION_FAILED", clock(&datav1.ClockEntry{NodeId: "n", Counter: 7})), exitCondition, "the clock of the key is n:7 now"},
		{refusal(codes.FailedPrecondition, "CONDITION_FAILED"), exitCondition, "`pairctl get` shows"},
		{refusal(codes.ResourceExhausted, "TOO_MANY_SIBLINGS"), exitFailed, "get --siblings"},
		{refusal(codes.FailedPrecondition, "IDEMPOTENCY_KEY_REUSED"), exitFailed, "--idempotency-key"},
		{refusal(codes.Internal, "INTERNAL"), exitFailed, "`pairctl get` shows whether it was"},
		{status.Error(codes.Unimplemented, "method Write not implemented"), exitFailed, "older than this pairctl"},
		{refusal(codes.InvalidArgument, "INVALID_ARGUMENT_KEY"), exitInvalid, "INVALID_ARGUMENT_KEY"},
	} {
		t.Run(status.Code(c.err).String()+" "+c.want, func(t *testing.T) {
			code, stdout, stderr := run(t.Context(), serve(t, &node{err: c.err}), "put", "k", "v")
			require.Equal(t, c.code, code)
			require.Empty(t, stdout)
			require.Contains(t, stderr, c.want)
		})
	}
	n := &node{answer: &storagev1.WriteResponse{Outcome: storagev1.Outcome_OUTCOME_SIBLING, Siblings: 2, Replayed: true}}
	_, stdout, _ := run(t.Context(), serve(t, n), "put", "k", "v")
	require.Equal(t, "SIBLING (2 siblings; get --siblings shows them) (by an earlier request with this idempotency key)\n", stdout)
}

// changes is a feed with every kind of change.
func changes(_ *storagev1.WatchRequest, s grpc.ServerStreamingServer[storagev1.WatchResponse]) error {
	sibling := func(v string) *datav1.Sibling {
		return &datav1.Sibling{Value: []byte(v), Clock: clock(&datav1.ClockEntry{NodeId: "n", Counter: 1})}
	}
	record := func(siblings ...*datav1.Sibling) *datav1.Record {
		return &datav1.Record{Key: "fruit/a", Siblings: siblings}
	}
	if err := s.Send(&storagev1.WatchResponse{Sequence: 10}); err != nil {
		return err
	}
	if err := s.Send(&storagev1.WatchResponse{Sequence: 20, Changes: []*storagev1.Change{
		{Sequence: 11, Change: &storagev1.Change_Record{Record: record(sibling("red"), sibling("green"))}},
		{Sequence: 12, Change: &storagev1.Change_Record{Record: record(&datav1.Sibling{Tombstone: true})}},
		{Sequence: 13, Change: &storagev1.Change_Joined{Joined: record(sibling("\xff"))}},
		{Sequence: 14, Change: &storagev1.Change_Removed{Removed: &datav1.KeyRange{Start: "a", End: "b"}}},
	}}); err != nil {
		return err
	}
	<-s.Context().Done()
	return s.Context().Err()
}

func TestWatchPrintsALineForEachChange(t *testing.T) {
	n := &node{watch: changes}
	addr := serve(t, n)
	code, stdout, stderr := run(t.Context(), addr, "watch", "fruit/", "--after", "10", "--limit", "4")
	require.Zero(t, code, stderr)
	require.Equal(t, "11\tput\tfruit/a\tred\n12\tdelete\tfruit/a\t\n13\tjoined\tfruit/a\t\xff\n14\tremoved\ta\tb\n", stdout)
	r := n.request.(*storagev1.WatchRequest)
	require.Equal(t, "default fruit/ fruit0 10", fmt.Sprint(r.Tenant, " ", r.Range.Start, " ", r.Range.End, " ", r.AfterSequence))

	_, stdout, _ = run(t.Context(), addr, "watch", "-o", "json", "--limit", "4")
	require.Equal(t, `{"after":11,"change":"put","key":"fruit/a","sequence":11,"siblings":[{"clock":"n:1","tombstone":false,"value":"red"},{"clock":"n:1","tombstone":false,"value":"green"}],"value":"red"}
{"after":12,"change":"delete","key":"fruit/a","sequence":12,"siblings":[{"clock":"","tombstone":true}]}
{"after":13,"change":"joined","key":"fruit/a","sequence":13,"siblings":[{"clock":"n:1","tombstone":false,"value_base64":"/w=="}],"value_base64":"/w=="}
{"after":20,"change":"removed","end":"b","sequence":14,"start":"a"}
`, stdout)
}

func TestWatchSaysWhereToGoOn(t *testing.T) {
	// Who watches again without the sequence misses what was written in between.
	ctx, cancel := context.WithCancel(t.Context())
	n := &node{watch: func(r *storagev1.WatchRequest, s grpc.ServerStreamingServer[storagev1.WatchResponse]) error {
		time.AfterFunc(50*time.Millisecond, cancel) // Ctrl-C
		return changes(r, s)
	}}
	code, stdout, stderr := run(ctx, serve(t, n), "watch")
	require.Zero(t, code, stderr)
	require.Len(t, strings.Split(strings.TrimSpace(stdout), "\n"), 4)
	require.Contains(t, stderr, "--after 20 goes on here")

	n = &node{watch: func(*storagev1.WatchRequest, grpc.ServerStreamingServer[storagev1.WatchResponse]) error {
		return refusal(codes.OutOfRange, "SEQUENCE_TOO_OLD")
	}}
	code, _, stderr = run(t.Context(), serve(t, n), "watch", "--after", "5")
	require.Equal(t, exitFailed, code)
	require.Contains(t, stderr, "SEQUENCE_TOO_OLD")
	require.Contains(t, stderr, "without --after")
}

func TestClockTextIsReadAsItIsPrinted(t *testing.T) {
	for _, text := range []string{"", "n:1", "node-0/3:18446744073709551615,z:2"} {
		c, err := parseClock(text)
		require.NoError(t, err)
		require.Equal(t, text, clockText(c))
	}
}

func TestHelpPages(t *testing.T) {
	// What a person is told the flags do; change it on purpose only.
	for _, kv := range os.Environ() {
		if name, value, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "PAIRDB_") {
			t.Setenv(name, value) // restored at the end
			require.NoError(t, os.Unsetenv(name))
		}
	}
	datadriven.RunTest(t, "testdata/help", func(t *testing.T, d *datadriven.TestData) string {
		var out, errs bytes.Buffer
		code := Run(t.Context(), append(strings.Fields(d.Input), "--help"), Streams{Out: &out, Err: &errs})
		require.Zero(t, code, errs.String())
		return out.String()
	})
}
