package causal

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// history is the truth that clocks only summarize: for each write, the writes that its author had
// seen. Values are the numbers of writes.
type history struct {
	seen []map[string]bool
}

func (h *history) write(known map[string]bool) (value string) {
	value = fmt.Sprint(len(h.seen))
	h.seen = append(h.seen, known)
	return value
}

// behind returns every write that a record stands for.
func (h *history) behind(r Record) map[string]bool {
	all := map[string]bool{}
	for _, s := range r.Siblings {
		maps.Copy(all, h.seen[number(s.Value)])
		all[string(s.Value)] = true
	}
	return all
}

func number(v []byte) (n int) {
	fmt.Sscan(string(v), &n)
	return n
}

// maximal returns the writes that no other write had seen.
func (h *history) maximal() []string {
	over := map[string]bool{}
	for _, seen := range h.seen {
		maps.Copy(over, seen)
	}
	var out []string
	for i := range h.seen {
		if v := fmt.Sprint(i); !over[v] {
			out = append(out, v)
		}
	}
	slices.Sort(out)
	return out
}

type coordinator struct {
	clock Clock
	seen  map[string]bool
}

// Danger: a concurrent write is lost, a superseded one comes back, or replicas end differently.
// Three nodes, clients that write blind or with contexts of any age read anywhere, coordinators
// that write plain clocks to some replicas, and records that travel in any order and repeatedly.
func TestWhatSurvivesIsExactlyWhatNobodyHadSeen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const n = 3
		h := &history{}
		var replicas [n]Record
		var inFlight []Record
		type read struct {
			clock Clock
			seen  map[string]bool
		}
		reads := []read{{seen: map[string]bool{}}}
		coords := [2]coordinator{}
		counters := [n]uint64{}
		node := rapid.IntRange(0, n-1)
		dot := func(i int) Dot { counters[i]++; return Dot{fmt.Sprintf("n%d", i), counters[i]} }
		apply := func(i int, w Write) {
			r, _, err := Apply(replicas[i], w, Limits{MaxSiblings: 1000})
			require.NoError(t, err)
			replicas[i] = r
		}
		t.Repeat(map[string]func(*rapid.T){
			"read": func(t *rapid.T) {
				i := node.Draw(t, "node")
				reads = append(reads, read{replicas[i].Clock(), h.behind(replicas[i])})
			},
			"blind": func(t *rapid.T) {
				i := node.Draw(t, "node")
				v := h.write(h.behind(replicas[i]))
				apply(i, Write{Value: []byte(v), Dot: dot(i)})
			},
			"context": func(t *rapid.T) {
				i := node.Draw(t, "node")
				ctx := rapid.SampledFrom(reads).Draw(t, "read")
				v := h.write(maps.Clone(ctx.seen))
				apply(i, Write{Value: []byte(v), HasContext: true, Context: ctx.clock, Dot: dot(i)})
			},
			"coordinator": func(t *rapid.T) {
				k := rapid.IntRange(0, len(coords)-1).Draw(t, "coordinator")
				c := &coords[k]
				known := maps.Clone(c.seen)
				if known == nil {
					known = map[string]bool{}
				}
				for i := range replicas {
					if rapid.Bool().Draw(t, "reads") {
						c.clock = c.clock.Join(replicas[i].Clock())
						maps.Copy(known, h.behind(replicas[i]))
					}
				}
				name := fmt.Sprintf("coordinator%d", k)
				c.clock = c.clock.With(Dot{name, c.clock.Get(name) + 1}, 0)
				v := h.write(maps.Clone(known))
				known[v] = true
				c.seen = known
				w := Write{Value: []byte(v), Clock: c.clock}
				apply(node.Draw(t, "at least"), w)
				for i := range replicas {
					if rapid.Bool().Draw(t, "writes") {
						apply(i, w)
					}
				}
			},
			"send": func(t *rapid.T) {
				inFlight = append(inFlight, replicas[node.Draw(t, "from")])
			},
			"receive": func(t *rapid.T) {
				if len(inFlight) > 0 {
					i := node.Draw(t, "to")
					replicas[i] = Join(replicas[i], rapid.SampledFrom(inFlight).Draw(t, "record"))
				}
			},
			"": func(t *rapid.T) {
				all := Join(replicas[0], Join(replicas[1], replicas[2]))
				require.NoError(t, all.Validate())
				var got []string
				for _, s := range all.Siblings {
					got = append(got, string(s.Value))
				}
				slices.Sort(got)
				require.Equal(t, h.maximal(), got)
			},
		})
	})
}

// Danger: a client that reads before it writes, or a node that takes blind writes alone, is shown
// conflicts with itself.
func TestASingleWriterNeverSeesASiblingOfItsOwn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r Record
		for i := range rapid.Uint64Range(1, 20).Draw(t, "writes") {
			w := Write{Value: []byte(fmt.Sprint(i)), Dot: Dot{rapid.SampledFrom([]string{"n/1", "n/2"}).Draw(t, "incarnation"), i + 1}}
			if rapid.Bool().Draw(t, "context") {
				w.Context, w.HasContext = r.Clock(), true
			}
			var outcome Outcome
			var err error
			r, outcome, err = Apply(r, w, DefaultLimits)
			require.NoError(t, err)
			require.Equal(t, Applied, outcome)
			require.Len(t, r.Siblings, 1)
		}
	})
}
