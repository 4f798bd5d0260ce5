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
		require.GreaterOrEqual(t, e.After, last)
		last = e.After
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
		for _, m := range []*storagev1.WatchResponse{
			{Sequence: 10},
			{Sequence: 20, Changes: []*storagev1.Change{
				{Sequence: 11, Change: &storagev1.Change_Record{Record: record}},
				{Sequence: 12, Change: &storagev1.Change_Joined{Joined: record}},
				{Sequence: 14, Change: &storagev1.Change_Removed{Removed: gone}},
			}},
			{Sequence: 20},
			// A file that the node took in has one sequence, and needs two messages here.
			{Sequence: 29, Changes: []*storagev1.Change{
				{Sequence: 30, Change: &storagev1.Change_Record{Record: record}},
				{Sequence: 30, Change: &storagev1.Change_Record{Record: record}},
			}},
			{Sequence: 31, Changes: []*storagev1.Change{
				{Sequence: 30, Change: &storagev1.Change_Record{Record: record}},
				{Sequence: 31, Change: &storagev1.Change_Record{Record: record}},
			}},
		} {
			if err := s.Send(m); err != nil {
				return err
			}
		}
		<-s.Context().Done()
		return nil
	}}
	var got []string
	for e, err := range dial(t, n, client.Options{Tenant: "shop"}).Watch(t.Context(), "a", "z", 10) {
		require.NoError(t, err)
		got = append(got, fmt.Sprint(e.Sequence, " ", e.After, " ", e.Kind, " ", e.Record.GetKey(), e.Range.GetStart()))
		if len(got) == 9 {
			break
		}
	}
	require.Equal(t, []string{
		"10 10 progress ", "11 11 written k", "12 12 joined k", "14 20 removed a", "20 20 progress ",
		"30 29 written k", "30 29 written k", "30 30 written k", "31 31 written k",
	}, got)
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
		{"ahead", func(watchStream) error { return refusal(codes.OutOfRange, "SEQUENCE_AHEAD", "other data") }, 0},
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
				require.True(t, client.MustRescan(err), "%v", err)
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

func TestScanAndWatchJoinWithoutAGap(t *testing.T) {
	// What is written while the scan goes on is in one of both.
	n := newMemoryNode()
	c := dial(t, n, client.Options{})
	for i := range 10 {
		conflict(t, c, fmt.Sprint("k/", i), "old")
	}
	got := map[string]string{}
	take := func(r *client.Record) {
		value, _ := client.Winner(r)
		got[r.Key] = string(value)
	}
	after := uint64(99)
	for r, err := range c.Scan(t.Context(), "", "", client.SnapshotSequence(&after)) {
		require.NoError(t, err)
		require.NotEqual(t, uint64(99), after, "it is there before the first record")
		take(r)
		if r.Key == "k/5" {
			for _, k := range []string{"k/3", "k/7", "k/new"} {
				_, err := c.Put(t.Context(), k, []byte("new"))
				require.NoError(t, err)
			}
		}
	}
	for e, err := range c.Watch(t.Context(), "", "", after) {
		require.NoError(t, err)
		if e.Kind == client.Written {
			take(e.Record)
		}
		if len(got) == 11 {
			break
		}
	}
	require.Equal(t, []string{"new", "old", "new", "new"}, []string{got["k/3"], got["k/4"], got["k/7"], got["k/new"]})
	after = 99
	for range c.Scan(t.Context(), "nothing", "nothing0", client.SnapshotSequence(&after)) {
		t.Fatal("a record")
	}
	require.EqualValues(t, 13, after)
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
