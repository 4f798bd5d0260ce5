package gossip

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A declaration that is lost on its way is known to others only with the next push/pull, 15 s later.
func TestNewsOfEqualLengthDoNotDisplaceOneAnother(t *testing.T) {
	g := start(t, "n1", nil)
	for _, n := range []news{
		{"x", []byte("1")}, {"x", []byte("2")}, // the second takes the place of the first
		{"y", []byte("3")}, {"z", []byte("4")},
	} {
		g.queue.QueueBroadcast(n)
	}
	for range retransmitMult {
		var got []string
		for _, m := range g.queue.GetBroadcasts(0, 1400) {
			got = append(got, string(m))
		}
		require.ElementsMatch(t, []string{"2", "3", "4"}, got)
	}
	require.Empty(t, g.queue.GetBroadcasts(0, 1400), "what holds the queue together is never sent")
}
