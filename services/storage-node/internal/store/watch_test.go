package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
)

var errEnough = errors.New("enough")

// keep copies what is valid until the callback returns.
func keep(cs []Change) []Change {
	out := slices.Clone(cs)
	for i := range out {
		out[i].Siblings = slices.Clone(out[i].Siblings)
		for j := range out[i].Siblings {
			out[i].Siblings[j].Value = slices.Clone(out[i].Siblings[j].Value)
		}
	}
	return out
}

// watchTo returns the messages of a feed until one is complete up to a sequence.
func watchTo(t testing.TB, s *Store, r WatchRequest, until uint64) (messages []Changes) {
	t.Helper()
	err := s.Watch(t.Context(), r, func(c Changes) error {
		c.Changes = keep(c.Changes)
		messages = append(messages, c)
		if c.Sequence >= until {
			return errEnough
		}
		return nil
	})
	require.ErrorIs(t, err, errEnough)
	return messages
}

func changesOf(messages []Changes) (out []Change) {
	for _, m := range messages {
		out = append(out, m.Changes...)
	}
	return out
}

// describe is a change in one line: what a reader of it must know.
func describe(c Change) string {
	switch c.Kind {
	case ChangeSet, ChangeJoin:
		var values []string
		for _, s := range c.Siblings {
			v := string(s.Value)
			if s.Tombstone {
				v = "gone"
			}
			values = append(values, v)
		}
		return fmt.Sprintf("%s %s=%s", map[ChangeKind]string{ChangeSet: "set", ChangeJoin: "join"}[c.Kind], c.Key, strings.Join(values, ","))
	}
	return fmt.Sprintf("remove [%s,%s)", c.Start, c.End)
}

func newestOf(t testing.TB, e Engine) uint64 {
	t.Helper()
	_, newest, err := e.FeedRange()
	require.NoError(t, err)
	return feedSequence(newest)
}

// Danger: a follower misses a change, sees another tenant's, or takes a fragment for the whole state.
func TestWatchSendsWhatConcernsTheRangeInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the last change is nobody's: its sequence comes with a beat
		f := newFake()
		s := open(t, f, Options{})
		drop := func(start, end string) {
			f.record(TailChange{Seq: f.applied + 1, Kind: ikey.KindRangeDelete, Key: []byte(start), Value: []byte(end)})
		}
		put(t, s, "b", "before", Causality{})
		start := newestOf(t, f)
		put(t, s, "a", "1", Causality{})
		_, err := s.Write(bg, WriteRequest{Tenant: "tt", Key: "c", Value: []byte("longer name")})
		require.NoError(t, err)
		_, err = s.Write(bg, WriteRequest{Tenant: "s", Key: "c", Value: []byte("smaller name")})
		require.NoError(t, err)
		f.record(TailChange{Seq: f.applied + 1, Kind: ikey.KindSet, Key: []byte("_sys\x00c"), Value: []byte("not even a record")})
		put(t, s, "c", "2", Causality{})
		sib := causal.Sibling{Dot: causal.Dot{Node: "m", Counter: 1}, Value: []byte("there")}
		require.NoError(t, s.Repair(bg, RepairRequest{Tenant: "t", Key: "c", Siblings: []causal.Sibling{sib}}))
		_, err = s.Delete(bg, DeleteRequest{Tenant: "t", Key: "d"})
		require.NoError(t, err)
		put(t, s, "m", "3", Causality{})
		drop("t\x00", "t\x01")
		drop("s\x00", "t\x00")
		drop("t\x01", "u\x00")
		drop("s\x00", "t\x00c")
		drop("t\x00k", "u\x00")
		drop("t\x00ca", "t\x00cb")
		f.record(TailChange{Seq: f.applied + 1, Kind: ikey.KindDelete, Key: []byte("t\x00c")}) // collected garbage
		put(t, s, "b", "4", Causality{})

		for _, c := range []struct {
			start, end string
			want       []string
		}{
			{"", "", []string{"set a=1", "set c=2", "join c=there", "set d=gone", "set m=3", "remove [,)", "remove [,c)", "remove [k,)", "remove [ca,cb)", "set b=4"}},
			{"b", "m", []string{"set c=2", "join c=there", "set d=gone", "remove [b,m)", "remove [b,c)", "remove [k,m)", "remove [ca,cb)", "set b=4"}},
			{"c", "", []string{"set c=2", "join c=there", "set d=gone", "set m=3", "remove [c,)", "remove [k,)", "remove [ca,cb)"}},
			{"", "b", []string{"set a=1", "remove [,b)", "remove [,b)"}},
			{"x", "x", nil},
			{"", "a", []string{"remove [,a)", "remove [,a)"}},
		} {
			var got []string
			last := start
			messages := watchTo(t, s, WatchRequest{Tenant: "t", Start: c.start, End: c.end, After: start}, newestOf(t, f))
			require.Empty(t, messages[0].Changes, "the first answer comes at once")
			require.Equal(t, start, messages[0].Sequence)
			for _, c := range changesOf(messages) {
				require.Greater(t, c.Sequence, last)
				last = c.Sequence
				got = append(got, describe(c))
			}
			require.Equal(t, c.want, got, "[%s,%s)", c.start, c.end)
		}
		require.Zero(t, f.tails)
	})
}

// Danger: a bad request opens a feed, of the system or of everything.
func TestWatchRefusesBadRequests(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{})
	put(t, s, "k", "v", Causality{})
	put(t, s, "k", "v2", Causality{})
	f.forget(2)
	for _, c := range []struct {
		r      WatchRequest
		reason Reason
	}{
		{WatchRequest{}, ReasonTenant},
		{WatchRequest{Tenant: "_sys"}, ReasonTenant},
		{WatchRequest{Tenant: "a:b"}, ReasonTenant},
		{WatchRequest{Tenant: strings.Repeat("t", 257)}, ReasonTenant},
		{WatchRequest{Tenant: "t", Start: "b", End: "a"}, ReasonRange},
		{WatchRequest{Tenant: "t", Start: strings.Repeat("k", 1025)}, ReasonRange},
		{WatchRequest{Tenant: "t", End: "\x00"}, ReasonRange},
		{WatchRequest{Tenant: "t", After: 4}, ReasonSequenceAhead},
		{WatchRequest{Tenant: "t", After: 1<<64 - 1}, ReasonSequenceAhead},
		{WatchRequest{Tenant: "t", After: 3}, ""},
		{WatchRequest{Tenant: "t", After: 2}, ""},
		{WatchRequest{Tenant: "t", After: 1}, ReasonSequenceTooOld},
		{WatchRequest{Tenant: strings.Repeat("t", 256), Start: strings.Repeat("k", 1024)}, ""},
	} {
		err := s.Watch(bg, c.r, func(Changes) error { return errEnough })
		if c.reason == "" {
			require.ErrorIs(t, err, errEnough, "%v", c.r)
			continue
		}
		require.Equal(t, c.reason, ReasonOf(err), "%v", c.r)
	}
	var refused *Error
	require.ErrorAs(t, s.Watch(bg, WatchRequest{Tenant: "t", After: 4}, nil), &refused)
	require.Equal(t, map[string]string{"newest_sequence": "3"}, refused.Metadata)
	f.forget(3)
	require.ErrorAs(t, s.Watch(bg, WatchRequest{Tenant: "t", After: 2}, nil), &refused)
	require.Equal(t, ReasonSequenceTooOld, refused.Reason)
	require.Equal(t, map[string]string{"oldest_sequence": "4"}, refused.Metadata)
	require.Zero(t, f.tails)
}

// Danger: a follower sees what a crash takes back.
func TestWatchWaitsForDurability(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		s := open(t, f, Options{})
		got := make(chan Changes, 10)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- s.Watch(ctx, WatchRequest{Tenant: "t"}, func(c Changes) error { c.Changes = keep(c.Changes); got <- c; return nil })
		}()
		require.Empty(t, (<-got).Changes)
		f.hold()
		go put(t, s, "k", "v", Causality{})
		synctest.Wait()
		require.Empty(t, got)
		f.release()
		require.Equal(t, "set k=v", describe((<-got).Changes[0]))
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
		require.Zero(t, f.tails)
	})
}

// Danger: in a mode in which readers see what is not durable, a crash takes sequences back that a follower
// has, and gives them to other changes: it misses those for ever.
func TestSequencesThatAreToldAreDurableInEveryMode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		s := open(t, f, Options{AckBeforeDurable: true})
		f.eager = true
		ctx, cancel := context.WithCancel(t.Context())
		told := make(chan uint64, 10)
		done := make(chan error, 1)
		go func() {
			done <- s.Watch(ctx, WatchRequest{Tenant: "t"}, func(c Changes) error { told <- c.Sequence; return nil })
		}()
		require.Equal(t, uint64(1), <-told)
		f.hold()
		put(t, s, "k", "v", Causality{})
		streamed := make(chan uint64, 1)
		go func() {
			_ = s.Stream(bg, StreamRequest{Tenant: "t"}, func(c Chunk) error { streamed <- c.Sequence; return nil })
		}()
		synctest.Wait()
		require.Empty(t, told)
		require.Empty(t, streamed)
		f.release()
		require.Equal(t, uint64(2), <-told)
		require.Equal(t, uint64(2), <-streamed)
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
	})
}

// Danger: a follower of a quiet range comes back with a sequence of yesterday, which the log does not have
// any more.
func TestWatchTellsTheSequenceWhileNothingConcernsTheRange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		s := open(t, f, Options{})
		put(t, s, "k", "v", Causality{})
		got := make(chan Changes, 1000)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- s.Watch(ctx, WatchRequest{Tenant: "t", Start: "x"}, func(c Changes) error { got <- c; return nil })
		}()
		require.Equal(t, Changes{Sequence: 2}, <-got)
		began := time.Now()
		require.Equal(t, uint64(2), (<-got).Sequence)
		require.Equal(t, watchBeat, time.Since(began))
		// Neighbours that write all the time must not put it off.
		for range 100 {
			put(t, s, "k", "v", Causality{})
			time.Sleep(watchBeat / 10)
		}
		synctest.Wait()
		require.GreaterOrEqual(t, len(got), 9)
		require.LessOrEqual(t, len(got), 11)
		var last uint64
		for len(got) > 0 {
			c := <-got
			require.Empty(t, c.Changes)
			require.Greater(t, c.Sequence, last)
			last = c.Sequence
		}
		require.Greater(t, last, uint64(80))
		// A change does not wait for the beat.
		began = time.Now()
		put(t, s, "y", "v", Causality{})
		require.Len(t, (<-got).Changes, 1)
		require.Zero(t, time.Since(began))
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
	})
}

// Danger: a follower that never waits, because others write more than it can read, never tells a sequence.
func TestWatchTellsTheSequenceAlsoWhenItNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the last change is nobody's: its sequence comes with a beat
		f := newFake()
		s := open(t, f, Options{})
		var log []TailChange
		for i := range ikey.Seq(5*idleScan/2 + 1) {
			log = append(log, TailChange{Seq: i + 1, Kind: ikey.KindSet, Key: []byte("u\x00k")})
		}
		f.record(log...)
		messages := watchTo(t, s, WatchRequest{Tenant: "t", After: 1}, uint64(len(log))+1)
		require.Empty(t, changesOf(messages))
		require.Len(t, messages, 4)
		require.Equal(t, uint64(idleScan+1), messages[1].Sequence)
		require.Equal(t, uint64(2*idleScan+2), messages[2].Sequence)
	})
}

// Danger: a message is larger than streams are fast with, or than a peer takes.
func TestMessagesStaySmallWhateverIsInThem(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{})
	long := strings.Repeat("k", MaxKeyBytes-4)
	node := strings.Repeat("n", 100)
	start := newestOf(t, f)
	put(t, s, "0", "", Causality{})
	for i := range 300 { // small values, long keys
		put(t, s, fmt.Sprintf("%04d%s", i, long), "", Causality{})
	}
	for i := range 40 { // ids that records hold once and the wire many times
		var sibs []causal.Sibling
		for j := range 10 {
			c := causal.Clock{}
			for k := range 20 {
				c = append(c, causal.Entry{Node: fmt.Sprint(node, k+10), Counter: uint64(10 + j)})
			}
			sibs = append(sibs, causal.Sibling{Clock: c.With(causal.Dot{Node: fmt.Sprint("z", j), Counter: 1}, 0), Timestamp: 1 << 16})
		}
		require.NoError(t, s.Repair(bg, RepairRequest{Tenant: "t", Key: fmt.Sprintf("%04d", i), Siblings: sibs}))
	}
	put(t, s, "9", strings.Repeat("v", 200<<10), Causality{})
	bytes := func(key string, siblings []causal.Sibling) int { return len(key) + siblingsBytes(siblings) }

	messages := watchTo(t, s, WatchRequest{Tenant: "t", After: start}, newestOf(t, f))
	require.Len(t, changesOf(messages), 342)
	for _, m := range messages {
		size := 0
		for _, c := range m.Changes {
			size += bytes(c.Key, c.Siblings)
		}
		require.True(t, size <= chunkBytes || len(m.Changes) == 1, "%d bytes, %d changes", size, len(m.Changes))
	}
	records := 0
	require.NoError(t, s.Stream(bg, StreamRequest{Tenant: "t"}, func(c Chunk) error {
		size := 0
		for _, r := range c.Records {
			size += bytes(r.Key, r.Siblings)
		}
		require.True(t, size <= chunkBytes || len(c.Records) == 1, "%d bytes, %d records", size, len(c.Records))
		records += len(c.Records)
		return nil
	}))
	require.Equal(t, 342, records)
}

// Danger: what came in as one file, with one sequence, is half sent and passes for complete.
func TestWatchCompletesASequenceOnlyWhenAllOfItWasSent(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{})
	var file []TailChange
	rec, err := causal.NewRecord([]causal.Sibling{{Dot: causal.Dot{Node: "m", Counter: 1}, Value: make([]byte, 1000), Timestamp: 1}})
	require.NoError(t, err)
	for i := range 500 {
		file = append(file, TailChange{Seq: 1000, Kind: ikey.KindMerge, Key: fmt.Appendf(nil, "t\x00%03d", i), Value: rec.Encode(nil)})
	}
	put(t, s, "a", "1", Causality{})
	f.record(file...)
	put(t, s, "b", "2", Causality{})
	messages := watchTo(t, s, WatchRequest{Tenant: "t", After: 2}, newestOf(t, f))
	require.Greater(t, len(messages), 5)
	sent := 0
	for _, m := range messages {
		for _, c := range m.Changes {
			if c.Sequence == 1001 {
				sent++
			}
		}
		if sent < len(file) {
			require.Less(t, m.Sequence, uint64(1001))
			again := changesOf(watchTo(t, s, WatchRequest{Tenant: "t", After: m.Sequence}, newestOf(t, f)))
			require.Len(t, again, len(file)+1)
		}
	}
	require.Equal(t, len(file), sent)
}

// Danger: who fell behind is shown a feed with a hole.
func TestWatchThatFallsBehindIsToldFromWhereOn(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{})
	put(t, s, "k", "0", Causality{})
	err := s.Watch(bg, WatchRequest{Tenant: "t", After: 2}, func(c Changes) error {
		put(t, s, "k", "1", Causality{})
		put(t, s, "k", "2", Causality{})
		f.forget(3)
		return nil
	})
	var refused *Error
	require.ErrorAs(t, err, &refused)
	require.Equal(t, ReasonSequenceTooOld, refused.Reason)
	require.Equal(t, "4", refused.Metadata["oldest_sequence"])
	require.Zero(t, f.tails)
}

// Danger: a damaged record passes for a change, or stops the feed without a word.
func TestWatchOfADamagedRecordIsAnError(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{})
	put(t, s, "a", "1", Causality{})
	f.record(TailChange{Seq: 2, Kind: ikey.KindSet, Key: []byte("t\x00k"), Value: []byte("nonsense")})
	err := s.Watch(bg, WatchRequest{Tenant: "t", After: 1}, func(Changes) error { return nil })
	require.Equal(t, ReasonCorruptedData, ReasonOf(err))
	require.Zero(t, f.tails)
}

// Danger: a resume repeats or loses a change: in the midst of a batch, after a restart.
func TestWatchResumesBehindEveryChange(t *testing.T) {
	fs := vfs.NewMem()
	e := openReal(t, fs, 1<<20)
	s := open(t, realEngine{e}, Options{})
	first := newestOf(t, realEngine{e})
	put(t, s, "first", "v", Causality{})
	for round := range 8 {
		var ops []Op
		for i := range 7 {
			ops = append(ops, Op{Kind: Put, Key: fmt.Sprint("k", i), Value: fmt.Append(nil, round)})
		}
		r, err := s.BatchWrite(bg, BatchWriteRequest{Tenant: "t", Ops: ops, Atomic: round%2 == 0})
		require.NoError(t, err)
		require.NoError(t, r[0].Err)
		_, err = s.Write(bg, WriteRequest{Tenant: "u", Key: "k", Value: []byte("of another tenant")})
		require.NoError(t, err)
		sib := causal.Sibling{Dot: causal.Dot{Node: "m", Counter: uint64(round + 1)}, Value: []byte("there")}
		require.NoError(t, s.Repair(bg, RepairRequest{Tenant: "t", Key: "k3", Siblings: []causal.Sibling{sib}}))
	}
	newest := newestOf(t, realEngine{e})
	all := changesOf(watchTo(t, s, WatchRequest{Tenant: "t", After: first + 1}, newest))
	require.Len(t, all, 8*8)
	check := func() {
		t.Helper()
		for i, c := range all {
			rest := changesOf(watchTo(t, s, WatchRequest{Tenant: "t", After: c.Sequence}, newest))
			require.Equal(t, len(all)-i-1, len(rest))
			for j := range rest {
				require.Equal(t, all[i+1+j], rest[j])
			}
		}
	}
	check()
	require.NoError(t, e.Close())
	e = openReal(t, fs, 1<<20)
	s = open(t, realEngine{e}, Options{})
	defer func() { require.NoError(t, e.Close()) }()
	check()
	put(t, s, "late", "v", Causality{})
	rest := changesOf(watchTo(t, s, WatchRequest{Tenant: "t", After: newest}, newest+1))
	require.Equal(t, []string{"set late=v"}, []string{describe(rest[0])})
	require.Len(t, rest, 1)
	err := s.Watch(bg, WatchRequest{Tenant: "t", After: newest + 2}, nil)
	require.Equal(t, ReasonSequenceAhead, ReasonOf(err))
}

// follower is a copy of a range: a snapshot and the changes after it.
type follower map[string]causal.Record

func (f follower) apply(c Change) {
	rec := causal.Record{Siblings: c.Siblings}
	switch c.Kind {
	case ChangeSet:
		f[c.Key] = rec
	case ChangeJoin:
		f[c.Key] = causal.Join(f[c.Key], rec)
	case ChangeRemove:
		for key := range f {
			if key >= c.Start && (c.End == "" || key < c.End) {
				delete(f, key)
			}
		}
	}
}

func (f follower) encoded() map[string]string {
	out := map[string]string{}
	for key, rec := range f {
		out[key] = string(rec.Encode(nil))
	}
	return out
}

// Danger: who reads a snapshot and follows from there has another database than the node: a change between
// the two is lost, or a repair, a delete, a flush or a compaction shows.
func TestSnapshotAndWatchAreTheNode(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { followTheNode(t, seed) })
	}
}

func followTheNode(t *testing.T, seed uint64) {
	e := openReal(t, vfs.NewMem(), 256<<10)
	defer func() { require.NoError(t, e.Close()) }()
	s := open(t, realEngine{e}, Options{Limits: causal.Limits{MaxSiblings: 10_000}})
	const writers, steps = 2, 600
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 100 {
		put(t, s, fmt.Sprintf("k%02d", rng.IntN(60)), strings.Repeat("v", rng.IntN(4000)), Causality{})
	}
	require.NoError(t, e.PinTail("held", e.VisibleSeq()+1)) // a flush at the wrong moment is another test
	var work sync.WaitGroup
	for g := range writers {
		work.Go(func() { scribble(t, s, e, rand.New(rand.NewPCG(seed, uint64(g+2))), g, steps) })
	}

	// Two calls for the snapshot, the second from the cursor of the first one: the smaller sequence counts.
	copied := follower{}
	var changes []Change
	var watched sync.WaitGroup
	ctx, cancel := context.WithCancel(bg)
	defer cancel()
	var joined uint64
	reached := make(chan uint64, 1<<16)
	request := StreamRequest{Tenant: "t", IncludeTombstones: true}
	chunks := 0
	take := func(c Chunk) error {
		for _, r := range c.Records {
			copied[r.Key] = causal.Record{Siblings: keep([]Change{{Siblings: r.Siblings}})[0].Siblings}
		}
		request.Cursor = c.Cursor
		if joined == 0 {
			joined = c.Sequence
			watched.Go(func() {
				err := s.Watch(ctx, WatchRequest{Tenant: "t", After: joined}, func(c Changes) error {
					changes = append(changes, keep(c.Changes)...)
					reached <- c.Sequence
					return nil
				})
				if !errors.Is(err, context.Canceled) {
					t.Errorf("watch: %v", err)
				}
			})
			<-reached
		}
		if chunks++; chunks == 2 {
			return errEnough
		}
		return nil
	}
	if err := s.Stream(bg, request, take); !errors.Is(err, errEnough) {
		require.NoError(t, err)
	}
	require.NoError(t, s.Stream(bg, request, take))
	work.Wait()
	put(t, s, "last", "v", Causality{}) // or the sequence came with the next beat
	newest := newestOf(t, realEngine{e})
	for at := joined; at < newest; {
		at = <-reached
	}
	cancel()
	watched.Wait()

	last := joined
	for _, c := range changes {
		require.Greater(t, c.Sequence, last)
		last = c.Sequence
		copied.apply(c)
	}
	end, err := stream(t, s, StreamRequest{Tenant: "t", IncludeTombstones: true}, 0)
	require.NoError(t, err)
	require.Equal(t, len(end.records), len(copied))
	for key, want := range end.records {
		require.True(t, want == copied.encoded()[key], "%s differs", key)
	}
}

// scribble writes in every way there is.
func scribble(t *testing.T, s *Store, e *engine.Engine, rng *rand.Rand, g, steps int) {
	for i := range steps {
		key := fmt.Sprintf("k%02d", rng.IntN(60))
		value := fmt.Append(nil, g, "/", i, strings.Repeat("v", rng.IntN(3000)))
		var err error
		switch p := rng.IntN(100); {
		case p < 40:
			_, err = s.Write(bg, WriteRequest{Tenant: "t", Key: key, Value: value, Causality: Causality{HasContext: rng.IntN(4) == 0}})
		case p < 50:
			_, err = s.Delete(bg, DeleteRequest{Tenant: "t", Key: key})
		case p < 65:
			sib := causal.Sibling{Dot: causal.Dot{Node: fmt.Sprint("m", g), Counter: uint64(i + 1)}, Value: value, Timestamp: uint64(i + 1)}
			err = s.Repair(bg, RepairRequest{Tenant: "t", Key: key, Siblings: []causal.Sibling{sib}})
		case p < 75:
			_, err = s.BatchWrite(bg, BatchWriteRequest{Tenant: "t", Atomic: true, Ops: []Op{
				{Kind: Put, Key: key, Value: value}, {Kind: Put, Key: key + "b", Value: value}, {Kind: Delete, Key: "k00"}, {Kind: Put, Key: key, Value: value},
			}})
		case p < 85:
			_, err = s.Write(bg, WriteRequest{Tenant: "u", Key: key, Value: value})
		case p < 90:
			var b engine.Batch
			b.DeleteRange([]byte("t\x00"+key), []byte("t\x00"+key+"z"))
			err = e.Apply(&b, engine.SyncDefault)
		case p < 96:
			err = e.Flush(bg)
		default:
			err = e.Compact(bg, nil, nil, nil)
		}
		if err != nil {
			t.Errorf("step %d: %v", i, err)
		}
	}
}

// Danger: on a node without any write the snapshot has the sequence 0, which asks Watch for something else:
// what is written between the two is lost.
func TestSnapshotOfAnEmptyNodeJoinsItsFeed(t *testing.T) {
	e := openReal(t, vfs.NewMem(), 1<<20)
	defer func() { require.NoError(t, e.Close()) }()
	s := open(t, realEngine{e}, Options{})
	var first []Chunk
	require.NoError(t, s.Stream(bg, StreamRequest{Tenant: "t"}, func(c Chunk) error { first = append(first, c); return nil }))
	require.Len(t, first, 1)
	require.Empty(t, first[0].Records)
	require.Empty(t, first[0].Cursor)
	put(t, s, "k", "v", Causality{})
	changes := changesOf(watchTo(t, s, WatchRequest{Tenant: "t", After: first[0].Sequence}, newestOf(t, realEngine{e})))
	require.Len(t, changes, 1)
	require.Equal(t, "set k=v", describe(changes[0]))
}

// Danger: a follower that takes nothing makes the log grow for ever, or is shown a hole when that is given up.
func TestWatchThatTakesNothingLosesItsPlaceInTheLog(t *testing.T) {
	e, err := engine.Open("data", engine.Options{
		FS: vfs.NewMem(), Clock: realClock{}, Rand: rand.New(rand.NewPCG(1, 2)), MemtableBytes: 64 << 10, LogSegmentBytes: 64 << 10,
		TailRetentionBytes: 256 << 10, ReserveBytes: -1, Jobs: jobs.Options{Mode: jobs.ModeAlways, LocalRate: -1},
	})
	require.NoError(t, err)
	defer func() { require.NoError(t, e.Close()) }()
	s := open(t, realEngine{e}, Options{})
	start := newestOf(t, realEngine{e})
	put(t, s, "first", "v", Causality{})
	noise := make([]byte, 20_000) // the log packs the rest
	rng := rand.New(rand.NewPCG(3, 4))
	messages := 0
	err = s.Watch(bg, WatchRequest{Tenant: "t", After: start}, func(Changes) error {
		if messages++; messages > 1 {
			return nil
		}
		for i := range 100 { // while it takes the first message
			for j := range noise {
				noise[j] = byte(rng.Uint32())
			}
			put(t, s, fmt.Sprint("k", i%10), string(noise), Causality{})
		}
		require.NoError(t, e.Flush(bg))
		require.Eventually(t, func() bool { return e.Metrics().LogSegments == 1 }, 10*time.Second, time.Millisecond, "all that may go is gone")
		return nil
	})
	var refused *Error
	require.ErrorAs(t, err, &refused)
	require.Equal(t, ReasonSequenceTooOld, refused.Reason)
	oldest, err := strconv.ParseUint(refused.Metadata["oldest_sequence"], 10, 64)
	require.NoError(t, err)
	require.Greater(t, oldest, start+1)
	watchTo(t, s, WatchRequest{Tenant: "t", After: oldest - 1}, newestOf(t, realEngine{e}))
	err = s.Watch(bg, WatchRequest{Tenant: "t", After: oldest - 2}, nil)
	require.Equal(t, ReasonSequenceTooOld, ReasonOf(err))
}
