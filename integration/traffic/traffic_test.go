package traffic

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/history"
)

// A write that is taken for another one makes the checkers accuse the node, or look away.
func TestNumberOfAWriteIsKnownOrSaidToBeUnknown(t *testing.T) {
	tr := &Traffic{seen: map[string]uint64{}}
	dot := func(actor string, n uint64) history.Dot { return history.Dot{Actor: actor, Counter: n} }
	require.Equal(t, dot("n/1", 4), tr.dotOf("k", history.Clock{"n/1": 4, "m/1": 9, "co": 1}, "n"), "one process")
	require.Equal(t, dot("n/2", 1), tr.dotOf("k", history.Clock{"n/1": 4, "n/2": 1}, "n"), "the next process")
	require.Equal(t, dot("n/2", 7), tr.dotOf("k", history.Clock{"n/1": 4, "n/2": 7, "m/1": 9}, "n"))
	require.Zero(t, tr.dotOf("other", history.Clock{"n/1": 2, "n/3": 1}, "n"), "both are new here")
	require.Zero(t, tr.dotOf("k", history.Clock{"n/1": 4, "n/2": 7}, "n"), "a read has seen it first")
	tr.note("read", history.Clock{"n/1": 2})
	require.Equal(t, dot("n/3", 1), tr.dotOf("read", history.Clock{"n/1": 2, "n/3": 1}, "n"))
	require.Zero(t, tr.dotOf("k", history.Clock{"nn/1": 1}, "n"), "another node whose name begins so")
}
