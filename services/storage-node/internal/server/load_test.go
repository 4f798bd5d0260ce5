package server

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// A place that is not given back makes a node refuse everything after a while; a refusal that is not
// counted looks like a client that went away.
func TestLoadCountsPlacesAndRefusals(t *testing.T) {
	var l Load
	l.limit.Store(2)
	require.NoError(t, l.enter())
	require.NoError(t, l.enter())
	require.ErrorIs(t, l.enter(), errOverloaded)
	now, limit := l.InFlight()
	require.Equal(t, []int64{2, 2}, []int64{now, limit})
	require.Equal(t, uint64(1), l.Refused())
	l.leave()
	require.NoError(t, l.enter())
}

// Streams hold snapshots, the log, or places of writes: which of them it is, is in the name.
func TestStreamsAreCountedByKind(t *testing.T) {
	var l Load
	var leave []func()
	for _, method := range []string{
		"/pairdb.storage.v1.StorageService/Pipeline", "/pairdb.storage.v1.StorageService/StreamKeys", "/storage.StorageNodeService/StreamKeys",
		"/pairdb.storage.v1.StorageService/Watch", "/pairdb.admin.v1.AdminService/Compact", "/made.up/Any", "",
	} {
		leave = append(leave, l.enterStream(method))
	}
	want := map[StreamKind]int64{StreamPipeline: 1, StreamScan: 2, StreamWatch: 1, StreamOther: 3}
	for k := range StreamKinds {
		open, opened := l.Streams(k)
		require.Equal(t, want[k], open, k)
		require.Equal(t, uint64(want[k]), opened, k)
	}
	for _, f := range leave {
		f()
	}
	for k := range StreamKinds {
		open, opened := l.Streams(k)
		require.Zero(t, open, k)
		require.Equal(t, uint64(want[k]), opened, k)
	}
}

// Metrics have a series for each of Reasons: a reason that is not among them is lost in the others.
func TestReasonsAreAllThatAnErrorCanHave(t *testing.T) {
	all := Reasons()
	require.IsIncreasing(t, all)
	for _, err := range []error{
		&store.Error{Reason: store.ReasonQuotaExceeded}, &store.Error{Reason: "NOT_IN_THE_TABLE"}, engine.ErrStalled, context.Canceled,
		ErrStopping, status.Error(codes.PermissionDenied, "no"), status.Error(codes.Unimplemented, "unknown"), errInternal,
	} {
		reason := reasonOf(err)
		require.Contains(t, all, reason)
		require.Equal(t, reason, refused(t, toStatus(err).Err()).reason, "%v: the metric says what the client is told", err)
	}
}
