package node

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// The store tells clients that changes are gone by its own error: with the engine's they would be told of an
// internal one, and ask again for ever.
func TestAdapterTranslatesWhatTheStoreDecidesBy(t *testing.T) {
	open := func(fs vfs.FS) *engine.Engine {
		e, err := engine.Open("data", engine.Options{
			FS: fs, Clock: wallClock{}, Rand: rand.New(rand.NewPCG(1, 2)), LogSegmentBytes: 4 << 10, ReserveBytes: -1,
		})
		require.NoError(t, err)
		return e
	}
	fs := vfs.NewMem()
	e := open(fs)
	noise := make([]byte, 6<<10)
	rng := rand.New(rand.NewPCG(3, 4))
	for range 8 {
		for i := range noise {
			noise[i] = byte(rng.Uint32())
		}
		var b engine.Batch
		b.Set([]byte("t\x00k"), noise)
		require.NoError(t, e.Apply(&b, engine.SyncDefault))
	}
	require.NoError(t, e.Close())
	e = open(fs)
	defer func() { require.NoError(t, e.Close()) }()
	_, err := storeEngine{e}.Tail(1)
	require.ErrorIs(t, err, store.ErrOutOfRange)
	require.ErrorIs(t, err, engine.ErrOutOfRange)

	_, _, seq, err := e.GetLatest([]byte("t\x00k"), nil)
	require.NoError(t, err)
	b := storeEngine{e}.NewBatch()
	b.SetIfUnchanged([]byte("t\x00k"), noise, seq-1)
	_, err = storeEngine{e}.Submit(b)
	require.ErrorIs(t, err, store.ErrConflict)
}
