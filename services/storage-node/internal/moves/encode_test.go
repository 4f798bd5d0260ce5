package moves

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/ring"
)

// Danger: a record that is not one stops the node, or is read as something else than it was written as.
func FuzzRecords(f *testing.F) {
	m := &Move{Spec: spec("m", handOver(ring.HashRange{Start: 1, End: 2})), Version: 7, State: Failed, ResumeState: Copying, Reason: "why",
		PinnedSequence: 1, CopyCursor: []byte{0, 1}, TailSequence: 2, FenceSequence: 3, Epoch: 4, VerifiedAt: 5, CreatedAt: 6, UpdatedAt: 7, Finishing: true}
	what := Selection{Tenant: "t", Keys: []string{"a", "ä\u2028<"}, HashRanges: []ring.HashRange{{Start: 1<<64 - 1, End: 0}}}
	d := &Drain{ID: "d", Version: 1, State: DrainMoving, MovesDone: 1, MovesTotal: 2, Reason: "r", ForceReason: "f"}
	for _, record := range []func() ([]byte, error){
		func() ([]byte, error) { return encodeMove(m, "i1") },
		func() ([]byte, error) { return encodeWhat(&what) },
		func() ([]byte, error) { return encodeDrain(d, "i1") },
		func() ([]byte, error) {
			return encode(&wantedRecord{V: recordVersion, Incarnation: "i1", Version: 3, State: membership.Up})
		},
	} {
		b, err := record()
		require.NoError(f, err)
		f.Add(b)
	}
	f.Add([]byte("{"))
	f.Add([]byte(`{"v":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, incarnation, err := decodeMove(b); err == nil {
			again, err := encodeMove(m, incarnation)
			require.NoError(t, err)
			back, same, err := decodeMove(again)
			require.NoError(t, err)
			require.Equal(t, len(m.CopyCursor), len(back.CopyCursor))
			if len(m.CopyCursor) == 0 {
				m.CopyCursor, back.CopyCursor = nil, nil
			}
			require.Equal(t, m, back)
			require.Equal(t, incarnation, same)
		}
		if s, err := decodeWhat(b); err == nil {
			again, err := encodeWhat(&s)
			require.NoError(t, err)
			back, err := decodeWhat(again)
			require.NoError(t, err)
			require.True(t, s.equal(&back))
		}
		if d, incarnation, err := decodeDrain(b); err == nil {
			again, err := encodeDrain(d, incarnation)
			require.NoError(t, err)
			back, _, err := decodeDrain(again)
			require.NoError(t, err)
			require.Equal(t, d, back)
		}
		if w, err := decodeWanted(b); err == nil {
			require.Contains(t, []membership.State{membership.Up, membership.Draining, membership.Drained}, w.State)
		}
	})
}
