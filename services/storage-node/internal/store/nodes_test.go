package store

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/causal"
)

// siblingsOf returns what a node stores of a key: identities only, as strings, sorted.
func siblingsOf(t require.TestingT, f *fakeEngine, tenant, key string) []string {
	v, ok, err := f.Get([]byte(tenant+"\x00"+key), nil)
	require.NoError(t, err)
	var out []string
	if ok {
		rec, err := causal.Decode(v)
		require.NoError(t, err)
		for _, s := range rec.Siblings {
			for i := range s.Clock {
				s.Clock[i].Raised = 0
			}
			out = append(out, fmt.Sprintf("%v %v %q %v", s.Dot, s.Clock, s.Value, s.Tombstone))
		}
	}
	slices.Sort(out)
	return out
}

// exchange sends everything that one node holds of a tenant to another one, as anti-entropy does.
func exchange(t require.TestingT, from, to *Store, tenant string) {
	require.NoError(t, from.Stream(bg, StreamRequest{Tenant: tenant, IncludeTombstones: true}, func(c Chunk) error {
		for _, r := range c.Records {
			siblings := slices.Clone(r.Siblings)
			for i := range siblings {
				// The wire does not carry when entries were raised.
				siblings[i].Clock = slices.Clone(siblings[i].Clock)
				for j := range siblings[i].Clock {
					siblings[i].Clock[j].Raised = 0
				}
			}
			if err := to.Repair(bg, RepairRequest{Tenant: tenant, Key: r.Key, Siblings: siblings}); err != nil {
				return err
			}
		}
		return nil
	}))
}

// truth is which writes each write had seen.
type truth struct {
	seen map[string]map[string]bool // by tenant+key+number
	next int
}

func (h *truth) write(place string, known map[string]bool) string {
	h.next++
	v := fmt.Sprintf("%s#%d", place, h.next)
	h.seen[v] = known
	return v
}

func (h *truth) behind(r ReadResult) map[string]bool {
	all := map[string]bool{}
	add := func(v []byte) {
		maps.Copy(all, h.seen[string(v)])
		all[string(v)] = true
	}
	if r.Found {
		add(r.Value)
	}
	for _, s := range r.Siblings {
		add(s.Value)
	}
	return all
}

func (h *truth) maximal(place string) []string {
	over := map[string]bool{}
	for _, known := range h.seen {
		maps.Copy(over, known)
	}
	var out []string
	for v := range h.seen {
		if strings.HasPrefix(v, place+"#") && !over[v] {
			out = append(out, v)
		}
	}
	slices.Sort(out)
	return out
}

// Danger: replicas that exchanged everything differ; an acknowledged concurrent write is lost, a
// superseded one is back; a tenant sees a value of another one. Nodes restart under new actors.
func TestNodesConvergeToWhatNobodyHadSeen(t *testing.T) {
	const nodes = 3
	tenants, keys := []string{"t", "t2"}, []string{"k", "2k"}
	rapid.Check(t, func(t *rapid.T) {
		h := &truth{seen: map[string]map[string]bool{}}
		clock := newWall()
		var engines [nodes]*fakeEngine
		var stores [nodes]*Store
		incarnations := 0
		start := func(i int) {
			incarnations++
			stores[i] = open(nil, engines[i], Options{
				NodeID: fmt.Sprint("n", i), Incarnation: fmt.Sprint(incarnations), Now: clock.Now, Limits: causal.Limits{MaxSiblings: 10_000},
			})
		}
		for i := range nodes {
			engines[i] = newFake()
			start(i)
		}
		type earlier struct {
			clock causal.Clock
			known map[string]bool
		}
		reads := map[string][]earlier{}
		node := rapid.IntRange(0, nodes-1)
		at := func(t *rapid.T) (i int, tenant, key, place string) {
			i, tenant, key = node.Draw(t, "node"), rapid.SampledFrom(tenants).Draw(t, "tenant"), rapid.SampledFrom(keys).Draw(t, "key")
			return i, tenant, key, tenant + "/" + key
		}
		readAt := func(i int, tenant, key string) ReadResult {
			r, err := stores[i].Read(bg, tenant, key, nil)
			require.NoError(t, err)
			return r
		}
		t.Repeat(map[string]func(*rapid.T){
			"read": func(t *rapid.T) {
				i, tenant, key, place := at(t)
				r := readAt(i, tenant, key)
				known := h.behind(r)
				for v := range known {
					require.True(t, strings.HasPrefix(v, place+"#"), "%s shows %s", place, v)
				}
				reads[place] = append(reads[place], earlier{r.Clock, known})
			},
			"blind": func(t *rapid.T) {
				i, tenant, key, place := at(t)
				v := h.write(place, h.behind(readAt(i, tenant, key)))
				r, err := stores[i].Write(bg, WriteRequest{Tenant: tenant, Key: key, Value: []byte(v)})
				require.NoError(t, err)
				require.Equal(t, causal.Applied, r.Outcome)
			},
			"context": func(t *rapid.T) {
				i, tenant, key, place := at(t)
				e := earlier{known: map[string]bool{}}
				if len(reads[place]) > 0 {
					e = rapid.SampledFrom(reads[place]).Draw(t, "read")
				}
				v := h.write(place, maps.Clone(e.known))
				_, err := stores[i].Write(bg, WriteRequest{Tenant: tenant, Key: key, Value: []byte(v), Causality: seen(e.clock)})
				require.NoError(t, err)
			},
			"batch": func(t *rapid.T) {
				i, tenant, key, place := at(t)
				var ops []Op
				known := h.behind(readAt(i, tenant, key))
				for range rapid.IntRange(1, 3).Draw(t, "ops") {
					v := h.write(place, maps.Clone(known))
					known[v] = true
					ops = append(ops, Op{Kind: Put, Key: key, Value: []byte(v)})
				}
				_, err := stores[i].BatchWrite(bg, BatchWriteRequest{Tenant: tenant, Ops: ops, Atomic: rapid.Bool().Draw(t, "atomic")})
				require.NoError(t, err)
			},
			"exchange": func(t *rapid.T) {
				from, to := node.Draw(t, "from"), node.Draw(t, "to")
				exchange(t, stores[from], stores[to], rapid.SampledFrom(tenants).Draw(t, "tenant"))
			},
			"restart": func(t *rapid.T) {
				i := node.Draw(t, "node")
				engines[i] = engines[i].crash()
				start(i)
			},
		})
		for _, tenant := range tenants {
			for _, from := range rapid.Permutation([]int{0, 1, 2}).Draw(t, "order") {
				for to := range nodes {
					exchange(t, stores[from], stores[to], tenant)
				}
			}
			for from := range nodes {
				for to := range nodes {
					exchange(t, stores[from], stores[to], tenant)
				}
			}
			for _, key := range keys {
				for i := range nodes {
					require.Equal(t, siblingsOf(t, engines[0], tenant, key), siblingsOf(t, engines[i], tenant, key))
					r := readAt(i, tenant, key)
					require.Equal(t, readAt(0, tenant, key).Value, r.Value, "the winner differs")
					var got []string
					if r.Found && len(r.Siblings) == 0 {
						got = []string{string(r.Value)}
					}
					for _, s := range r.Siblings {
						got = append(got, string(s.Value))
					}
					slices.Sort(got)
					require.Equal(t, h.maximal(tenant+"/"+key), got)
				}
			}
		}
	})
}

// Danger: arbitrary clocks, tombstones and fragments, which no protocol would make but a client may
// send, keep replicas apart for ever.
func TestNodesConvergeOnArbitraryInput(t *testing.T) {
	ids := []string{"a", "b", "c"}
	rapid.Check(t, func(t *rapid.T) {
		var engines [3]*fakeEngine
		var stores [3]*Store
		for i := range stores {
			engines[i] = newFake()
			stores[i] = open(nil, engines[i], Options{NodeID: fmt.Sprint("n", i)})
		}
		genClock := func(t *rapid.T) (c causal.Clock) {
			for _, id := range ids {
				if n := rapid.Uint64Range(0, 3).Draw(t, id); n > 0 {
					c = append(c, causal.Entry{Node: id, Counter: n})
				}
			}
			return c
		}
		node := rapid.IntRange(0, 2)
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				c := Causality{Clock: genClock(t)}
				if rapid.Bool().Draw(t, "context") {
					c = seen(c.Clock)
				}
				s, dead := stores[node.Draw(t, "node")], rapid.Bool().Draw(t, "delete")
				var err error
				if dead {
					_, err = s.Delete(bg, DeleteRequest{Tenant: "t", Key: "k", Causality: c})
				} else {
					_, err = s.Write(bg, WriteRequest{Tenant: "t", Key: "k", Value: []byte(rapid.SampledFrom(ids).Draw(t, "value")), Causality: c})
				}
				if ReasonOf(err) != ReasonTooManySiblings {
					require.NoError(t, err)
				}
			},
			"repair": func(t *rapid.T) {
				sib := causal.Sibling{Clock: genClock(t), Tombstone: rapid.Bool().Draw(t, "dead")}
				if len(sib.Clock) == 0 || rapid.Bool().Draw(t, "dotted") {
					id := rapid.SampledFrom(ids).Draw(t, "dot")
					sib.Dot = causal.Dot{Node: id, Counter: sib.Clock.Get(id) + rapid.Uint64Range(1, 2).Draw(t, "n")}
				}
				require.NoError(t, stores[node.Draw(t, "node")].Repair(bg, RepairRequest{Tenant: "t", Key: "k", Siblings: []causal.Sibling{sib}}))
			},
			"exchange": func(t *rapid.T) {
				exchange(t, stores[node.Draw(t, "from")], stores[node.Draw(t, "to")], "t")
			},
		})
		for range 2 {
			for from := range stores {
				for to := range stores {
					exchange(t, stores[from], stores[to], "t")
				}
			}
		}
		for i := range stores {
			require.Equal(t, siblingsOf(t, engines[0], "t", "k"), siblingsOf(t, engines[i], "t", "k"))
		}
	})
}

// Danger: a client that is alone is shown conflicts with itself, through restarts and repairs.
func TestASingleWriterSeesNoSiblings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		engines := [2]*fakeEngine{newFake(), newFake()}
		stores := [2]*Store{open(nil, engines[0], Options{}), open(nil, engines[1], Options{NodeID: "m"})}
		for i := range rapid.IntRange(1, 15).Draw(t, "writes") {
			c := Causality{}
			if rapid.Bool().Draw(t, "context") {
				c = seen(read(t, stores[0], "k").Clock)
			}
			require.Equal(t, causal.Applied, put(t, stores[0], "k", fmt.Sprint(i), c).Outcome)
			switch rapid.IntRange(0, 3).Draw(t, "then") {
			case 0:
				engines[0] = engines[0].crash()
				stores[0] = open(nil, engines[0], Options{})
			case 1:
				exchange(t, stores[0], stores[1], "t")
			case 2:
				exchange(t, stores[1], stores[0], "t")
			}
			require.Empty(t, read(t, stores[0], "k").Siblings)
			require.Equal(t, fmt.Sprint(i), string(read(t, stores[0], "k").Value))
		}
	})
}
