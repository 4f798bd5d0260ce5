package engines

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
)

// pairDB is the engine of the storage-node, composed as the node does. The executor inside the
// process does the compactions, without a limit of rate: the peers have theirs in the process too.
type pairDB struct {
	e *engine.Engine
}

type wallClock struct{}

func (wallClock) Now() time.Time                         { return time.Now() }
func (wallClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

func openPairDB(dir string, o OpenOptions) (Engine, error) {
	var seed [32]byte
	if _, err := crand.Read(seed[:]); err != nil {
		return nil, err
	}
	mode := engine.SyncNever // a write to the log for each commit, synced at rotation, as the peers
	if o.Sync {
		mode = engine.SyncGroup
	}
	if err := vfs.OS.MkdirAll(dir, 0o770); err != nil {
		return nil, err
	}
	e, err := engine.Open(dir, engine.Options{
		FS: vfs.OS, Clock: wallClock{}, Rand: rand.New(rand.NewChaCha8(seed)),
		Sync:             mode,
		MemtableBytes:    memtableBytes,
		MaxImmutables:    memtables - 1,
		FilterBitsPerKey: filterBits,
		MaxOpenTables:    openFiles,
		RowCacheBytes:    rowCacheBytes,
		BlockCacheBytes:  cacheBytes - rowCacheBytes,
		Jobs:             jobs.Options{Mode: jobs.ModeAlways, LocalRate: -1},
	})
	if err != nil {
		return nil, err
	}
	return pairDB{e}, nil
}

func (p pairDB) Get(key, dst []byte) ([]byte, bool, error) {
	r, found, err := p.e.Get(key, dst)
	if err != nil || !found {
		return nil, false, err
	}
	return recordValue(r), true, nil
}

func (p pairDB) Scan(start []byte, n int) (s Scanned, err error) {
	it, err := p.e.NewIter(engine.IterOptions{Lower: start})
	if err != nil {
		return s, err
	}
	for ok := it.First(); ok && s.Count < n; ok = it.Next() {
		s.add(it.Key(), recordValue(it.Value()))
	}
	return s, it.Close()
}

func (p pairDB) NewWriter() Writer {
	return &pairDBWriter{e: p.e, timestamp: causal.Timestamp(time.Now())}
}

// pairDBWriter stores values as the node does: as records of one sibling with its dot and timestamp,
// some 20 bytes more than the peers store. The engine inspects every record that it writes into a table.
type pairDBWriter struct {
	e         *engine.Engine
	b         engine.Batch
	timestamp uint64

	record []byte // scratch
	meta   []byte // what stands before a value of metaOf bytes
	metaOf int
}

func (w *pairDBWriter) Set(key, value []byte) error {
	if w.meta == nil || w.metaOf != len(value) {
		r, err := causal.NewRecord([]causal.Sibling{{
			Dot: causal.Dot{Node: "node-1", Counter: 1 << 20}, Value: value, Timestamp: w.timestamp,
		}})
		if err != nil {
			return err
		}
		b := r.Encode(nil)
		w.meta, w.metaOf = b[:len(b)-len(value)], len(value) // values stand at the end
	}
	w.record = append(append(w.record[:0], w.meta...), value...)
	w.b.Set(key, w.record)
	return nil
}

// recordValue returns the value of a record of one sibling, in place: what follows the metadata.
func recordValue(record []byte) []byte {
	n, width := binary.Uvarint(record[1:])
	return record[1+width+int(n):]
}

func (w *pairDBWriter) Delete(key []byte) error {
	w.b.Delete(key)
	return nil
}

func (w *pairDBWriter) Commit() error {
	err := w.e.Apply(&w.b, engine.SyncDefault)
	if err != nil {
		err = w.again(err)
	}
	w.b.Reset()
	return err
}

// again repeats a write that is refused while compactions are behind, after the time the engine asks
// for, as the client library does: the peers wait inside their calls.
func (w *pairDBWriter) again(err error) error {
	for stalled := (*engine.StalledError)(nil); errors.As(err, &stalled); {
		time.Sleep(stalled.RetryAfter)
		err = w.e.Apply(&w.b, engine.SyncDefault)
	}
	return err
}

func (w *pairDBWriter) Close() error { return nil }

func (p pairDB) Settle() (time.Time, error) {
	if err := p.e.Flush(context.Background()); err != nil {
		return time.Time{}, err
	}
	type state struct{ flushes, installs, moves, read, written uint64 }
	return waitQuiet(func() (state, bool) {
		m := p.e.Metrics()
		busy := m.Immutables > 0
		for _, j := range m.Board.Jobs {
			busy = busy || !j.Scrub && !j.State.Terminal()
		}
		return state{m.Flushes, m.Installs, m.Moves, m.JobBytesIn, m.JobBytesOut}, busy
	})
}

func (p pairDB) Close() error { return p.e.Close() }
