package store

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
)

// The danger: on a full disk the one thing that a client can do about it is refused, because a delete is a
// write of a tombstone.
func TestDeletesAreTakenByAFullDisk(t *testing.T) {
	ctx := context.Background()
	fs := vfs.NewMem()
	e, err := engine.Open("data", engine.Options{
		FS: fs, Clock: realClock{}, Rand: rand.New(rand.NewPCG(1, 2)), MaxBatchBytes: 48 << 20, MemtableBytes: 1 << 20, LogSegmentBytes: 1 << 20,
		ReserveBytes: 4 << 20, SpacePoll: time.Millisecond, Jobs: jobs.Options{Mode: jobs.ModeAlways, LocalRate: -1},
	})
	require.NoError(t, err)
	s, err := New(realEngine{e}, Options{NodeID: "n"})
	require.NoError(t, err)
	put := func(key string) error {
		_, err := s.Write(ctx, WriteRequest{Tenant: "t", Key: key, Value: []byte("v")})
		return err
	}
	keys := []string{"single", "named", "batch", "repaired", "stays"}
	for _, key := range keys {
		require.NoError(t, put(key))
	}
	fs.SetUsage(vfs.Usage{TotalBytes: 1 << 30, FreeBytes: 2 << 20})
	require.Eventually(t, func() bool { return put("new") != nil }, 20*time.Second, time.Millisecond)
	require.ErrorIs(t, put("new"), engine.ErrDiskFull)

	_, err = s.Delete(ctx, DeleteRequest{Tenant: "t", Key: "single"})
	require.NoError(t, err)
	_, err = s.Delete(ctx, DeleteRequest{Tenant: "t", Key: "named", IdempotencyKey: "id"})
	require.NoError(t, err, "with what is remembered of it")
	_, err = s.BatchWrite(ctx, BatchWriteRequest{Tenant: "t", Atomic: true, Ops: []Op{{Kind: Delete, Key: "batch"}, {Kind: Delete, Key: "never there"}}})
	require.NoError(t, err)
	tombstone := causal.Sibling{Dot: causal.Dot{Node: "other", Counter: 9}, Tombstone: true, Timestamp: causal.Timestamp(time.Now())}
	require.NoError(t, s.Repair(ctx, RepairRequest{Tenant: "t", Key: "repaired", Siblings: []causal.Sibling{tombstone}}))

	value := tombstone
	value.Tombstone, value.Value = false, []byte("v")
	require.ErrorIs(t, s.Repair(ctx, RepairRequest{Tenant: "t", Key: "repaired", Siblings: []causal.Sibling{tombstone, value}}), engine.ErrDiskFull)
	_, err = s.BatchWrite(ctx, BatchWriteRequest{Tenant: "t", Ops: []Op{{Kind: Delete, Key: "stays"}, {Kind: Put, Key: "x", Value: []byte("v")}}})
	require.ErrorIs(t, err, engine.ErrDiskFull, "what is sent together is refused together")
	for _, key := range []string{"single", "named", "batch"} {
		r, err := s.Read(ctx, "t", key, nil)
		require.NoError(t, err)
		require.False(t, r.Found, key)
	}
	r, err := s.Read(ctx, "t", "stays", nil)
	require.NoError(t, err)
	require.True(t, r.Found)
	require.NoError(t, e.Close())
}
