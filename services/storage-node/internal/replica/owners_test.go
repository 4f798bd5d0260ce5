package replica

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// fence refuses the records with a token.
type fence struct {
	token   uint64
	batches int
}

func (f *fence) Ingest(tokens []uint64, apply func() error) error {
	f.batches++
	for _, t := range tokens {
		if t == f.token {
			return &store.Error{Reason: store.ReasonRangeMoving, Message: "moving"}
		}
	}
	return apply()
}

// Danger: records of another node go past the fence of a range, and stay behind at its old owner.
func TestRecordsOfARangeThatIsFencedAreNotApplied(t *testing.T) {
	n := startNode(t, "n")
	f := &fence{token: ring.Token("t", "moving")}
	n.o.Owners = f
	n.take(t, []Record{record("t", "a", "v"), record("u", "moving", "v")})
	require.Equal(t, "v", n.get(t, "u", "moving"), "the token is of tenant and key")
	require.NotZero(t, f.batches)
	err := n.tryTake([]Record{record("t", "b", "v"), record("t", "moving", "v")})
	require.Equal(t, store.ReasonRangeMoving, store.ReasonOf(err), "%v", err)
	require.Len(t, n.all(t), 2)
	n.take(t, []Record{record("t", "c", "v")})
}
