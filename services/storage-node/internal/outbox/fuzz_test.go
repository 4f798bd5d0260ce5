package outbox

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/event"
)

// sample is a file with two events and a state.
func sample() []byte {
	var b []byte
	for i, id := range []string{"n.1", "n.2"} {
		payload, err := json.Marshal(stored{Sequence: uint64(i + 1), ID: id, Kind: event.NodeReady, Time: time.Unix(1_800_000_000, 0).UTC(), Data: data})
		if err != nil {
			panic(err)
		}
		b = appendFrame(b, frameEvent, 0, 0, payload)
	}
	return appendFrame(b, frameState, 0, 0, encodeState(1, 2, true))
}

// Danger: bytes of a disk end the process, or events come out of order.
func FuzzDecode(f *testing.F) {
	f.Add(sample())
	f.Add(sample()[:70])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decode(b)
		require.False(t, err != nil && c.clean)
		require.LessOrEqual(t, c.floor, c.last)
		before := c.floor
		for _, e := range c.events {
			require.Greater(t, e.Sequence, before)
			require.NoError(t, event.CheckID(e.ID))
			before = e.Sequence
		}
		require.LessOrEqual(t, before, c.last)
	})
}

// Danger: a file of this release does not open with the next.
func TestSampleFileIsReadAsItWas(t *testing.T) {
	c, err := decode(sample())
	require.NoError(t, err)
	require.Equal(t, uint64(1), c.floor)
	require.Equal(t, uint64(2), c.last)
	require.True(t, c.clean)
	require.Equal(t, []string{"n.1", "n.2"}, c.ids)
	require.Len(t, c.events, 1)
	require.Equal(t, "n.2", c.events[0].ID)
	require.JSONEq(t, string(data), string(c.events[0].Data))
}
