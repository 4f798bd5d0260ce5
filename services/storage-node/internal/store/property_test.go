package store

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
)

// lentEngine is a real engine that serves many cases of a property, each with keys of its own: opening
// one costs more than a case.
type lentEngine struct {
	t     *testing.T
	fs    vfs.FS
	e     *engine.Engine
	cut   uint64
	cases int
}

// casesPerEngine keeps what the cases leave small.
const casesPerEngine = 200

// next returns the keys of the next case: they begin with what it returns.
func (l *lentEngine) next() (prefix string) {
	if l.cases%casesPerEngine == 0 {
		l.close()
		l.fs = vfs.NewMem()
		l.e = collecting(l.t, l.fs, &l.cut)
	}
	l.cases++
	return fmt.Sprintf("%08d/", l.cases)
}

func (l *lentEngine) close() {
	if l.e != nil {
		require.NoError(l.t, l.e.Close())
	}
	l.e = nil
}

func (l *lentEngine) reopen() {
	l.close()
	l.e = collecting(l.t, l.fs, &l.cut)
}

// disturb does to the engine what must not change any answer.
func (l *lentEngine) disturb(t *rapid.T) {
	switch rapid.IntRange(0, 9).Draw(t, "then") {
	case 0, 1:
		require.NoError(t, l.e.Flush(bg))
	case 2:
		require.NoError(t, l.e.Compact(bg, nil, nil, nil))
	}
}

// genSiblings makes siblings of which many supersede, repeat or contradict each other.
func genSiblings(t *rapid.T, dotted bool) []causal.Sibling {
	ids := []string{"a", "b", "c"}
	out := make([]causal.Sibling, rapid.IntRange(1, 8).Draw(t, "siblings"))
	for i := range out {
		s := &out[i]
		for _, id := range ids {
			if n := rapid.Uint64Range(0, 3).Draw(t, id); n > 0 {
				s.Clock = append(s.Clock, causal.Entry{Node: id, Counter: n})
			}
		}
		if dotted && rapid.Bool().Draw(t, "dotted") || len(s.Clock) == 0 {
			if dotted {
				id := rapid.SampledFrom(ids).Draw(t, "dot")
				s.Dot = causal.Dot{Node: id, Counter: s.Clock.Get(id) + 1}
			} else {
				s.Clock = causal.Clock{{Node: "a", Counter: 1}}
			}
		}
		s.Timestamp = rapid.SampledFrom([]uint64{1 << 16, 2 << 16, 70_000 << 16}).Draw(t, "timestamp")
		if s.Tombstone = rapid.IntRange(0, 3).Draw(t, "kind") == 0; !s.Tombstone {
			s.Value = []byte(rapid.SampledFrom(ids).Draw(t, "value"))
			s.ExpiresAt = rapid.SampledFrom([]int64{0, 0, 1, 1 << 37}).Draw(t, "expiry")
		}
	}
	return out
}

// siblingsIn returns the siblings of a key as a stream sends them.
func siblingsIn(t require.TestingT, s *Store, key string) (out []causal.Sibling) {
	r := StreamRequest{Tenant: "t", Start: key, End: key + "!", IncludeTombstones: true}
	require.NoError(t, s.Stream(bg, r, func(c Chunk) error {
		for _, rec := range c.Records {
			for _, sib := range rec.Siblings {
				sib.Value, sib.Clock = slices.Clone(sib.Value), slices.Clone(sib.Clock)
				out = append(out, sib)
			}
		}
		return nil
	}))
	return out
}

// Danger: what a key holds depends on the order in which repairs came, on what was flushed or merged
// between them, or on how they were grouped: replicas with the same data would differ for ever.
func TestAnyOrderOfRepairsFlushesAndCompactionsGivesTheSameKey(t *testing.T) {
	l := &lentEngine{t: t}
	defer l.close()
	rapid.Check(t, func(t *rapid.T) {
		prefix := l.next()
		s := open(nil, realEngine{l.e}, Options{})
		siblings := genSiblings(t, true)
		var keys []string
		for round := range 3 {
			key := fmt.Sprint(prefix, round)
			keys = append(keys, key)
			for _, sib := range rapid.Permutation(siblings).Draw(t, "order") {
				sib.Clock = slices.Clone(sib.Clock) // the store completes it
				group := []causal.Sibling{sib}
				if rapid.IntRange(0, 4).Draw(t, "repeated") == 0 {
					group = append(group, siblings[0])
					group[1].Clock = slices.Clone(group[1].Clock)
				}
				require.NoError(t, s.Repair(bg, RepairRequest{Tenant: "t", Key: key, Siblings: group}))
				l.disturb(t)
			}
		}
		want, wantStream := read(t, s, keys[0]), siblingsIn(t, s, keys[0])
		want.Buf = nil
		for _, key := range keys[1:] {
			got := read(t, s, key)
			got.Buf = nil
			require.Equal(t, want, got)
			require.Equal(t, wantStream, siblingsIn(t, s, key))
		}
		require.NoError(t, l.e.Compact(bg, nil, nil, nil))
		for _, key := range keys {
			got := read(t, s, key)
			got.Buf = nil
			require.Equal(t, want, got, "after the compaction")
			require.Equal(t, wantStream, siblingsIn(t, s, key))
		}
	})
}

// Danger: as above, for the writes of coordinators, which come to each replica in another order, beside
// repairs. Timestamps are those of the node that takes the write, so only what a sibling is counts.
func TestAnyOrderOfPlainWritesAndRepairsGivesTheSameSiblings(t *testing.T) {
	l := &lentEngine{t: t}
	defer l.close()
	identities := func(siblings []causal.Sibling) (out []string) {
		for _, s := range siblings {
			for i := range s.Clock {
				s.Clock[i].Raised = 0
			}
			out = append(out, fmt.Sprintf("%v %v %q %v", s.Dot, s.Clock, s.Value, s.Tombstone))
		}
		slices.Sort(out)
		return out
	}
	rapid.Check(t, func(t *rapid.T) {
		prefix := l.next()
		s := open(nil, realEngine{l.e}, Options{})
		siblings := genSiblings(t, false)
		var want []string
		for round := range 3 {
			key := fmt.Sprint(prefix, round)
			for _, sib := range rapid.Permutation(siblings).Draw(t, "order") {
				sib.Clock, sib.ExpiresAt = slices.Clone(sib.Clock), 0
				var err error
				switch {
				case rapid.Bool().Draw(t, "as a repair"):
					err = s.Repair(bg, RepairRequest{Tenant: "t", Key: key, Siblings: []causal.Sibling{sib}})
				case sib.Tombstone:
					_, err = s.Delete(bg, DeleteRequest{Tenant: "t", Key: key, Causality: plain(sib.Clock...)})
				default:
					_, err = s.Write(bg, WriteRequest{Tenant: "t", Key: key, Value: sib.Value, Causality: plain(sib.Clock...)})
				}
				require.NoError(t, err)
				l.disturb(t)
			}
			got := identities(siblingsIn(t, s, key))
			if round == 0 {
				want = got
			}
			require.Equal(t, want, got)
		}
	})
}

// Danger: a client that is alone is shown conflicts with itself, or a repeat of its request is written
// over what it wrote since: through contexts, blind writes, repeats, lost answers and restarts.
func TestASingleWriterWithRepeatsSeesNoSiblings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newFake()
		s := open(nil, f, Options{})
		var requests []WriteRequest // that were answered
		last := ""
		for i := range rapid.IntRange(1, 12).Draw(t, "writes") {
			r := WriteRequest{Tenant: "t", Key: "k", Value: fmt.Append(nil, i)}
			switch before := read(t, s, "k"); rapid.IntRange(0, 3).Draw(t, "how") {
			case 0:
				r.Causality = seen(before.Clock)
			case 1:
				r.Causality, r.Condition = seen(before.Clock), clockIs(before.Clock)
			case 2:
				r.Condition = clockIs(before.Clock)
			}
			if rapid.Bool().Draw(t, "idempotency key") {
				r.IdempotencyKey = fmt.Sprint("request ", i)
			}
			if r.IdempotencyKey != "" && rapid.Bool().Draw(t, "power cut") {
				// The answer is lost with the node; the write is there after the restart, or not.
				var after *fakeEngine
				if rapid.Bool().Draw(t, "before it is durable") {
					f.hold()
				}
				f.beforeWait = func() { after = f.crash() }
				_, err := s.Write(bg, r)
				require.Equal(t, err == nil, f.durable == f.applied)
				f = after
				s = open(nil, f, Options{})
			}
			got, err := s.Write(bg, r)
			require.NoError(t, err)
			require.Equal(t, causal.Applied, got.Outcome)
			require.Equal(t, 1, got.Siblings)
			last = string(r.Value)
			if r.IdempotencyKey != "" {
				requests = append(requests, r)
			}
			for range rapid.IntRange(0, 2).Draw(t, "repeats") {
				if len(requests) > 0 {
					again, err := s.Write(bg, rapid.SampledFrom(requests).Draw(t, "request"))
					require.NoError(t, err)
					require.True(t, again.Replayed)
				}
			}
			if rapid.IntRange(0, 3).Draw(t, "restart") == 0 {
				f = f.crash()
				s = open(nil, f, Options{})
			}
			require.Equal(t, last, values(read(t, s, "k")))
			require.Empty(t, read(t, s, "k").Siblings)
		}
	})
}

// Danger: an acknowledged write is neither there nor seen by a later one, and nobody was told: not as
// STALE, not by an error. One node with many clients, which restarts, flushes and merges.
func TestNoAcknowledgedWriteIsLostUntold(t *testing.T) {
	l := &lentEngine{t: t}
	defer l.close()
	incarnations := 0
	rapid.Check(t, func(t *rapid.T) {
		prefix := l.next()
		wall := newWall()
		var s *Store
		start := func() {
			incarnations++
			s = open(nil, realEngine{l.e}, Options{Incarnation: fmt.Sprint(incarnations), Now: wall.Now, Limits: causal.Limits{MaxSiblings: 6}})
		}
		start()
		place := prefix + "k"
		h := &truth{seen: map[string]map[string]bool{}}
		tombstones := map[causal.Dot]string{}
		type earlier struct {
			clock causal.Clock
			known map[string]bool
		}
		reads := []earlier{{known: map[string]bool{}}}
		look := func() (ReadResult, earlier) {
			r := read(t, s, place)
			known := map[string]bool{}
			add := func(id string) {
				require.Contains(t, h.seen, id)
				maps.Copy(known, h.seen[id])
				known[id] = true
			}
			if r.Found {
				add(string(r.Value))
			}
			for _, sib := range r.Siblings {
				if sib.Tombstone {
					add(tombstones[sib.Dot])
				} else {
					add(string(sib.Value))
				}
			}
			return r, earlier{r.Clock, known}
		}
		// write does a put or a delete; known is what it has seen. A refusal leaves no trace in the model.
		write := func(t *rapid.T, o Op, known map[string]bool) (string, WriteResult, error) {
			id := h.write(place, maps.Clone(known))
			var r WriteResult
			var err error
			if o.Kind == Put {
				r, err = s.Write(bg, WriteRequest{Tenant: "t", Key: place, Value: []byte(id), Causality: o.Causality, Condition: o.Condition})
			} else if r, err = s.Delete(bg, DeleteRequest{Tenant: "t", Key: place, Causality: o.Causality, Condition: o.Condition}); err == nil {
				tombstones[causal.Dot{Node: s.Actor(), Counter: r.Clock.Get(s.Actor())}] = id
			}
			if err != nil {
				delete(h.seen, id)
				return id, r, err
			}
			require.Contains(t, []causal.Outcome{causal.Applied, causal.SiblingKept}, r.Outcome)
			return id, r, nil
		}
		full := func(err error) {
			if ReasonOf(err) != ReasonTooManySiblings {
				require.NoError(t, err)
			}
		}
		kind := rapid.SampledFrom([]OpKind{Put, Put, Put, Delete})
		pick := func(t *rapid.T) earlier { return rapid.SampledFrom(reads).Draw(t, "read") }
		coordinator, coordinated := causal.Clock(nil), map[string]bool{}
		var plainWrites, named []WriteRequest
		others := uint64(0)
		t.Repeat(map[string]func(*rapid.T){
			"read": func(t *rapid.T) { _, e := look(); reads = append(reads, e) },
			"blind": func(t *rapid.T) {
				_, now := look()
				_, r, err := write(t, Op{Kind: kind.Draw(t, "kind")}, now.known)
				require.NoError(t, err)
				require.Equal(t, causal.Applied, r.Outcome)
			},
			"context": func(t *rapid.T) {
				e := pick(t)
				_, _, err := write(t, Op{Kind: kind.Draw(t, "kind"), Causality: seen(e.clock)}, e.known)
				full(err)
			},
			"condition": func(t *rapid.T) {
				r, now := look()
				var c *Condition
				holds := false
				switch rapid.IntRange(0, 2).Draw(t, "when") {
				case 0:
					c, holds = absent, !r.Found
				case 1:
					e := pick(t)
					c, holds = clockIs(e.clock), e.clock.Compare(r.Clock) == causal.Equal
				case 2:
					id := rapid.SampledFrom(append(slices.Sorted(maps.Keys(h.seen)), "")).Draw(t, "value")
					c, holds = valueIs(id), r.Found && string(r.Value) == id
				}
				_, _, err := write(t, Op{Kind: kind.Draw(t, "kind"), Condition: c}, now.known)
				if holds {
					require.NoError(t, err)
				} else {
					require.Equal(t, causal.Equal, conditionFailed(t, err).Compare(r.Clock))
				}
			},
			"coordinator": func(t *rapid.T) {
				if rapid.Bool().Draw(t, "reads") {
					_, now := look()
					coordinator = coordinator.Join(now.clock)
					maps.Copy(coordinated, now.known)
				}
				coordinator = coordinator.With(causal.Dot{Node: "c", Counter: coordinator.Get("c") + 1}, 0)
				id, _, err := write(t, Op{Kind: Put, Causality: plain(slices.Clone(coordinator)...)}, coordinated)
				if full(err); err == nil {
					coordinated[id] = true
					plainWrites = append(plainWrites, WriteRequest{Tenant: "t", Key: place, Value: []byte(id), Causality: plain(slices.Clone(coordinator)...)})
				}
			},
			"coordinator repeats": func(t *rapid.T) {
				if len(plainWrites) > 0 {
					r, err := s.Write(bg, rapid.SampledFrom(plainWrites).Draw(t, "write"))
					require.NoError(t, err)
					require.Contains(t, []causal.Outcome{causal.Duplicate, causal.Stale}, r.Outcome)
				}
			},
			"repair": func(t *rapid.T) {
				e := pick(t)
				others++
				id := h.write(place, maps.Clone(e.known))
				sib := causal.Sibling{Clock: slices.Clone(e.clock), Dot: causal.Dot{Node: "m", Counter: e.clock.Get("m") + others}, Value: []byte(id), Timestamp: causal.Timestamp(wall.Now())}
				others = sib.Dot.Counter
				require.NoError(t, s.Repair(bg, RepairRequest{Tenant: "t", Key: place, Siblings: []causal.Sibling{sib}}))
			},
			"named": func(t *rapid.T) {
				e := pick(t)
				id := h.write(place, maps.Clone(e.known))
				r := WriteRequest{Tenant: "t", Key: place, Value: []byte(id), Causality: seen(e.clock), IdempotencyKey: id}
				got, err := s.Write(bg, r)
				if full(err); err != nil {
					delete(h.seen, id)
					return
				}
				require.False(t, got.Replayed)
				named = append(named, r)
			},
			"named repeats": func(t *rapid.T) {
				if len(named) > 0 {
					r, err := s.Write(bg, rapid.SampledFrom(named).Draw(t, "write"))
					require.NoError(t, err)
					require.True(t, r.Replayed)
				}
			},
			"disturb": func(t *rapid.T) { wall.move(time.Second); l.disturb(t) },
			"restart": func(t *rapid.T) {
				if rapid.IntRange(0, 3).Draw(t, "really") == 0 {
					l.reopen()
				}
				start()
			},
			"": func(t *rapid.T) {
				var want []string
				for _, id := range h.maximal(place) {
					if !slices.Contains(slices.Collect(maps.Values(tombstones)), id) {
						want = append(want, id)
					}
				}
				slices.Sort(want)
				require.Equal(t, strings.Join(want, " "), values(read(t, s, place)))
			},
		})
	})
}
