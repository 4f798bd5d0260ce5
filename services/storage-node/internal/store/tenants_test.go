package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
)

// scriptedTenants refuses, or takes up and counts.
type scriptedTenants struct {
	refuse  error
	winner  bool
	demands []Demand
	inside  int
	paces   [][2]int // keys, bytes
	more    [2]int   // keys, bytes of Release
}

func (s *scriptedTenants) Admit(_ string, d Demand) (Admission, error) {
	s.demands = append(s.demands, d)
	if s.refuse != nil {
		return nil, s.refuse
	}
	s.inside++
	return s, nil
}

func (s *scriptedTenants) AdmitStream(string) (StreamAdmission, error) {
	if s.refuse != nil {
		return nil, s.refuse
	}
	s.inside++
	return scriptedStream{s}, nil
}

func (s *scriptedTenants) LastWriterWins() bool { return s.winner }
func (s *scriptedTenants) Release(keys, bytes int) {
	s.inside--
	s.more = [2]int{keys, bytes}
}

type scriptedStream struct{ s *scriptedTenants }

func (s scriptedStream) Pace(_ context.Context, keys, bytes int) error {
	s.s.paces = append(s.s.paces, [2]int{keys, bytes})
	return nil
}
func (s scriptedStream) Release() { s.s.inside-- }

// everyCall makes each call of a store once.
func everyCall(s *Store) map[string]error {
	ops := []Op{{Kind: Put, Key: "k", Value: []byte("value")}}
	return map[string]error{
		"write":  second(s.Write(bg, WriteRequest{Tenant: "t", Key: "k", Value: []byte("value")})),
		"delete": second(s.Delete(bg, DeleteRequest{Tenant: "t", Key: "k"})),
		"repair": s.Repair(bg, RepairRequest{Tenant: "t", Key: "k", Siblings: []causal.Sibling{{Dot: causal.Dot{Node: "m", Counter: 1}}}}),
		"batch":  second(s.BatchWrite(bg, BatchWriteRequest{Tenant: "t", Ops: ops})),
		"submit": second(s.Submit(bg, BatchWriteRequest{Tenant: "t", Ops: ops}, make([]OpResult, 1))),
		"read":   second(s.Read(bg, "t", "k", nil)),
		"reads":  second(s.BatchRead(bg, "t", []string{"k", "l"})),
		"range":  second(s.KeyRange(bg, KeyRangeRequest{Tenant: "t"})),
		"stream": s.Stream(bg, StreamRequest{Tenant: "t"}, func(Chunk) error { return nil }),
	}
}

// Danger: a refused request waits for keys, or asks the engine, before it is refused.
func TestRefusedRequestsReachNeitherStripesNorEngine(t *testing.T) {
	errRefused := errors.New("refused")
	f := newFake()
	s := open(t, f, Options{Tenants: &scriptedTenants{refuse: errRefused}})
	s.e = nil // a call of it would panic
	for i := range s.stripes.locks {
		s.stripes.locks[i].Lock() // a call that takes one would hang
	}
	for call, err := range everyCall(s) {
		require.ErrorIs(t, err, errRefused, call)
	}
	require.Zero(t, f.submits)
}

// Danger: a request is never released, so that its tenant can't be dropped, or is charged for something
// else than it did.
func TestEveryCallIsAdmittedAndReleasedOnce(t *testing.T) {
	tenants := &scriptedTenants{}
	f := newFake()
	s := open(t, f, Options{Tenants: tenants})
	for call, err := range everyCall(s) {
		require.NoError(t, err, call)
	}
	require.Zero(t, tenants.inside)
	require.Len(t, tenants.demands, 8)

	f.failed = errPowerCut
	for _, err := range everyCall(s) {
		_ = err // reads of the fake go on
	}
	require.Zero(t, tenants.inside)
	f.failed = nil
	canceled, cancel := context.WithCancel(bg)
	cancel()
	_, err := s.Write(canceled, WriteRequest{Tenant: "t", Key: "k"})
	require.ErrorIs(t, err, context.Canceled)
	_, err = s.Read(bg, "t", "", nil)
	requireReason(t, ReasonKey, err)
	require.Zero(t, tenants.inside)

	tenants.demands, tenants.paces = nil, nil
	put(t, s, "key", strings.Repeat("v", 100), Causality{})
	_, err = s.Delete(bg, DeleteRequest{Tenant: "t", Key: "other"})
	require.NoError(t, err)
	_, err = s.Read(bg, "t", "key", nil)
	require.NoError(t, err)
	require.Equal(t, []Demand{{Keys: 1, Bytes: 103, Grows: true}, {Keys: 1, Bytes: 5}, {Keys: 1, Bytes: 3}}, tenants.demands)
	require.Greater(t, tenants.more[1], 100)
	_, err = s.Read(bg, "t", "absent", make([]byte, 1000))
	require.NoError(t, err)
	require.Zero(t, tenants.more)
	_, err = s.BatchRead(bg, "t", []string{"key", "absent", "key"})
	require.NoError(t, err)
	require.Equal(t, Demand{Keys: 3, Bytes: 12}, tenants.demands[len(tenants.demands)-1])
	require.Greater(t, tenants.more[1], 200)
	require.NoError(t, s.Stream(bg, StreamRequest{Tenant: "t"}, func(Chunk) error { return nil }))
	require.Len(t, tenants.paces, 1)
	require.Equal(t, 2, tenants.paces[0][0], "key and k")
	require.Greater(t, tenants.paces[0][1], 100)
}

func requireReason(t *testing.T, want Reason, err error) {
	t.Helper()
	require.Equal(t, want, ReasonOf(err), "%v", err)
}

// Danger: with last-writer-wins a reader sees a loser, the next write leaves one, or something is lost
// in the store, where the policy must not reach.
func TestLastWriterWinsWhenReading(t *testing.T) {
	tenants := &scriptedTenants{winner: true}
	clock := newWall()
	s := open(t, newFake(), Options{Tenants: tenants, Now: clock.Now})
	concurrent := func(key, value string) {
		clock.move(1000)
		require.Equal(t, causal.SiblingKept, put(t, s, key, value, seen(nil)).Outcome)
	}
	put(t, s, "k", "first", Causality{})
	concurrent("k", "second")
	concurrent("k", "third")
	check := func(key string) ReadResult {
		t.Helper()
		r := read(t, s, key)
		batch, err := s.BatchRead(bg, "t", []string{key})
		require.NoError(t, err)
		batch[0].Buf, r.Buf = nil, nil
		require.Equal(t, r, batch[0].ReadResult)
		require.EqualValues(t, 3, r.Clock.Get(s.Actor()), "the clock joins all")
		return r
	}
	r := check("k")
	require.Equal(t, "third", string(r.Value))
	require.Empty(t, r.Siblings)
	// The others are there: streams and the policy of before show them.
	records := 0
	require.NoError(t, s.Stream(bg, StreamRequest{Tenant: "t"}, func(c Chunk) error {
		records += len(c.Records[0].Siblings)
		return nil
	}))
	require.Equal(t, 3, records)
	tenants.winner = false
	require.Len(t, read(t, s, "k").Siblings, 3)
	tenants.winner = true
	require.Equal(t, causal.Applied, put(t, s, "k", "fourth", seen(r.Clock)).Outcome)
	tenants.winner = false
	require.Empty(t, read(t, s, "k").Siblings)
	tenants.winner = true

	// A delete that is newer than a concurrent value wins too; so does a newer value over it.
	put(t, s, "d", "value", Causality{})
	clock.move(1000)
	_, err := s.Delete(bg, DeleteRequest{Tenant: "t", Key: "d", Causality: seen(nil)})
	require.NoError(t, err)
	r = read(t, s, "d")
	require.False(t, r.Found)
	require.Len(t, r.Siblings, 1)
	require.True(t, r.Siblings[0].Tombstone)
	concurrent("d", "later")
	r = read(t, s, "d")
	require.Equal(t, "later", string(r.Value))
	require.Empty(t, r.Siblings)

	// One that has expired leaves the key without a value, as the last write asked for.
	put(t, s, "e", "for ever", Causality{})
	clock.move(1000)
	_, err = s.Write(bg, WriteRequest{Tenant: "t", Key: "e", Value: []byte("short"), TTL: 1, Causality: seen(nil)})
	require.NoError(t, err)
	require.Equal(t, "short", string(read(t, s, "e").Value))
	clock.move(3e9)
	r = read(t, s, "e")
	require.False(t, r.Found)
	require.NotEmpty(t, r.Clock)
}

// Danger: a record of the node itself is acknowledged before it is durable.
func TestSystemTenantWaitsForTheDiskInEveryMode(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{AckBeforeDurable: true, Tenants: &scriptedTenants{refuse: errors.New("not asked")}})
	f.hold()
	done := make(chan error, 1)
	go func() { done <- second(s.System("_x").Write(bg, "k", []byte("v"), Causality{})) }()
	f.mu.Lock()
	for f.applied == 0 {
		f.mu.Unlock()
		f.mu.Lock()
	}
	f.mu.Unlock()
	f.crash()
	require.ErrorIs(t, <-done, errPowerCut)

	s = open(t, newFake(), Options{})
	for _, key := range []string{"b", "a"} {
		_, err := s.System("_x").Write(bg, key, []byte("v"+key), Causality{})
		require.NoError(t, err)
	}
	_, err := s.System("_y").Write(bg, "z", nil, Causality{})
	require.NoError(t, err)
	var got []string
	require.NoError(t, s.System("_x").Each(bg, func(key string, r causal.Record) error {
		got = append(got, key+"="+string(r.Siblings[0].Value))
		return nil
	}))
	require.Equal(t, []string{"a=va", "b=vb"}, got)
}

// Danger: of records that belong together a crash or a refusal leaves some.
func TestRecordsOfASystemTenantAreWrittenTogether(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{AckBeforeDurable: true})
	records := s.System("_x")
	list := func() (got []string) {
		require.NoError(t, records.Each(bg, func(key string, r causal.Record) error {
			got = append(got, fmt.Sprintf("%s=%s/%d", key, r.Siblings[0].Value, len(r.Siblings)))
			return nil
		}))
		return got
	}
	res, err := records.WriteAll(bg, []Op{{Kind: Put, Key: "b", Value: []byte("1")}, {Kind: Put, Key: "a", Value: []byte("1")}})
	require.NoError(t, err)
	require.Equal(t, []string{"a=1/1", "b=1/1"}, list())
	_, err = records.WriteAll(bg, []Op{
		{Kind: Put, Key: "a", Value: []byte("2"), Causality: Causality{Context: res[1].Clock, HasContext: true}},
		{Kind: Put, Key: strings.Repeat("k", MaxKeyBytes+1)},
	})
	require.Equal(t, ReasonKey, ReasonOf(err))
	require.Equal(t, []string{"a=1/1", "b=1/1"}, list())
	_, err = records.WriteAll(bg, []Op{{Kind: Put, Key: "a", Value: []byte("2"), Causality: Causality{Context: res[1].Clock, HasContext: true}}})
	require.NoError(t, err)
	require.Equal(t, []string{"a=2/1", "b=1/1"}, list(), "what the context has seen is superseded")
}
