package store

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
)

var bg = context.Background()

// wall is a clock that stands until it is moved.
type wall struct {
	mu  sync.Mutex
	now time.Time
}

func newWall() *wall { return &wall{now: time.Unix(1_700_000_000, 0)} }

func (w *wall) Now() time.Time { w.mu.Lock(); defer w.mu.Unlock(); return w.now }

func (w *wall) move(d time.Duration) { w.mu.Lock(); w.now = w.now.Add(d); w.mu.Unlock() }

func open(t testing.TB, f Engine, o Options) *Store {
	if o.NodeID == "" {
		o.NodeID = "n"
	}
	if o.Now == nil {
		o.Now = newWall().Now
	}
	if o.stripeBits == 0 {
		o.stripeBits = 4
	}
	s, err := New(f, o)
	require.NoError(t, err)
	return s
}

func put(t require.TestingT, s *Store, key, value string, c Causality) WriteResult {
	r, err := s.Write(bg, WriteRequest{Tenant: "t", Key: key, Value: []byte(value), Causality: c})
	require.NoError(t, err)
	return r
}

func read(t require.TestingT, s *Store, key string) ReadResult {
	r, err := s.Read(bg, "t", key, nil)
	require.NoError(t, err)
	return r
}

func plain(entries ...causal.Entry) Causality { return Causality{Clock: entries} }

func seen(c causal.Clock) Causality { return Causality{Context: c, HasContext: true} }

// Danger: any of the four outcomes, or the read after it, is wrong.
func TestWriteAnswersWhatItDid(t *testing.T) {
	s := open(t, newFake(), Options{Incarnation: "1"})
	r := put(t, s, "k", "1", Causality{})
	require.Equal(t, causal.Applied, r.Outcome)
	require.Equal(t, causal.Dot{Node: "n/1", Counter: 1}, causal.Dot{Node: r.Clock[0].Node, Counter: r.Clock[0].Counter})
	ctx := read(t, s, "k").Clock

	require.Equal(t, causal.Applied, put(t, s, "k", "2", seen(ctx)).Outcome)
	r = put(t, s, "k", "3", seen(ctx))
	require.Equal(t, causal.SiblingKept, r.Outcome)
	require.Equal(t, 2, r.Siblings)
	got := read(t, s, "k")
	require.True(t, got.Found)
	require.Equal(t, "3", string(got.Value))
	require.Len(t, got.Siblings, 2)
	require.Equal(t, "3", string(got.Siblings[0].Value))

	require.Equal(t, causal.Applied, put(t, s, "k", "4", Causality{}).Outcome)
	got = read(t, s, "k")
	require.Equal(t, "4", string(got.Value))
	require.Empty(t, got.Siblings)

	c := causal.Entry{Node: "c", Counter: 5}
	require.Equal(t, causal.Applied, put(t, s, "p", "x", plain(c)).Outcome)
	require.Equal(t, causal.Duplicate, put(t, s, "p", "x", plain(c)).Outcome)
	require.Equal(t, causal.SiblingKept, put(t, s, "p", "y", plain(c)).Outcome)
	c.Counter = 4
	require.Equal(t, causal.Stale, put(t, s, "p", "old", plain(c)).Outcome)
}

// Danger: an absent key is an error, or a deleted one comes without the clock that a new write needs.
func TestAbsentAndDeletedKeysAreAnswers(t *testing.T) {
	s := open(t, newFake(), Options{})
	got := read(t, s, "k")
	require.False(t, got.Found)
	require.Empty(t, got.Clock)
	put(t, s, "k", "1", Causality{})
	r, err := s.Delete(bg, DeleteRequest{Tenant: "t", Key: "k"})
	require.NoError(t, err)
	require.Equal(t, causal.Applied, r.Outcome)
	require.Zero(t, r.Siblings)
	got = read(t, s, "k")
	require.False(t, got.Found)
	require.NotEmpty(t, got.Clock)
	require.Len(t, got.Siblings, 1)
	require.True(t, got.Siblings[0].Tombstone)
}

// Danger: a stale or duplicate write is acknowledged on the word of a newer value that a crash then
// takes away.
func TestUnchangedAnswersWaitForWhatTheyRestOn(t *testing.T) {
	for _, c := range []struct {
		name  string
		value string
		clock causal.Entry
		want  causal.Outcome
	}{
		{"stale", "old", causal.Entry{Node: "c", Counter: 1}, causal.Stale},
		{"duplicate", "new", causal.Entry{Node: "c", Counter: 2}, causal.Duplicate},
	} {
		for _, crash := range []bool{false, true} {
			t.Run(fmt.Sprint(c.name, " crash ", crash), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFake()
					s := open(t, f, Options{})
					f.hold()
					newer := make(chan error, 1)
					go func() {
						_, err := s.Write(bg, WriteRequest{Tenant: "t", Key: "k", Value: []byte("new"), Causality: plain(causal.Entry{Node: "c", Counter: 2})})
						newer <- err
					}()
					synctest.Wait() // applied, not durable
					require.False(t, read(t, s, "k").Found)

					type answer struct {
						r   WriteResult
						err error
					}
					done := make(chan answer, 1)
					go func() {
						r, err := s.Write(bg, WriteRequest{Tenant: "t", Key: "k", Value: []byte(c.value), Causality: plain(c.clock)})
						done <- answer{r, err}
					}()
					synctest.Wait()
					require.Empty(t, done, "answered before what it rests on was durable")

					if crash {
						after := open(t, f.crash(), Options{})
						require.ErrorIs(t, <-newer, errPowerCut)
						require.ErrorIs(t, (<-done).err, errPowerCut)
						require.False(t, read(t, after, "k").Found)
						return
					}
					f.release()
					require.NoError(t, <-newer)
					got := <-done
					require.NoError(t, got.err)
					require.Equal(t, c.want, got.r.Outcome)
				})
			})
		}
	}
}

// Danger: waiting for the disk holds the stripe, and writers of one key sync one by one.
func TestStripesAreFreeWhileAWriteWaitsForTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		s := open(t, f, Options{})
		f.hold()
		done := make(chan error, 3)
		for range 3 {
			go func() {
				_, err := s.Write(bg, WriteRequest{Tenant: "t", Key: "k", Value: []byte("v")})
				done <- err
			}()
		}
		synctest.Wait()
		require.Equal(t, 3, f.submits)
		require.Empty(t, done)
		f.release()
		for range 3 {
			require.NoError(t, <-done)
		}
		require.Empty(t, read(t, s, "k").Siblings)
	})
}

// Danger: a repair or an ingest between read and commit is shadowed by the write's Set.
func TestAnOvertakenWriteIsDecidedAgain(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{})
	put(t, s, "k", "1", Causality{})
	other := causal.Record{Siblings: []causal.Sibling{{Dot: causal.Dot{Node: "m", Counter: 1}, Value: []byte("ingested")}}}
	f.beforeSubmit = func(n int) {
		if n == 2 {
			b := &fakeBatch{}
			b.Merge([]byte("t\x00k"), other.Encode(nil))
			f.mu.Lock()
			f.applied++
			f.durable = f.applied
			f.keys["t\x00k"] = append(f.keys["t\x00k"], version{f.applied, b.changes[0].kind, b.changes[0].value})
			f.mu.Unlock()
		}
	}
	r := put(t, s, "k", "2", seen(nil))
	require.Equal(t, 3, f.submits)
	require.Equal(t, 3, r.Siblings, "1, 2 and what overtook")
}

// Danger: a write that is overtaken for ever never ends, or claims success.
func TestContentionIsBounded(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{})
	f.beforeSubmit = func(int) {
		f.mu.Lock()
		f.applied++
		f.keys["t\x00k"] = append(f.keys["t\x00k"], version{f.applied, 1, causal.Record{}.Encode(nil)})
		f.mu.Unlock()
	}
	_, err := s.Write(bg, WriteRequest{Tenant: "t", Key: "k"})
	require.Equal(t, ReasonOverloaded, ReasonOf(err))
	require.Equal(t, maxAttempts, f.submits)
	_, err = s.BatchWrite(bg, BatchWriteRequest{Tenant: "t", Ops: []Op{{Kind: Put, Key: "k"}}})
	require.Equal(t, ReasonOverloaded, ReasonOf(err))
}

// Danger: the engine's refusal is hidden, or taken for this package's.
func TestEngineErrorsComeThrough(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{})
	f.failed = errors.New("disk full")
	_, err := s.Write(bg, WriteRequest{Tenant: "t", Key: "k"})
	require.ErrorIs(t, err, f.failed)
	require.Empty(t, ReasonOf(err))
}

// Danger: a write goes on although its caller has gone, or after its deadline.
func TestAnEndedContextWritesNothing(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{})
	ctx, cancel := context.WithCancel(bg)
	cancel()
	_, err := s.Write(ctx, WriteRequest{Tenant: "t", Key: "k"})
	require.ErrorIs(t, err, context.Canceled)
	_, err = s.Read(ctx, "t", "k", nil)
	require.ErrorIs(t, err, context.Canceled)
	_, err = s.BatchRead(ctx, "t", []string{"k"})
	require.ErrorIs(t, err, context.Canceled)
	_, err = s.KeyRange(ctx, KeyRangeRequest{Tenant: "t"})
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, s.Stream(ctx, StreamRequest{Tenant: "t"}, nil), context.Canceled)
	require.Zero(t, f.submits)
	require.Zero(t, f.iters)
}

// Danger: two processes with one node id, from a copied directory or a restored snapshot, give the
// same dot to different writes.
func TestEveryProcessIsAnActorOfItsOwn(t *testing.T) {
	f := newFake()
	seen := map[string]bool{}
	for range 100 {
		s := open(t, f, Options{NodeID: "node-0"})
		require.False(t, seen[s.Actor()])
		require.Regexp(t, `^node-0/[0-9a-z]{10}$`, s.Actor())
		seen[s.Actor()] = true
	}
	_, err := New(f, Options{NodeID: string(make([]byte, 128))})
	require.Error(t, err)
	_, err = New(f, Options{})
	require.Error(t, err)

	// The write that the crash took away and the one after it differ, and both survive a join.
	f.hold()
	a := open(t, f, Options{AckBeforeDurable: true})
	put(t, a, "k", "lost here, repaired elsewhere", Causality{})
	latest, _, _, err := f.GetLatest([]byte("t\x00k"), nil)
	require.NoError(t, err)
	rec, err := causal.Decode(latest)
	require.NoError(t, err)
	b := open(t, f.crash(), Options{})
	put(t, b, "k", "after the crash", Causality{})
	require.NoError(t, b.Repair(bg, RepairRequest{Tenant: "t", Key: "k", Siblings: rec.Siblings}))
	require.Len(t, read(t, b, "k").Siblings, 2)
}

// Danger: dots are given out of order under contention, and a write is inside its own clock; or
// writers of one key overtake each other until they are refused.
func TestConcurrentWritersTakeTurns(t *testing.T) {
	f := newFake()
	f.beforeSubmit = func(int) { runtime.Gosched() }
	s := open(t, f, Options{Limits: causal.Limits{MaxSiblings: 1000}})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				c := Causality{HasContext: i%2 == 0}
				_, err := s.Write(bg, WriteRequest{Tenant: "t", Key: fmt.Sprint(i % 3), Value: []byte(fmt.Sprint(g, i)), Causality: c})
				require.NoError(t, err)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 400, s.counter.Load())
	require.Equal(t, 400, f.submits, "none was decided twice")
}

// Danger: a value outlives its expiry, dies early, or takes its clock with it.
func TestExpiredValuesVanishOnTheSecondAndKeepTheirClock(t *testing.T) {
	w := newWall()
	w.move(300 * time.Millisecond)
	s := open(t, newFake(), Options{Now: w.Now})
	_, err := s.Write(bg, WriteRequest{Tenant: "t", Key: "k", Value: []byte("v"), TTL: 10})
	require.NoError(t, err)
	got := read(t, s, "k")
	require.EqualValues(t, 1_700_000_011, got.ExpiresAt)
	w.move(10*time.Second + 699*time.Millisecond)
	require.True(t, read(t, s, "k").Found)
	w.move(time.Millisecond)
	got = read(t, s, "k")
	require.False(t, got.Found)
	require.Nil(t, got.Value)
	require.Empty(t, got.Siblings)
	require.NotEmpty(t, got.Clock)
	page, err := s.KeyRange(bg, KeyRangeRequest{Tenant: "t"})
	require.NoError(t, err)
	require.Empty(t, page.Keys)
}

// Danger: a repair reads, loses siblings, or takes a timestamp that makes it win for ever.
func TestRepairJoinsWithoutAReadAndRefusesTheFuture(t *testing.T) {
	f, w := newFake(), newWall()
	s := open(t, f, Options{Now: w.Now})
	put(t, s, "k", "here", Causality{})
	limit := causal.Timestamp(w.Now().Add(time.Minute))
	sib := func(ts uint64) []causal.Sibling {
		return []causal.Sibling{{Dot: causal.Dot{Node: "m", Counter: 1}, Value: []byte("there"), Timestamp: ts}}
	}
	err := s.Repair(bg, RepairRequest{Tenant: "t", Key: "k", Siblings: sib(limit + 1)})
	require.Equal(t, ReasonTimestamp, ReasonOf(err))
	require.NoError(t, s.Repair(bg, RepairRequest{Tenant: "t", Key: "k", Siblings: sib(limit)}))
	got := read(t, s, "k")
	require.Len(t, got.Siblings, 2)
	require.Equal(t, "there", string(got.Value))
	// A write that has seen it is later, although this node's clock is behind.
	put(t, s, "k", "merged", seen(got.Clock))
	require.Greater(t, read(t, s, "k").Timestamp, limit)
}

// Danger: a repair of a future dot of this node makes its next write look old.
func TestMadeUpWritesOfThisNodeAreRefused(t *testing.T) {
	s := open(t, newFake(), Options{Incarnation: "1"})
	put(t, s, "k", "1", Causality{})
	forged := causal.Clock{{Node: s.Actor(), Counter: 2}}
	for name, err := range map[string]error{
		"context": second(s.Write(bg, WriteRequest{Tenant: "t", Key: "k", Causality: seen(forged)})),
		"clock":   second(s.Write(bg, WriteRequest{Tenant: "t", Key: "k", Causality: plain(forged...)})),
		"repair": s.Repair(bg, RepairRequest{Tenant: "t", Key: "k",
			Siblings: []causal.Sibling{{Clock: forged}}}),
		"dot": s.Repair(bg, RepairRequest{Tenant: "t", Key: "k",
			Siblings: []causal.Sibling{{Dot: causal.Dot{Node: s.Actor(), Counter: 2}}}}),
	} {
		require.Equal(t, ReasonClock, ReasonOf(err), name)
	}
	require.Equal(t, causal.Applied, put(t, s, "k", "2", Causality{}).Outcome)
}

func second[A any](_ A, err error) error { return err }

// Danger: the 65th sibling is taken, or refused without what must be merged.
func TestTooManySiblingsCarriesThem(t *testing.T) {
	s := open(t, newFake(), Options{})
	for i := range 64 {
		put(t, s, "k", fmt.Sprint(i), seen(nil))
	}
	_, err := s.Write(bg, WriteRequest{Tenant: "t", Key: "k", Value: []byte("one more"), Causality: seen(nil)})
	require.Equal(t, ReasonTooManySiblings, ReasonOf(err))
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Len(t, e.Record.Siblings, 64)
	// The record is the caller's, not a buffer's.
	for i := range 40 {
		put(t, s, "other", strings.Repeat("x", 100*i), Causality{})
	}
	values := map[string]bool{}
	for _, sib := range e.Record.Siblings {
		values[string(sib.Value)] = true
	}
	require.True(t, values["0"] && values["63"])
	// Repair is never limited, and merging always works.
	require.NoError(t, s.Repair(bg, RepairRequest{Tenant: "t", Key: "k", Siblings: []causal.Sibling{{Dot: causal.Dot{Node: "m", Counter: 1}}}}))
	require.Equal(t, causal.Applied, put(t, s, "k", "merged", seen(read(t, s, "k").Clock)).Outcome)
}
