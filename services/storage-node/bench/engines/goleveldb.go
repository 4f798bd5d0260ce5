package engines

import (
	"errors"
	"time"

	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/filter"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/util"
)

type goLevelDB struct {
	db    *leveldb.DB
	write *opt.WriteOptions
}

func openGoLevelDB(dir string, o OpenOptions) (Engine, error) {
	db, err := leveldb.OpenFile(dir, &opt.Options{
		WriteBuffer:            memtableBytes, // two of them at most: it has no setting for more
		BlockCacheCapacity:     cacheBytes,
		OpenFilesCacheCapacity: openFiles,
		Filter:                 filter.NewBloomFilter(filterBits),
		Compression:            opt.SnappyCompression,
		CompactionL0Trigger:    l0Compaction,
		WriteL0SlowdownTrigger: l0Slow,
		WriteL0PauseTrigger:    l0Stop,
		// The default of 2 MiB makes hundreds of tables of a memtable of 64 MiB.
		CompactionTableSize: memtableBytes / 8,
	})
	if err != nil {
		return nil, err
	}
	return &goLevelDB{db: db, write: &opt.WriteOptions{Sync: o.Sync}}, nil
}

// Get copies once more than it must: the engine returns a copy, which its interface can't avoid.
func (g *goLevelDB) Get(key, dst []byte) ([]byte, bool, error) {
	value, err := g.db.Get(key, nil)
	if errors.Is(err, leveldb.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return append(dst[:0], value...), true, nil
}

func (g *goLevelDB) Scan(start []byte, n int) (s Scanned, err error) {
	it := g.db.NewIterator(&util.Range{Start: start}, nil)
	defer it.Release()
	for ok := it.First(); ok && s.Count < n; ok = it.Next() {
		s.add(it.Key(), it.Value())
	}
	return s, it.Error()
}

func (g *goLevelDB) NewWriter() Writer { return &goLevelDBWriter{g: g} }

type goLevelDBWriter struct {
	g *goLevelDB
	b leveldb.Batch
}

func (w *goLevelDBWriter) Set(key, value []byte) error {
	w.b.Put(key, value)
	return nil
}

func (w *goLevelDBWriter) Delete(key []byte) error {
	w.b.Delete(key)
	return nil
}

func (w *goLevelDBWriter) Commit() error {
	err := w.g.db.Write(&w.b, w.g.write)
	w.b.Reset()
	return err
}

func (w *goLevelDBWriter) Close() error { return nil }

// Settle waits until nothing has been written for a while. It has no call that only flushes: up to
// memtableBytes stay in memory.
func (g *goLevelDB) Settle() (time.Time, error) {
	return waitQuiet(func() (uint64, bool) {
		var s leveldb.DBStats
		if err := g.db.Stats(&s); err != nil {
			return 0, false
		}
		return s.IOWrite, s.WritePaused
	})
}

func (g *goLevelDB) Close() error { return g.db.Close() }
