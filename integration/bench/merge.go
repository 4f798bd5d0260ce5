package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

// compactionResult is the latency of reads with and without a compaction in the sidecar.
type compactionResult struct {
	quiet, busy         *histogram
	quietRate, busyRate float64
	took                time.Duration
}

// compactionDepth is how many reads are in flight beside the compaction: the two processors are not
// taken by reads alone.
const compactionDepth = 4

// measureCompaction fills a node with more than its memtables hold, and reads from it before and
// while everything is merged by the compactor.
func (b *bench) measureCompaction(ctx context.Context) error {
	n, err := b.startPod(ctx, "merge", []string{"PAIRDB_COMPACTION_LOCAL=never", "PAIRDB_MEMTABLE_BYTES=16MiB"})
	if err != nil {
		return err
	}
	c, admin := storagev1.NewStorageServiceClient(n.conn), adminv1.NewAdminServiceClient(n.conn)
	r := rand.New(rand.NewPCG(3, 4))
	value := make([]byte, 1000)
	keys := b.size.compactMB * 1000
	for written := 0; written < keys; written += 500 {
		batch := make([]string, 0, 500)
		for range 500 {
			batch = append(batch, fmt.Sprintf("key-%0*d", keyBytes-4, r.IntN(keys)))
		}
		for i := range value {
			value[i] = byte(r.Uint32())
		}
		if err := b.fill(ctx, c, batch, value); err != nil {
			return err
		}
	}
	if _, err := admin.Flush(ctx, &adminv1.FlushRequest{}); err != nil {
		return err
	}
	read := func(ctx context.Context, _ int) (int, error) {
		_, err := c.Read(ctx, &storagev1.ReadRequest{Tenant: tenant, Key: fmt.Sprintf("key-%0*d", keyBytes-4, rand.IntN(keys))})
		return 1, err
	}
	// What the writing started is merged first, so that there is a quiet time; the next round of
	// writes then gives the measured compaction its work.
	if err := compact(ctx, admin); err != nil {
		return err
	}
	if _, _, _, err := drive(ctx, compactionDepth, b.size.each, read); err != nil {
		return err
	}
	ops, took, quiet, err := drive(ctx, compactionDepth, 2*b.size.each, read)
	if err != nil {
		return err
	}
	b.compaction.quiet, b.compaction.quietRate = quiet, float64(ops)/took.Seconds()

	batch := make([]string, 0, 500)
	for i := range 500 {
		batch = append(batch, fmt.Sprintf("key-%0*d", keyBytes-4, i*keys/500)) // all over, so that every table is merged
	}
	if err := b.fill(ctx, c, batch, value); err != nil {
		return err
	}
	if _, err := admin.Flush(ctx, &adminv1.FlushRequest{}); err != nil {
		return err
	}
	// Reads run until the compaction is over; all that overlap it count.
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 1)
	start := time.Now()
	go func() {
		defer cancel()
		err := compact(ctx, admin)
		b.compaction.took = time.Since(start)
		failed <- err
	}()
	ops, took, busy, err := drive(running, compactionDepth, time.Hour, read)
	if cerr := <-failed; cerr != nil {
		return cerr
	}
	if err != nil && running.Err() == nil {
		return err
	}
	b.compaction.busy, b.compaction.busyRate = busy, float64(ops)/took.Seconds()
	return ctx.Err()
}

// compact merges everything and returns when it is done.
func compact(ctx context.Context, admin adminv1.AdminServiceClient) error {
	stream, err := admin.Compact(ctx, &adminv1.CompactRequest{})
	if err != nil {
		return err
	}
	for {
		if _, err := stream.Recv(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}
