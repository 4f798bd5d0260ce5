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

const (
	// mergeDepth is how many reads are in flight beside the compaction: the two processors are not
	// taken by reads alone.
	mergeDepth      = 4
	mergeValueBytes = 1000
	// mergeMemtableBytes is less than the data of any size.
	mergeMemtableBytes = 16 << 20
)

// mergeStore is a store whose reads are measured while it merges everything.
type mergeStore struct {
	name string
	bar  float64 // how large the ratio may be; 0: it is only compared with

	put     func(ctx context.Context, keys []string, value []byte) error
	flush   func(ctx context.Context) error
	compact func(ctx context.Context) error // returns when everything is merged
	read    func(ctx context.Context, worker int, key string) error
}

// mergeResult is the latency of reads with and without a compaction beside them.
type mergeResult struct {
	name                string
	bar                 float64
	quiet, busy         *histogram
	quietRate, busyRate float64
	took                time.Duration
}

// ratio returns the 99th percentile with a compaction over that without.
func (m mergeResult) ratio() float64 {
	return float64(m.busy.quantile(0.99)) / float64(max(m.quiet.quantile(0.99), 1))
}

// mergeNode measures a node whose compactor merges.
func (b *bench) mergeNode(ctx context.Context) error {
	n, err := b.startPod(ctx, "merge", []string{"PAIRDB_COMPACTION_LOCAL=never", fmt.Sprintf("PAIRDB_MEMTABLE_BYTES=%d", mergeMemtableBytes)})
	if err != nil {
		return err
	}
	c, admin := storagev1.NewStorageServiceClient(n.conn), adminv1.NewAdminServiceClient(n.conn)
	return b.measureMerge(ctx, mergeStore{
		name: "the node", bar: mergeBar,
		put: func(ctx context.Context, keys []string, value []byte) error { return b.fill(ctx, c, keys, value) },
		flush: func(ctx context.Context) error {
			_, err := admin.Flush(ctx, &adminv1.FlushRequest{})
			return err
		},
		compact: func(ctx context.Context) error { return compact(ctx, admin) },
		read: func(ctx context.Context, _ int, key string) error {
			_, err := c.Read(ctx, &storagev1.ReadRequest{Tenant: tenant, Key: key})
			return err
		},
	})
}

// measureMerge fills a store with more than its memtables hold, and reads from it before and while
// everything is merged.
func (b *bench) measureMerge(ctx context.Context, s mergeStore) error {
	m := mergeResult{name: s.name, bar: s.bar}
	r := rand.New(rand.NewPCG(3, 4))
	value := make([]byte, mergeValueBytes)
	keys := b.size.mergeMB * 1e6 / mergeValueBytes
	name := func(i int) string { return fmt.Sprintf("key-%0*d", keyBytes-4, i) }
	batch := make([]string, 500)
	for written := 0; written < keys; written += len(batch) {
		for i := range batch {
			batch[i] = name(r.IntN(keys))
		}
		for i := range value {
			value[i] = byte(r.Uint32())
		}
		if err := s.put(ctx, batch, value); err != nil {
			return err
		}
	}
	read := func(ctx context.Context, w int) (int, error) { return 1, s.read(ctx, w, name(rand.IntN(keys))) }
	// What the writing started is merged first, so that there is a quiet time; the next round of
	// writes then gives the measured compaction its work.
	if err := s.flush(ctx); err != nil {
		return err
	}
	if err := s.compact(ctx); err != nil {
		return err
	}
	if _, _, _, err := drive(ctx, mergeDepth, b.size.each, read); err != nil {
		return err
	}
	ops, took, quiet, err := drive(ctx, mergeDepth, 2*b.size.each, read)
	if err != nil {
		return err
	}
	m.quiet, m.quietRate = quiet, float64(ops)/took.Seconds()

	for i := range batch {
		batch[i] = name(i * keys / len(batch)) // all over, so that every table is merged
	}
	if err := s.put(ctx, batch, value); err != nil {
		return err
	}
	if err := s.flush(ctx); err != nil {
		return err
	}
	// Reads run until the compaction is over; all that overlap it count.
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 1)
	start := time.Now()
	go func() {
		defer cancel()
		err := s.compact(ctx)
		m.took = time.Since(start)
		failed <- err
	}()
	ops, took, busy, err := drive(running, mergeDepth, time.Hour, read)
	if cerr := <-failed; cerr != nil {
		return cerr
	}
	if err != nil && running.Err() == nil {
		return err
	}
	m.busy, m.busyRate = busy, float64(ops)/took.Seconds()
	b.merges = append(b.merges, m)
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
