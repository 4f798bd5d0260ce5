package nemesis

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/cluster"
)

// named is a node of which only the name is asked.
type named struct {
	cluster.Node
	name string
}

func (n named) Name() string { return n.name }

// still is a cluster of which only the nodes are asked.
type still struct {
	cluster.Cluster
	nodes []cluster.Node
}

func (s still) Nodes() []cluster.Node { return s.nodes }

// Faults that overlap where they must not blame the cluster for what two hands did to one node; a fault that
// is counted and never was makes a campaign look better than it is.
func TestHandsKeepApartAndCountWhatTheyDid(t *testing.T) {
	var mu sync.Mutex
	striking := map[string]int{} // by node; "" is everything
	struck := map[string]int{}
	enter := func(node string, by int) {
		mu.Lock()
		defer mu.Unlock()
		striking[node] += by
		if by > 0 {
			struck[node]++
		}
		require.LessOrEqual(t, striking[node], 1, "two hands at %q", node)
		if striking[""] > 0 {
			require.Zero(t, striking["a"]+striking["b"]+striking["c"], "a node is struck beside everything")
		}
	}
	hit := func(s *scene) error {
		name := ""
		if s.node != nil {
			name = s.node.Name()
		}
		enter(name, 1)
		pause(s.ctx, s.hold)
		enter(name, -1)
		return nil
	}
	n, err := New(Options{
		Cluster: still{nodes: []cluster.Node{named{name: "a"}, named{name: "b"}, named{name: "c"}}},
		Seed:    1, Hold: 4 * time.Millisecond, Say: func(string, ...any) {},
	})
	require.NoError(t, err)
	n.faults = []Fault{
		{"node", aNode, hit}, {"another", aNode, hit}, {"all", everything, hit},
		{"impossible", beside, func(*scene) error { return cluster.ErrUnsupported }},
		{"broken", beside, func(*scene) error { return errors.New("it did not recover") }},
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	require.ErrorContains(t, n.Run(ctx), "broken: it did not recover")
	counts := n.Counts()
	require.NotContains(t, counts, "impossible")
	require.Positive(t, counts["broken"])
	require.Equal(t, struck["a"]+struck["b"]+struck["c"], counts["node"]+counts["another"])
	require.Equal(t, struck[""], counts["all"])
	for _, name := range []string{"", "a", "b", "c"} {
		require.Positive(t, struck[name], "nothing ever struck %q", name)
	}
}

func TestOnlyFaultsThatAreThereCanBeAskedFor(t *testing.T) {
	// A campaign of a misspelt kind would strike nothing, and pass.
	_, err := New(Options{Cluster: still{}, Kinds: []string{"kill storage-node", "kill storagenode"}})
	require.ErrorContains(t, err, `no fault is called "kill storagenode"`)
	n, err := New(Options{Cluster: still{}, Kinds: []string{"kill storage-node"}})
	require.NoError(t, err)
	require.Len(t, n.faults, 1)
	seen := map[string]bool{}
	for _, f := range Faults {
		require.False(t, seen[f.Kind], f.Kind)
		seen[f.Kind] = true
	}
	require.GreaterOrEqual(t, len(Faults), 14)
}
