package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable/block"
)

// pebbleCacheBytes is what the node has by default: 128 MiB for blocks and as much for rows.
const pebbleCacheBytes = 256 << 20

// openPebble opens Pebble with the settings of `make bench-engine` and the memtables of the node beside
// it.
func openPebble(dir string) (*pebble.DB, error) {
	cache := pebble.NewCache(pebbleCacheBytes)
	defer cache.Unref() // the database has its own reference
	o := &pebble.Options{
		Cache:                       cache,
		MaxOpenFiles:                1000,
		MemTableSize:                mergeMemtableBytes,
		MemTableStopWritesThreshold: 3,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       24,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 1 },
		FormatMajorVersion:          pebble.FormatNewest,
		Logger:                      quietLogger{},
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	o.ApplyCompressionSettings(func() pebble.DBCompressionSettings {
		return pebble.UniformDBCompressionSettings(block.SnappyCompression)
	})
	return pebble.Open(dir, o)
}

// quietLogger keeps Pebble's notes off the progress display; what it calls fatal still ends the process.
type quietLogger struct{}

func (quietLogger) Infof(string, ...any)              {}
func (quietLogger) Errorf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
func (quietLogger) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// mergePebble measures Pebble while it compacts everything itself.
func (b *bench) mergePebble(ctx context.Context) (err error) {
	db, err := openPebble(filepath.Join(b.dir, "pebble"))
	if err != nil {
		return fmt.Errorf("pebble: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	values := make([][]byte, mergeDepth) // of each worker
	return b.measureMerge(ctx, mergeStore{
		name: "Pebble v2, in process",
		put: func(_ context.Context, keys []string, value []byte) error {
			batch := db.NewBatch()
			defer batch.Close()
			for _, k := range keys {
				if err := batch.Set([]byte(k), value, nil); err != nil {
					return err
				}
			}
			return batch.Commit(pebble.Sync)
		},
		flush:   func(context.Context) error { return db.Flush() },
		compact: func(ctx context.Context) error { return db.Compact(ctx, []byte("key-"), []byte("key."), false) },
		read: func(ctx context.Context, w int, key string) error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			value, closer, err := db.Get([]byte(key))
			if errors.Is(err, pebble.ErrNotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			values[w] = append(values[w][:0], value...)
			return closer.Close()
		},
	})
}
