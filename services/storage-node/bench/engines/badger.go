package engines

import (
	"errors"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

type badgerDB struct {
	db *badger.DB
}

func openBadger(dir string, o OpenOptions) (Engine, error) {
	db, err := badger.Open(badger.DefaultOptions(dir).
		WithSyncWrites(o.Sync).
		WithMemTableSize(memtableBytes).
		WithNumMemtables(memtables).
		WithNumLevelZeroTables(l0Compaction).
		WithNumLevelZeroTablesStall(l0Stop).
		WithNumCompactors(badgerCompactions).
		WithBlockCacheSize(cacheBytes). // the index cache is 0: all indices and filters stay in memory
		WithBloomFalsePositive(badgerFalsePositives).
		WithCompression(options.Snappy).
		WithDetectConflicts(false). // no other engine looks for conflicts of transactions
		WithMetricsEnabled(false).
		WithLogger(quietLogger{}))
	if err != nil {
		return nil, err
	}
	return &badgerDB{db}, nil
}

func (b *badgerDB) Get(key, dst []byte) (value []byte, found bool, err error) {
	txn := b.db.NewTransaction(false)
	defer txn.Discard()
	item, err := txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	value, err = item.ValueCopy(dst[:0])
	return value, err == nil, err
}

func (b *badgerDB) Scan(start []byte, n int) (s Scanned, err error) {
	txn := b.db.NewTransaction(false)
	defer txn.Discard()
	o := badger.DefaultIteratorOptions
	o.PrefetchValues = false // values are in the tables: they are below the threshold of the value log
	it := txn.NewIterator(o)
	defer it.Close()
	for it.Seek(start); it.Valid() && s.Count < n; it.Next() {
		item := it.Item()
		if err := item.Value(func(value []byte) error {
			s.add(item.Key(), value)
			return nil
		}); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (b *badgerDB) NewWriter() Writer { return &badgerWriter{db: b.db} }

// badgerWriter copies keys and values, which a transaction keeps until it is committed.
type badgerWriter struct {
	db  *badger.DB
	txn *badger.Txn
}

func (w *badgerWriter) begin() {
	if w.txn == nil {
		w.txn = w.db.NewTransaction(true)
	}
}

func (w *badgerWriter) Set(key, value []byte) error {
	w.begin()
	buffer := make([]byte, len(key)+len(value))
	copy(buffer, key)
	copy(buffer[len(key):], value)
	return w.txn.Set(buffer[:len(key):len(key)], buffer[len(key):])
}

func (w *badgerWriter) Delete(key []byte) error {
	w.begin()
	return w.txn.Delete(append([]byte(nil), key...))
}

func (w *badgerWriter) Commit() error {
	if w.txn == nil {
		return nil
	}
	err := w.txn.Commit()
	w.txn = nil
	return err
}

func (w *badgerWriter) Close() error {
	if w.txn != nil {
		w.txn.Discard()
	}
	return nil
}

// Settle waits until no level wants a compaction. Badger has no call to flush its memtable: up to
// memtableBytes stay in it.
func (b *badgerDB) Settle() (time.Time, error) {
	type state struct {
		tables int
		bytes  int64
	}
	return waitQuiet(func() (s state, busy bool) {
		for _, l := range b.db.Levels() {
			s.tables += l.NumTables << (8 * l.Level)
			s.bytes += l.Size * int64(l.Level+1)
			busy = busy || l.Adjusted >= 1 && l.Level > 0 || l.Level == 0 && l.NumTables >= l0Compaction
		}
		return s, busy
	})
}

func (b *badgerDB) Close() error { return b.db.Close() }
