package cmd

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// watchedNode answers what an operator asks about load and logs.
type watchedNode struct {
	adminv1.UnimplementedAdminServiceServer
	hot   *adminv1.HotRequest
	level string
	asked []string
}

func (n *watchedNode) Hot(_ context.Context, r *adminv1.HotRequest) (*adminv1.HotResponse, error) {
	n.hot = r
	if r.GetLimit() == 7 {
		return &adminv1.HotResponse{WindowSeconds: 120}, nil
	}
	return &adminv1.HotResponse{
		WindowSeconds: 183,
		Reads: []*adminv1.HotKey{
			{Tenant: "shop", Key: "2c26b46b68ffc68f", Requests: 128_000, ValueBytes: 1000},
			{Tenant: "free \u202e", Key: "two words", Requests: 64},
		},
		Largest: []*adminv1.HotKey{{Tenant: "shop", Key: "fcde2b2edba56bf4", ValueBytes: 3 << 20}},
	}, nil
}

func (n *watchedNode) SetLogLevel(_ context.Context, r *adminv1.SetLogLevelRequest) (*adminv1.SetLogLevelResponse, error) {
	n.asked = append(n.asked, r.GetLevel())
	if n.level == "" {
		return nil, status.Error(codes.Unavailable, "gone")
	}
	previous := n.level
	if r.GetLevel() != "" {
		n.level = r.GetLevel()
	}
	return &adminv1.SetLogLevelResponse{Previous: previous}, nil
}

func watched(t *testing.T, n *watchedNode, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := grpc.NewServer()
	adminv1.RegisterAdminServiceServer(s, n)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() {
		s.Stop()
		<-served // stopped, maybe before it began
	}()
	var out, errs bytes.Buffer
	code = Run(t.Context(), append(args, "--addr", l.Addr().String()), Streams{In: strings.NewReader(""), Out: &out, Err: &errs})
	return code, out.String(), errs.String()
}

func TestHotPrintsTheLists(t *testing.T) {
	n := &watchedNode{}
	code, out, errs := watched(t, n, "hot")
	require.Equal(t, exitOK, code, errs)
	require.Equal(t, `of the last 3m3s, estimated

most read
  128000  shop           2c26b46b68ffc68f  1000B
  64      "free \u202e"  "two words"       0B

most written
  none

largest values
  3MiB  shop  fcde2b2edba56bf4
`, out)
	require.EqualValues(t, 20, n.hot.GetLimit())
	require.False(t, n.hot.GetRevealKeys(), "keys are shown to who asks for them only")

	code, out, _ = watched(t, n, "hot", "--limit", "7", "--reveal-keys", "-o", "json")
	require.Equal(t, exitOK, code)
	require.JSONEq(t, `{"window_seconds":"120","reads":[],"writes":[],"largest":[]}`, out)
	require.EqualValues(t, 7, n.hot.GetLimit())
	require.True(t, n.hot.GetRevealKeys())

	for _, args := range [][]string{{"hot", "--limit", "0"}, {"hot", "--limit", "101"}, {"hot", "k"}} {
		code, _, _ = watched(t, n, args...)
		require.Equal(t, exitUsage, code, args)
	}
}

func TestLogLevelIsShownAndChanged(t *testing.T) {
	n := &watchedNode{level: "info"}
	code, out, _ := watched(t, n, "log-level")
	require.Equal(t, exitOK, code)
	require.Equal(t, "info\n", out)
	_, out, _ = watched(t, n, "log-level", "debug")
	require.Equal(t, "debug, was info\n", out)
	_, out, _ = watched(t, n, "log-level", "warn", "-o", "json")
	require.JSONEq(t, `{"level":"warn","previous":"debug"}`, out)
	require.Equal(t, []string{"", "debug", "warn"}, n.asked)
	for _, args := range [][]string{{"log-level", "loud"}, {"log-level", "INFO"}, {"log-level", "info", "warn"}} {
		code, _, errs := watched(t, n, args...)
		require.Equal(t, exitUsage, code, errs)
	}
	require.Len(t, n.asked, 3, "a wrong word does not reach the node")
	n.level = ""
	code, _, errs := watched(t, n, "log-level", "info")
	require.Equal(t, exitUnavailable, code)
	require.Contains(t, errs, "gone")
}
