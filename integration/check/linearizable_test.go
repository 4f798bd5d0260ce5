package check

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/history"
)

// span is an operation on a register from one moment to another.
func span(kind history.Kind, id string, from, to int, f func(*history.Op)) history.Op {
	op := history.Op{ID: id, Kind: kind, Key: "r", Node: "n1", Start: at(from), End: at(to), Outcome: history.OK}
	if f != nil {
		f(&op)
	}
	return op
}

// A search that accepts everything is easily written.
func TestLinearizableRefutesStaleReadsAndLostUpdates(t *testing.T) {
	put := func(id string, from, to int) history.Op { return span(history.Put, id, from, to, nil) }
	found := func(from, to int, values ...string) history.Op {
		return span(history.Read, "", from, to, func(op *history.Op) { op.Values = values })
	}
	unknown := func(op *history.Op) { op.Outcome = history.Unknown }
	for name, c := range map[string]struct {
		ops []history.Op
		ok  bool
	}{
		"one after the other":                     {[]history.Op{put("a", 0, 1), found(2, 3, "a"), put("b", 4, 5), found(6, 7, "b")}, true},
		"a stale read":                            {[]history.Op{put("a", 0, 1), put("b", 2, 3), found(4, 5, "a")}, false},
		"a read during the write sees either":     {[]history.Op{put("a", 0, 1), put("b", 2, 9), found(3, 4, "a"), found(5, 6, "b")}, true},
		"a read goes back":                        {[]history.Op{put("a", 0, 1), put("b", 2, 9), found(3, 4, "b"), found(5, 6, "a")}, false},
		"a lost write":                            {[]history.Op{put("a", 0, 1), found(2, 3)}, false},
		"two values":                              {[]history.Op{put("a", 0, 1), put("b", 0, 1), found(2, 3, "a", "b")}, false},
		"deleted":                                 {[]history.Op{put("a", 0, 1), span(history.Delete, "d", 2, 3, nil), found(4, 5)}, true},
		"deleted and there":                       {[]history.Op{put("a", 0, 1), span(history.Delete, "d", 2, 3, nil), found(4, 5, "a")}, false},
		"an unknown write that comes late":        {[]history.Op{span(history.Put, "a", 0, 1, unknown), found(2, 3), found(4, 5, "a")}, true},
		"an unknown write that never comes":       {[]history.Op{span(history.Put, "a", 0, 1, unknown), found(2, 3), found(4, 5)}, true},
		"an unknown write that comes and goes":    {[]history.Op{span(history.Put, "a", 0, 1, unknown), found(2, 3, "a"), found(4, 5)}, false},
		"two creations succeed":                   {[]history.Op{span(history.Put, "a", 0, 1, absent), span(history.Put, "b", 2, 3, absent)}, false},
		"the second creation is refused":          {[]history.Op{span(history.Put, "a", 0, 1, absent), span(history.Put, "b", 2, 3, func(op *history.Op) { absent(op); turnedDown(op) }), found(4, 5, "a")}, true},
		"a creation is refused without a reason":  {[]history.Op{span(history.Put, "b", 2, 3, func(op *history.Op) { absent(op); turnedDown(op) })}, false},
		"two swaps of one value succeed":          {[]history.Op{put("a", 0, 1), span(history.Put, "b", 2, 3, swap("a")), span(history.Put, "c", 4, 5, swap("a"))}, false},
		"a chain of swaps":                        {[]history.Op{put("a", 0, 1), span(history.Put, "b", 2, 3, swap("a")), span(history.Put, "c", 4, 5, swap("b")), found(6, 7, "c")}, true},
		"what failed for another reason is no op": {[]history.Op{span(history.Put, "a", 0, 1, func(op *history.Op) { op.Outcome = history.Failed }), found(2, 3)}, true},
		"what failed and was made all the same":   {[]history.Op{span(history.Put, "a", 0, 1, func(op *history.Op) { op.Outcome = history.Failed }), found(2, 3, "a")}, false},
	} {
		t.Run(name, func(t *testing.T) {
			all := func(string) bool { return true }
			got := Linearizable(c.ops, all)
			if c.ok {
				require.Empty(t, got)
				return
			}
			require.Equal(t, []Rule{NotLinearizable}, rules(got))
			require.Empty(t, Linearizable(c.ops, func(string) bool { return false }), "it is not asked for this key")
		})
	}
}

func absent(op *history.Op)     { op.IfAbsent = true }
func turnedDown(op *history.Op) { op.Outcome, op.Refused = history.Failed, true }
func swap(id string) func(*history.Op) {
	return func(op *history.Op) { op.IfValue = id }
}
