package engines

import (
	"fmt"
	"os"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable/block"
)

type pebbleDB struct {
	db    *pebble.DB
	cache *pebble.Cache
	write *pebble.WriteOptions
}

func openPebble(dir string, o OpenOptions) (Engine, error) {
	cache := pebble.NewCache(cacheBytes)
	options := &pebble.Options{
		Cache:                       cache,
		MaxOpenFiles:                openFiles,
		MemTableSize:                memtableBytes,
		MemTableStopWritesThreshold: memtables,
		L0CompactionThreshold:       l0Compaction,
		L0StopWritesThreshold:       l0Stop,
		CompactionConcurrencyRange:  func() (int, int) { return compactions, compactions },
		FormatMajorVersion:          pebble.FormatNewest,
		Logger:                      quietLogger{},
	}
	for i := range options.Levels {
		options.Levels[i].FilterPolicy = bloom.FilterPolicy(filterBits)
	}
	options.ApplyCompressionSettings(func() pebble.DBCompressionSettings {
		return pebble.UniformDBCompressionSettings(block.SnappyCompression)
	})
	db, err := pebble.Open(dir, options)
	if err != nil {
		cache.Unref()
		return nil, err
	}
	p := &pebbleDB{db: db, cache: cache, write: pebble.NoSync}
	if o.Sync {
		p.write = pebble.Sync
	}
	return p, nil
}

func (p *pebbleDB) Get(key, dst []byte) ([]byte, bool, error) {
	value, closer, err := p.db.Get(key)
	if err == pebble.ErrNotFound {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	dst = append(dst[:0], value...)
	return dst, true, closer.Close()
}

func (p *pebbleDB) Scan(start []byte, n int) (s Scanned, err error) {
	it, err := p.db.NewIter(&pebble.IterOptions{LowerBound: start})
	if err != nil {
		return s, err
	}
	for ok := it.First(); ok && s.Count < n; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			_ = it.Close()
			return s, err
		}
		s.add(it.Key(), value)
	}
	return s, it.Close()
}

func (p *pebbleDB) NewWriter() Writer { return &pebbleWriter{b: p.db.NewBatch(), write: p.write} }

type pebbleWriter struct {
	b     *pebble.Batch
	write *pebble.WriteOptions
}

func (w *pebbleWriter) Set(key, value []byte) error { return w.b.Set(key, value, nil) }
func (w *pebbleWriter) Delete(key []byte) error     { return w.b.Delete(key, nil) }

func (w *pebbleWriter) Commit() error {
	err := w.b.Commit(w.write)
	w.b.Reset()
	return err
}

func (w *pebbleWriter) Close() error { return w.b.Close() }

func (p *pebbleDB) Settle() (time.Time, error) {
	if err := p.db.Flush(); err != nil {
		return time.Time{}, err
	}
	type state struct{ flushes, compactions int64 }
	return waitQuiet(func() (state, bool) {
		m := p.db.Metrics()
		return state{m.Flush.Count, m.Compact.Count}, m.Flush.NumInProgress > 0 || m.Compact.NumInProgress > 0
	})
}

func (p *pebbleDB) Close() error {
	err := p.db.Close()
	p.cache.Unref()
	return err
}

// quietLogger keeps an engine's notes off the progress display; what it calls fatal still ends the
// process.
type quietLogger struct{}

func (quietLogger) Infof(string, ...any) {}

func (quietLogger) Errorf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func (quietLogger) Warningf(string, ...any) {}
func (quietLogger) Debugf(string, ...any)   {}

func (quietLogger) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
