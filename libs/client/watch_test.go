package client_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/client"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

type watchStream = grpc.ServerStreamingServer[storagev1.WatchResponse]

// watched answers Watch as a test tells it to.
type watched struct {
	*memoryNode
	watch func(*storagev1.WatchRequest, watchStream) error
}

func (w *watched) Watch(r *storagev1.WatchRequest, s watchStream) error { return w.watch(r, s) }

func TestWatchGoesOnWhereItWasCutWithoutGapOrRepeat(t *testing.T) {
	// A change that is missed is a wrong copy for ever; one that is repeated may bring back an old value.
	m := newMemoryNode()
	streams := 0
	n := &watched{memoryNode: m}
	n.watch = func(r *storagev1.WatchRequest, s watchStream) error {
		streams++
		cut := &cutStream{watchStream: s, left: 1 + streams%3}
		err := m.Watch(r, cut)
		if streams%4 == 0 {
			return nil // even a clean end is none
		}
		return err
	}
	c := dial(t, n, client.Options{})
	const changes = 200
	got, begun := []string(nil), make(chan struct{})
	go func() {
		<-begun
		for i := range changes {
			if _, err := c.Put(context.Background(), fmt.Sprintf("w/%03d", i), nil); err != nil {
				panic(err)
			}
			if _, err := c.Put(context.Background(), "elsewhere", nil); err != nil {
				panic(err)
			}
		}
	}()
	start, end := client.Prefix("w/")
	var last uint64
	started := false
	for e, err := range c.Watch(t.Context(), start, end, 0) {
		require.NoError(t, err)
		require.GreaterOrEqual(t, e.Sequence, last)
		last = e.Sequence
		if !started {
			require.Equal(t, client.Progress, e.Kind)
			close(begun)
			started = true
		}
		if e.Kind == client.Written {
			got = append(got, e.Record.Key)
		}
		if len(got) == changes {
			break
		}
	}
	for i, k := range got {
		require.Equal(t, fmt.Sprintf("w/%03d", i), k)
	}
	require.Greater(t, streams, 10)
}

// cutStream breaks after some messages.
type cutStream struct {
	watchStream
	left int
}

func (s *cutStream) Send(m *storagev1.WatchResponse) error {
	if s.left--; s.left < 0 {
		return status.Error(codes.Unavailable, "restarting")
	}
	return s.watchStream.Send(m)
}

func TestWatchDeliversEveryKind(t *testing.T) {
	record := &datav1.Record{Key: "k", Siblings: []*datav1.Sibling{{Value: []byte("v")}}}
	gone := &datav1.KeyRange{Start: "a", End: "b"}
	ended := make(chan struct{})
	var asked *storagev1.WatchRequest
	n := &watched{memoryNode: newMemoryNode(), watch: func(r *storagev1.WatchRequest, s watchStream) error {
		asked = r
		defer close(ended)
		_ = s.Send(&storagev1.WatchResponse{Sequence: 20, Changes: []*storagev1.Change{
			{Sequence: 11, Change: &storagev1.Change_Record{Record: record}},
			{Sequence: 12, Change: &storagev1.Change_Joined{Joined: record}},
			{Sequence: 14, Change: &storagev1.Change_Removed{Removed: gone}},
		}})
		_ = s.Send(&storagev1.WatchResponse{Sequence: 20})
		<-s.Context().Done()
		return nil
	}}
	var got []string
	for e, err := range dial(t, n, client.Options{Tenant: "shop"}).Watch(t.Context(), "a", "z", 10) {
		require.NoError(t, err)
		got = append(got, fmt.Sprint(e.Sequence, " ", e.Kind, " ", e.Record.GetKey(), e.Range.GetStart()))
		if len(got) == 5 {
			break
		}
	}
	require.Equal(t, []string{"11 written k", "12 joined k", "14 removed a", "20 progress ", "20 progress "}, got)
	require.Equal(t, "shop a z 10", fmt.Sprint(asked.Tenant, " ", asked.Range.Start, " ", asked.Range.End, " ", asked.AfterSequence))
	<-ended // a loop that is left ends the call
}

func TestWatchEndsWhenItCannotGoOnExactly(t *testing.T) {
	// Going on with whatever the node still has would hide the gap.
	tooOld := refusal(codes.OutOfRange, "SEQUENCE_TOO_OLD", "gone")
	s, err := status.New(codes.OutOfRange, "gone").WithDetails(&errdetails.ErrorInfo{
		Domain: "pairdb", Reason: "SEQUENCE_TOO_OLD", Metadata: map[string]string{"oldest_sequence": "500"}})
	require.NoError(t, err)
	for _, c := range []struct {
		name   string
		watch  func(watchStream) error
		oldest uint64
	}{
		{"too old", func(watchStream) error { return s.Err() }, 500},
		{"too old, no word from when", func(watchStream) error { return tooOld }, 0},
		{"other data, by a change", func(s watchStream) error {
			return s.Send(&storagev1.WatchResponse{Sequence: 3, Changes: []*storagev1.Change{{Sequence: 3}}})
		}, 0},
		{"other data, by its sequence", func(s watchStream) error { return s.Send(&storagev1.WatchResponse{Sequence: 3}) }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			streams := 0
			n := &watched{memoryNode: newMemoryNode(), watch: func(_ *storagev1.WatchRequest, s watchStream) error { streams++; return c.watch(s) }}
			events := 0
			for _, err := range dial(t, n, client.Options{}).Watch(t.Context(), "", "", 10) {
				events++
				require.True(t, client.SequenceTooOld(err), "%v", err)
				var e *client.Error
				require.ErrorAs(t, err, &e)
				oldest, ok := e.OldestSequence()
				require.Equal(t, c.oldest, oldest)
				require.Equal(t, c.oldest != 0, ok)
			}
			require.Equal(t, 1, events)
			require.Equal(t, 1, streams)
		})
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	n := newMemoryNode()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last error
	for _, err := range dial(t, n, client.Options{}).Watch(ctx, "", "", 0) {
		cancel()
		last = err
	}
	require.ErrorIs(t, last, context.Canceled)
}

func TestPrefixIsTheRangeOfItsKeys(t *testing.T) {
	for prefix, want := range map[string]string{
		"": "", "a": "b", "a/": "a0", "é": "ê", "a\U0010FFFF": "b", "\U0010FFFF": "", "~": "\u00A0", "\uD7FF": "\uE000",
	} {
		start, end := client.Prefix(prefix)
		require.Equal(t, prefix, start)
		require.Equal(t, want, end, "%q", prefix)
	}
}
