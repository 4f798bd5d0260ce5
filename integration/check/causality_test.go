package check

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/history"
)

// at is a moment of the histories below.
func at(n int) time.Duration { return time.Duration(n) * time.Second }

// n1 is a clock with writes of one node.
func n1(n uint64) history.Clock { return history.Clock{"n1/a": n} }

func dot(actor string, n uint64) history.Dot { return history.Dot{Actor: actor, Counter: n} }

// blind is a blind put at node n1, acknowledged, with the number n.
func blind(id string, start, n int) history.Op {
	return history.Op{
		ID: id, Kind: history.Put, Key: "k", Client: "c", Node: "n1", Start: at(start), End: at(start + 1), Blind: true,
		Outcome: history.OK, Dot: dot("n1/a", uint64(n)), Clock: n1(uint64(n)),
	}
}

// after is a put at node n1 by somebody who had read seen.
func after(id string, start, n int, seen history.Clock) history.Op {
	op := blind(id, start, n)
	op.Blind, op.Seen = false, seen
	return op
}

// read is an answer of a node.
func read(node string, start int, clock history.Clock, values ...string) history.Op {
	return history.Op{Kind: history.Read, Key: "k", Client: "r", Node: node, Start: at(start), End: at(start + 1), Outcome: history.OK, Clock: clock, Values: values}
}

func edit(op history.Op, f func(*history.Op)) history.Op {
	f(&op)
	return op
}

func rules(of []Violation) (out []Rule) {
	for _, v := range of {
		out = append(out, v.Rule)
	}
	return out
}

// A checker that finds nothing in what is wrong proves nothing: each history here must be refuted, by its
// rule, and each that is like it and right must not.
func TestCausalityRefutesWhatIsWrongAndNothingElse(t *testing.T) {
	unknown := func(op *history.Op) { op.Outcome, op.Clock, op.Dot = history.Unknown, nil, history.Dot{} }
	refused := func(op *history.Op) { op.Outcome, op.Clock, op.Dot = history.Failed, nil, history.Dot{} }
	brief := func(op *history.Op) { op.TTL = 5 * time.Second }
	deletion := func(op *history.Op) { op.Kind = history.Delete }
	elsewhere := func(op *history.Op) { op.Node, op.Dot, op.Clock = "n2", dot("n2/b", 1), history.Clock{"n2/b": 1} }
	both := history.Clock{"n1/a": 1, "n2/b": 1}
	plain := func(node string, start int) history.Op {
		return history.Op{
			ID: "p", Kind: history.Put, Key: "k", Client: "co", Node: node, Start: at(start), End: at(start + 1), Plain: true,
			Seen: n1(1), Dot: dot("co", 1), Clock: history.Clock{"n1/a": 1, "co": 1}, Outcome: history.OK,
		}
	}
	for name, c := range map[string]struct {
		ops  []history.Op
		want []Rule
	}{
		"what was written is read":        {[]history.Op{blind("a", 0, 1), read("n1", 2, n1(1), "a")}, nil},
		"an acknowledged write is gone":   {[]history.Op{blind("a", 0, 1), read("n1", 2, nil)}, []Rule{Forgotten}},
		"its clock stayed, its value not": {[]history.Op{blind("a", 0, 1), read("n1", 2, n1(1))}, []Rule{Lost}},
		"a later write has gone, and the one that it replaced is back": {
			[]history.Op{blind("a", 0, 1), blind("b", 2, 2), read("n1", 4, n1(1), "a")}, []Rule{Forgotten}},
		"another node has not heard of it yet": {[]history.Op{blind("a", 0, 1), read("n2", 2, nil)}, nil},
		"a read that began before the answer": {
			[]history.Op{blind("a", 0, 1), edit(read("n1", 0, nil), func(op *history.Op) { op.End = at(5) })}, nil},
		"superseded blindly": {[]history.Op{blind("a", 0, 1), blind("b", 2, 2), read("n1", 4, n1(2), "b")}, nil},
		"superseded and shown beside its successor": {
			[]history.Op{blind("a", 0, 1), blind("b", 2, 2), read("n1", 4, n1(2), "a", "b")}, []Rule{Resurrected}},
		"superseded and back again": {
			[]history.Op{blind("a", 0, 1), blind("b", 2, 2), read("n1", 4, n1(2), "a")}, []Rule{Resurrected, Lost}},
		"a deletion that does not hold": {
			[]history.Op{blind("a", 0, 1), edit(blind("d", 2, 2), deletion), read("n1", 4, n1(2), "a")}, []Rule{Resurrected}},
		"a deletion that holds": {[]history.Op{blind("a", 0, 1), edit(blind("d", 2, 2), deletion), read("n1", 4, n1(2))}, nil},
		"a deletion that is shown": {
			[]history.Op{edit(blind("d", 0, 1), deletion), read("n1", 2, n1(1), "d")}, []Rule{Phantom}},
		"two that did not know of each other": {
			[]history.Op{blind("a", 0, 1), edit(blind("b", 0, 1), elsewhere), read("n1", 4, both, "a", "b")}, nil},
		"one of two that did not know of each other": {
			[]history.Op{blind("a", 0, 1), edit(blind("b", 0, 1), elsewhere), read("n1", 4, both, "b")}, []Rule{Lost}},
		"two with the same past": {
			[]history.Op{blind("a", 0, 1), after("b", 2, 2, n1(1)), after("c", 2, 3, n1(1)), read("n1", 4, n1(3), "b", "c")}, nil},
		"the writer had read what is shown beside its value": {
			[]history.Op{blind("a", 0, 1), after("b", 2, 2, n1(1)), read("n1", 4, n1(2), "b", "a")}, []Rule{Resurrected}},
		"superseded by one who had not read it": {
			[]history.Op{blind("a", 0, 1), after("b", 2, 2, nil), read("n1", 4, n1(2), "b")}, []Rule{Lost}},
		"a coordinator's write on all nodes": {
			[]history.Op{blind("a", 0, 1), plain("n1", 2), plain("n2", 2), read("n2", 4, history.Clock{"n1/a": 1, "co": 1}, "p")}, nil},
		"a coordinator's write that one node has lost": {
			[]history.Op{blind("a", 0, 1), plain("n1", 2), plain("n2", 2), read("n2", 4, n1(1), "a")}, []Rule{Forgotten}},
		"a coordinator's write beside what it superseded": {
			[]history.Op{blind("a", 0, 1), plain("n1", 2), read("n1", 4, history.Clock{"n1/a": 1, "co": 1}, "p", "a")}, []Rule{Resurrected}},
		"a write without an answer that was made":     {[]history.Op{edit(blind("a", 0, 1), unknown), read("n1", 2, n1(1), "a")}, nil},
		"a write without an answer that was not made": {[]history.Op{edit(blind("a", 0, 1), unknown), read("n1", 2, nil)}, nil},
		"one that may have superseded another": {
			[]history.Op{blind("a", 0, 1), edit(blind("d", 2, 2), func(op *history.Op) { unknown(op); deletion(op) }), read("n1", 4, n1(2))}, nil},
		"a refused write is shown":          {[]history.Op{edit(blind("a", 0, 1), refused), read("n1", 2, n1(1), "a")}, []Rule{Phantom}},
		"nobody wrote it":                   {[]history.Op{read("n1", 2, n1(1), "x")}, []Rule{Phantom}},
		"shown twice":                       {[]history.Op{blind("a", 0, 1), read("n1", 2, n1(1), "a", "a")}, []Rule{Phantom}},
		"shown before it was written":       {[]history.Op{blind("a", 5, 1), read("n1", 0, n1(1), "a")}, []Rule{Phantom}},
		"shown, and its clock not":          {[]history.Op{blind("a", 0, 1), read("n2", 2, nil, "a")}, []Rule{Phantom}},
		"within its lifetime":               {[]history.Op{edit(blind("a", 0, 1), brief), read("n1", 2, n1(1), "a")}, nil},
		"gone within its lifetime":          {[]history.Op{edit(blind("a", 0, 1), brief), read("n1", 1, n1(1))}, []Rule{Lost}},
		"gone after its lifetime":           {[]history.Op{edit(blind("a", 0, 1), brief), read("n1", 7, n1(1))}, nil},
		"shown after its lifetime":          {[]history.Op{edit(blind("a", 0, 1), brief), read("n1", 30, n1(1), "a")}, []Rule{Expired}},
		"a read without an answer":          {[]history.Op{blind("a", 0, 1), edit(read("n1", 2, nil), func(op *history.Op) { op.Outcome = history.Failed })}, nil},
		"the value of another key is shown": {[]history.Op{edit(blind("a", 0, 1), func(op *history.Op) { op.Key = "other" }), read("n1", 2, n1(1), "a")}, []Rule{Phantom}},
	} {
		t.Run(name, func(t *testing.T) {
			got := Causality(c.ops)
			require.Equal(t, c.want, rules(got), "%v", got)
		})
	}
}

func TestDurableRefutesAnAcknowledgedWriteThatNoNodeHas(t *testing.T) {
	// This is the promise of the whole.
	ops := []history.Op{blind("a", 0, 1), blind("b", 2, 2)}
	require.Empty(t, Durable(ops, []history.Op{read("n1", 9, n1(2), "b"), read("n2", 9, n1(1), "a")}), "one node has it")
	require.Equal(t, []Rule{Lost}, rules(Durable(ops, []history.Op{read("n1", 9, n1(1), "a"), read("n2", 9, n1(1), "a")})))
	require.Equal(t, []Rule{Lost, Lost}, rules(Durable(ops, nil)), "nobody was asked")
	ops[1].Outcome = history.Unknown
	require.Empty(t, Durable(ops, []history.Op{read("n1", 9, n1(1), "a")}))
}

func TestEqualRefutesReplicasThatDiffer(t *testing.T) {
	// Replicas that stay different are found out when the right one is gone.
	nodes := []string{"n1", "n2"}
	require.Empty(t, Equal([]history.Op{read("n1", 0, n1(2), "a", "b"), read("n2", 5, n1(2), "b", "a")}, nodes))
	for _, other := range []history.Op{
		read("n2", 0, n1(2), "a"), read("n2", 0, n1(1), "a", "b"), read("n2", 0, nil), read("n3", 0, n1(2), "a", "b"),
	} {
		require.Equal(t, []Rule{Diverged}, rules(Equal([]history.Op{read("n1", 0, n1(2), "a", "b"), other}, nodes)), "%v", other)
	}
}

func TestGrowthRefutesEachKindOfLeak(t *testing.T) {
	// A process that keeps a little of everything that goes wrong dies of the thousandth fault.
	base := Usage{Descriptors: 50, Goroutines: 100, Bytes: 100 << 20}
	limits := Usage{Descriptors: 10, Goroutines: 10, Bytes: 1 << 20}
	before := map[string]Usage{"node": base}
	require.Empty(t, Growth(before, map[string]Usage{"node": {60, 110, 101 << 20}, "new": {1e6, 1e6, 1e12}}, limits))
	for _, after := range []map[string]Usage{
		{"node": {61, 100, 100 << 20}}, {"node": {50, 111, 100 << 20}}, {"node": {50, 100, 102 << 20}}, {},
	} {
		require.Equal(t, []Rule{Grown}, rules(Growth(before, after, limits)), "%v", after)
	}
}
