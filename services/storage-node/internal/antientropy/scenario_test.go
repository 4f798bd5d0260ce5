package antientropy

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

const (
	grace = time.Hour
	skew  = time.Minute
)

// pair are two nodes with one clock that share all ranges.
type pair struct {
	t    *testing.T
	a, b *node
	ms   atomic.Int64 // what the clock of both shows; their engines look too
}

func (p *pair) now() time.Time { return time.UnixMilli(p.ms.Load()) }

func (p *pair) pass(d time.Duration) { p.ms.Add(d.Milliseconds()) }

func newPair(t *testing.T, mode Mode) *pair {
	p := &pair{t: t}
	p.ms.Store(1_700_000_000_000)
	o := Options{Mode: mode, Grace: grace, MaxClockSkew: skew, Now: p.now}
	both := []membership.Declaration{declared("a", 2, membership.Up, "i"), declared("b", 2, membership.Up, "i")}
	for _, n := range []struct {
		name string
		at   **node
	}{{"a", &p.a}, {"b", &p.b}} {
		o.NodeID = n.name
		*n.at = start(t, vfs.NewMem(), o)
		require.NoError(t, (*n.at).SetMembers(bg, both, true))
	}
	t.Cleanup(func() {
		require.NoError(t, p.a.engine.Close())
		require.NoError(t, p.b.engine.Close())
	})
	return p
}

// records returns what a node stores for clients, fragments joined.
func (p *pair) records(n *node) map[string][]byte {
	out := map[string][]byte{}
	lower, upper := ikey.TenantBounds("t")
	it, err := n.engine.NewIter(lower, upper)
	require.NoError(p.t, err)
	for ok := it.First(); ok; ok = it.Next() {
		out[string(it.Key())] = append([]byte(nil), it.Value()...)
	}
	require.NoError(p.t, it.Close())
	return out
}

// apply joins records with those of a node.
func (p *pair) apply(n *node, records map[string][]byte) {
	var b engine.Batch
	for key, value := range records {
		b.Merge([]byte(key), value)
	}
	if b.Len() > 0 {
		require.NoError(p.t, n.engine.Apply(&b, engine.SyncDefault))
	}
}

// counted is a record without what a digest leaves out.
func (p *pair) counted(record []byte, cut uint64) string {
	if record == nil {
		return ""
	}
	out, _, _, err := causal.CollectEncoded(nil, record, cut)
	require.NoError(p.t, err)
	return string(out)
}

// compare is anti-entropy: what differs, with collectable things left out, is exchanged as it is, and both
// are told that they were equal at the snapshots from before.
func (p *pair) compare() (exchanged int) {
	cut := causal.Timestamp(p.now().Add(-grace - skew))
	seqA, seqB := p.a.seq(), p.b.seq()
	a, b := p.records(p.a), p.records(p.b)
	toA, toB := map[string][]byte{}, map[string][]byte{}
	for _, all := range []map[string][]byte{a, b} {
		for key := range all {
			if p.counted(a[key], cut) == p.counted(b[key], cut) {
				continue
			}
			if v, ok := a[key]; ok {
				toB[key] = v
			}
			if v, ok := b[key]; ok {
				toA[key] = v
			}
		}
	}
	p.apply(p.a, toA)
	p.apply(p.b, toB)
	require.NoError(p.t, p.a.Record(bg, "b", whole, seqA, p.now()))
	require.NoError(p.t, p.b.Record(bg, "a", whole, seqB, p.now()))
	return len(toA) + len(toB)
}

func (p *pair) write(n *node, key, value string) {
	_, err := n.store.Write(bg, store.WriteRequest{Tenant: "t", Key: key, Value: []byte(value)})
	require.NoError(p.t, err)
}

func (p *pair) remove(n *node, key string) {
	_, err := n.store.Delete(bg, store.DeleteRequest{Tenant: "t", Key: key})
	require.NoError(p.t, err)
}

func (p *pair) compact(n *node) { require.NoError(p.t, n.engine.Compact(bg, nil, nil, nil)) }

// live reports whether a node has a value.
func (p *pair) live(n *node, key string) bool {
	rec, ok := p.records(n)["t\x00"+key]
	if !ok {
		return false
	}
	s, err := causal.Summarize(rec, p.now().Unix())
	require.NoError(p.t, err)
	return s.Live > 0
}

// stored reports whether a node has anything of a key.
func (p *pair) stored(n *node, key string) bool { _, ok := p.records(n)["t\x00"+key]; return ok }

// Danger: a replica is away for longer than the grace, and brings back what was deleted meanwhile, because
// those who were there have forgotten the delete.
func TestADeleteIsKeptUntilTheReplicaThatWasAwayHasIt(t *testing.T) {
	for _, mode := range []Mode{Auto, Repair, Grace} {
		t.Run(mode.String(), func(t *testing.T) {
			p := newPair(t, mode)
			p.write(p.a, "k", "v")
			p.write(p.a, "kept", "v")
			p.compare()
			require.True(t, p.live(p.b, "k"))

			// b is away from here on.
			p.pass(time.Minute)
			p.remove(p.a, "k")
			p.pass(10 * grace)
			p.compact(p.a)
			require.Equal(t, mode != Grace, p.stored(p.a, "k"), "the delete")
			require.False(t, p.live(p.a, "k"))

			// b returns.
			require.Positive(t, p.compare())
			if mode == Grace {
				require.True(t, p.live(p.a, "k"), "by age alone it comes back: that is the danger")
				return
			}
			require.False(t, p.live(p.a, "k"))
			require.False(t, p.live(p.b, "k"))

			// Both took the other's record, and have the delete under a new sequence: it waits for the next time.
			p.compact(p.a)
			p.compact(p.b)
			require.True(t, p.stored(p.a, "k"))
			require.True(t, p.stored(p.b, "k"))
			require.Zero(t, p.compare())
			p.compact(p.a)
			require.False(t, p.stored(p.a, "k"))
			require.True(t, p.stored(p.b, "k"))
			require.Zero(t, p.compare(), "what one has collected and the other not is no difference")
			p.compact(p.b)
			require.False(t, p.stored(p.b, "k"))
			require.Zero(t, p.compare())
			for _, n := range []*node{p.a, p.b} {
				require.False(t, p.live(n, "k"))
				require.True(t, p.live(n, "kept"))
			}
		})
	}
}

// Danger: a late write with an old timestamp comes after a comparison, and its delete, which is old at once,
// is collected before the other replica has it.
func TestADeleteThatComesLateWaitsForTheNextComparison(t *testing.T) {
	p := newPair(t, Auto)
	p.write(p.a, "k", "v")
	p.compare()
	old := p.now()
	p.pass(10 * grace)
	p.compare()
	// A delete of long ago arrives, as one does that somebody had kept for this node.
	late, err := causal.NewRecord([]causal.Sibling{{
		Dot: causal.Dot{Node: "c", Counter: 1}, Clock: causal.Clock{{Node: p.a.store.Actor(), Counter: 1 << 40}},
		Tombstone: true, Timestamp: causal.Timestamp(old.Add(time.Second)),
	}})
	require.NoError(t, err)
	p.apply(p.a, map[string][]byte{"t\x00k": late.Encode(nil)})
	require.False(t, p.live(p.a, "k"))
	p.compact(p.a)
	require.True(t, p.stored(p.a, "k"), "its sequence is above the cut, however old it is")
	require.Positive(t, p.compare())
	require.False(t, p.live(p.b, "k"))
	p.compare()
	p.compact(p.a)
	require.False(t, p.stored(p.a, "k"))
	p.compare()
	require.False(t, p.live(p.a, "k"))
}
