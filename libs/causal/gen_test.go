package causal

import (
	"fmt"

	"pgregory.net/rapid"
)

// The universe is tiny on purpose: equal, contained and conflicting clocks must all be common.
var (
	nodes  = []string{"a", "b", "c", "n1/x"}
	values = []string{"", "x", "y"}
)

func genClock() *rapid.Generator[Clock] {
	return rapid.Custom(func(t *rapid.T) Clock {
		var c Clock
		for _, n := range nodes {
			if k := rapid.Uint64Range(0, 3).Draw(t, n); k > 0 {
				raised := rapid.SampledFrom([]int64{0, 1, 50, 100, maxUnix}).Draw(t, "raised")
				c = append(c, Entry{Node: n, Counter: k, Raised: raised})
			}
		}
		return c
	})
}

// genSibling makes any valid sibling, also ones that no protocol would make.
func genSibling() *rapid.Generator[Sibling] {
	return rapid.Custom(func(t *rapid.T) Sibling {
		s := Sibling{Clock: genClock().Draw(t, "clock")}
		if len(s.Clock) == 0 || rapid.Bool().Draw(t, "dotted") {
			n := rapid.SampledFrom(nodes).Draw(t, "dot")
			s.Dot = Dot{Node: n, Counter: s.Clock.Get(n) + rapid.Uint64Range(1, 2).Draw(t, "ahead")}
		}
		s.Timestamp = rapid.SampledFrom([]uint64{0, 1, 70_000 << 16, 1<<64 - 1}).Draw(t, "ts")
		if s.Tombstone = rapid.Bool().Draw(t, "tombstone"); !s.Tombstone {
			s.Value = []byte(rapid.SampledFrom(values).Draw(t, "value"))
			s.ExpiresAt = rapid.SampledFrom([]int64{0, 0, 60, 90, maxUnix}).Draw(t, "expiry")
		}
		return s
	})
}

func genRecord() *rapid.Generator[Record] {
	return rapid.Custom(func(t *rapid.T) Record {
		r, err := NewRecord(rapid.SliceOfN(genSibling(), 0, 5).Draw(t, "siblings"))
		if err != nil {
			panic(err)
		}
		return r
	})
}

// show prints a record for failures and golden files.
func show(r Record) string {
	out := ""
	for _, s := range r.Siblings {
		out += fmt.Sprintf("{%v dot %v %q ts %d exp %d tomb %v}", s.Clock, s.Dot, s.Value, s.Timestamp, s.ExpiresAt, s.Tombstone)
	}
	return out
}
