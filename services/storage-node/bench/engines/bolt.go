package engines

import (
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
)

// boltDB is one bucket of a bbolt file. bbolt has neither memtable, cache, filter nor compression to
// set: it maps its whole file, so its cache is the page cache, of any size.
type boltDB struct {
	db    *bbolt.DB
	batch bool
}

var boltBucket = []byte("b")

func openBolt(dir string, o OpenOptions) (Engine, error) {
	if err := os.MkdirAll(dir, 0o770); err != nil {
		return nil, err
	}
	db, err := bbolt.Open(filepath.Join(dir, "bolt.db"), 0o660, &bbolt.Options{
		NoSync:          !o.Sync,
		NoFreelistSync:  true,                  // the list is made anew at open: half of what a small commit writes
		FreelistType:    bbolt.FreelistMapType, // the array's cost grows with the file
		InitialMmapSize: 4 << 30,               // growing the map waits for readers
	})
	if err != nil {
		return nil, err
	}
	if err := db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(boltBucket)
		return err
	}); err != nil {
		_ = db.Close()
		return nil, err
	}
	// Concurrent writers that wait for a sync share a transaction; without a sync collecting them
	// costs more than it saves.
	db.MaxBatchSize, db.MaxBatchDelay = o.Writers, boltBatchDelayMicros*time.Microsecond
	return &boltDB{db: db, batch: o.Sync && o.Writers > 1}, nil
}

func (b *boltDB) Get(key, dst []byte) (value []byte, found bool, err error) {
	err = b.db.View(func(tx *bbolt.Tx) error {
		if v := tx.Bucket(boltBucket).Get(key); v != nil {
			value, found = append(dst[:0], v...), true
		}
		return nil
	})
	return value, found, err
}

func (b *boltDB) Scan(start []byte, n int) (s Scanned, err error) {
	err = b.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(boltBucket).Cursor()
		for k, v := c.Seek(start); k != nil && s.Count < n; k, v = c.Next() {
			s.add(k, v)
		}
		return nil
	})
	return s, err
}

func (b *boltDB) NewWriter() Writer { return &boltWriter{b: b} }

// boltWriter keeps the changes until Commit, which may run them again in another transaction.
type boltWriter struct {
	b       *boltDB
	changes []boltChange
	used    int
}

type boltChange struct {
	key, value []byte
	deleted    bool
}

func (w *boltWriter) add(key, value []byte, deleted bool) {
	if w.used == len(w.changes) {
		w.changes = append(w.changes, boltChange{})
	}
	c := &w.changes[w.used]
	c.key, c.value, c.deleted = append(c.key[:0], key...), append(c.value[:0], value...), deleted
	w.used++
}

func (w *boltWriter) Set(key, value []byte) error {
	w.add(key, value, false)
	return nil
}

func (w *boltWriter) Delete(key []byte) error {
	w.add(key, nil, true)
	return nil
}

func (w *boltWriter) Commit() error {
	apply := func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(boltBucket)
		for _, c := range w.changes[:w.used] {
			var err error
			if c.deleted {
				err = bucket.Delete(c.key)
			} else {
				err = bucket.Put(c.key, c.value)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	update := w.b.db.Update
	if w.b.batch {
		update = w.b.db.Batch
	}
	err := update(apply)
	w.used = 0
	return err
}

func (w *boltWriter) Close() error { return nil }

// Settle has nothing to wait for: a commit leaves no work behind.
func (b *boltDB) Settle() (time.Time, error) { return time.Now(), nil }

func (b *boltDB) Close() error { return b.db.Close() }
