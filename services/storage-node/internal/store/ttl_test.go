package store

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
)

// shown returns what each way to read says about a key: whether it has a live value.
func shown(t require.TestingT, s *Store, key string) map[string]bool {
	out := map[string]bool{"read": read(t, s, key).Found}
	several, err := s.BatchRead(bg, "t", []string{"none", key})
	require.NoError(t, err)
	require.NoError(t, several[1].Err)
	out["batch"] = several[1].Found
	page, err := s.KeyRange(bg, KeyRangeRequest{Tenant: "t", Start: key, End: key + "!"})
	require.NoError(t, err)
	out["range"] = len(page.Keys) == 1
	err = s.Stream(bg, StreamRequest{Tenant: "t", Start: key, End: key + "!"}, func(c Chunk) error {
		out["stream"] = len(c.Records) == 1
		return nil
	})
	require.NoError(t, err)
	if _, ok := out["stream"]; !ok {
		out["stream"] = false
	}
	return out
}

func everywhere(found bool) map[string]bool {
	return map[string]bool{"read": found, "batch": found, "range": found, "stream": found}
}

// Danger: one way to read shows an expired value that another one hides; or a value ends a second too
// early.
func TestExpiryIsExactToTheSecondInEveryRead(t *testing.T) {
	for _, c := range []struct {
		written time.Duration // after a whole second
		ttl     int64
		last    time.Duration // after the whole second: the last millisecond in which it is there
	}{
		{0, 1, 999 * time.Millisecond},
		{time.Millisecond, 1, 1999 * time.Millisecond},
		{999 * time.Millisecond, 1, 1999 * time.Millisecond},
		{0, 3600, 3600*time.Second - time.Millisecond},
		{500 * time.Millisecond, MaxTTL, MaxTTL*time.Second + 999*time.Millisecond},
	} {
		w := newWall()
		start := w.Now()
		s := open(t, newFake(), Options{Now: w.Now})
		w.move(c.written)
		_, err := s.Write(bg, WriteRequest{Tenant: "t", Key: "single", Value: []byte("v"), TTL: c.ttl})
		require.NoError(t, err)
		batch(t, s, true, Op{Kind: Put, Key: "batch", Value: []byte("v"), TTL: c.ttl})
		for _, key := range []string{"single", "batch"} {
			w.move(start.Add(c.last).Sub(w.Now()))
			require.Equal(t, everywhere(true), shown(t, s, key), "%+v", c)
			w.move(time.Millisecond)
			require.Equal(t, everywhere(false), shown(t, s, key), "%+v", c)
			got := read(t, s, key)
			require.Empty(t, got.Value)
			require.NotEmpty(t, got.Clock, "it still counts in the clock")
		}
		got, err := stream(t, s, StreamRequest{Tenant: "t", IncludeTombstones: true}, 0)
		require.NoError(t, err)
		require.Len(t, got.records, 2, "replicas are told of it")
	}
}

// collecting opens an engine whose cut of collection the test moves.
func collecting(t testing.TB, fs vfs.FS, cut *uint64) *engine.Engine {
	e, err := engine.Open("data", engine.Options{
		FS: fs, Clock: realClock{}, Rand: rand.New(rand.NewPCG(1, 2)), ReserveBytes: -1,
		MemtableBytes: 1 << 20, LogSegmentBytes: 1 << 20, NoAutoCompaction: true, L0Slow: 1000, L0Stop: 2000,
		BlockCacheBytes: 1 << 20, RowCacheBytes: -1, DeleteBytesPerSecond: -1, // a row cache may know what was collected
		GCBefore: func() uint64 { return *cut },
		Jobs:     jobs.Options{Mode: jobs.ModeAlways, LocalRate: -1},
	})
	require.NoError(t, err)
	return e
}

// Danger: a compaction collects an expired value or a tombstone within its grace, so that a replica that
// was away brings back what it superseded; or it takes it and leaves the older value below.
func TestCompactionCollectsOnlyAfterTheGraceAndNeverResurrects(t *testing.T) {
	const ttl, grace = 10 * time.Second, time.Hour
	for _, dead := range []string{"expired", "deleted"} {
		for _, layers := range []string{"memtable", "tables", "last level"} {
			t.Run(dead+" above "+layers, func(t *testing.T) {
				w := newWall()
				var cut uint64
				e := collecting(t, vfs.NewMem(), &cut)
				defer func() { require.NoError(t, e.Close()) }()
				s := open(t, realEngine{e}, Options{Now: w.Now})
				settle := func() {
					switch layers {
					case "tables":
						require.NoError(t, e.Flush(bg))
					case "last level":
						require.NoError(t, e.Compact(bg, nil, nil, nil))
					}
				}
				put(t, s, "k", "v1", Causality{})
				settle()
				if dead == "expired" {
					require.NoError(t, second(s.Write(bg, WriteRequest{Tenant: "t", Key: "k", Value: []byte("v2"), TTL: int64(ttl / time.Second)})))
				} else {
					w.move(ttl)
					require.NoError(t, second(s.Delete(bg, DeleteRequest{Tenant: "t", Key: "k"})))
					w.move(-ttl)
				}
				settle()
				put(t, s, "other", "v", Causality{})
				w.move(ttl) // the value expires on this second
				known := read(t, s, "k").Clock
				require.NotEmpty(t, known)
				for _, age := range []time.Duration{0, grace} {
					w.move(age)
					cut = causal.Timestamp(w.Now().Add(-grace)) // it collects what is older
					require.NoError(t, e.Compact(bg, nil, nil, nil))
					require.Equal(t, everywhere(false), shown(t, s, "k"))
					require.Equal(t, causal.Equal, known.Compare(read(t, s, "k").Clock), "within the grace")
				}
				cut += 1 << 20 // later than that of the tombstone, whose timestamp has a counter
				require.NoError(t, e.Compact(bg, nil, nil, nil))
				require.Equal(t, everywhere(false), shown(t, s, "k"))
				require.Empty(t, read(t, s, "k").Clock, "collected")
				require.Equal(t, everywhere(true), shown(t, s, "other"))
				require.Equal(t, causal.Applied, put(t, s, "k", "v3", Causality{}).Outcome)
				require.Equal(t, everywhere(true), shown(t, s, "k"))
			})
		}
	}
}

// Danger: a replica that was away repairs the old value in, and the compaction that meets it takes the
// tombstone or the expired value that hides it, and leaves the old one.
func TestALateRepairBelowADeadValueStaysDead(t *testing.T) {
	old := causal.Sibling{Dot: causal.Dot{Node: "m", Counter: 1}, Value: []byte("v1"), Timestamp: 5 << 16}
	repair := RepairRequest{Tenant: "t", Key: "k"}
	for _, dead := range []string{"expired", "deleted"} {
		for _, where := range []string{"memtable", "tables", "last level"} {
			t.Run(dead+" in "+where, func(t *testing.T) {
				w := newWall()
				var cut uint64
				e := collecting(t, vfs.NewMem(), &cut)
				defer func() { require.NoError(t, e.Close()) }()
				s := open(t, realEngine{e}, Options{Now: w.Now})
				again := func() {
					r := repair
					r.Siblings = []causal.Sibling{old}
					require.NoError(t, s.Repair(bg, r))
				}
				again()
				require.NoError(t, e.Flush(bg))
				if dead == "expired" {
					require.NoError(t, second(s.Write(bg, WriteRequest{Tenant: "t", Key: "k", Value: []byte("v2"), TTL: 1})))
				} else {
					require.NoError(t, second(s.Delete(bg, DeleteRequest{Tenant: "t", Key: "k"})))
				}
				switch where {
				case "tables":
					require.NoError(t, e.Flush(bg))
				case "last level":
					require.NoError(t, e.Compact(bg, nil, nil, nil))
				}
				w.move(time.Hour)
				again()
				require.Equal(t, everywhere(false), shown(t, s, "k"))
				cut = causal.Timestamp(w.Now())
				for range 2 {
					require.NoError(t, e.Compact(bg, nil, nil, nil))
					require.Equal(t, everywhere(false), shown(t, s, "k"))
				}
				require.Empty(t, read(t, s, "k").Clock, "all of it is collected")
			})
		}
	}
}
