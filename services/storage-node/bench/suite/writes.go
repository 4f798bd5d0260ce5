package suite

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/pairdb/pairdb/services/storage-node/bench/engines"
	"github.com/pairdb/pairdb/services/storage-node/bench/workload"
)

func entryBytes(d workload.Data) uint64 { return uint64(workload.KeyBytes + d.ValueBytes) }

// puts returns clients that take indices from next and put their values until it is done.
func puts(db engines.Engine, d workload.Data, clients int, next func() (i, version uint64, ok bool)) (ops []operation, closeAll func() error) {
	writers := make([]engines.Writer, clients)
	for c := range clients {
		w := db.NewWriter()
		writers[c] = w
		var key, value []byte
		ops = append(ops, func() error {
			i, version, ok := next()
			if !ok {
				return errDone
			}
			key, value = d.Key(key, i), d.Value(value, i, version)
			if err := w.Set(key, value); err != nil {
				return err
			}
			return w.Commit()
		})
	}
	return ops, func() error {
		var errs []error
		for _, w := range writers {
			errs = append(errs, w.Close())
		}
		return errors.Join(errs...)
	}
}

// fill puts a data set into an empty directory, by one writer.
func fill(set string, random bool) func(*session) ([]Measurement, error) {
	return func(s *session) ([]Measurement, error) {
		if err := s.closeOpen(); err != nil {
			return nil, err
		}
		dir, data := s.fresh(), s.size.data(set)
		db, err := engines.Open(s.engine, dir, engines.OpenOptions{})
		if err != nil {
			return nil, err
		}
		order, n := workload.NewPermutation(data.Count, fillSeed), uint64(0)
		ops, closeWriters := puts(db, data, 1, func() (uint64, uint64, bool) {
			i := n
			if i >= data.Count {
				return 0, 0, false
			}
			n++
			if random {
				i = order.At(i)
			}
			return i, 0, true
		})
		d, err := s.measured(s.size.FillLimit, ops)
		if err != nil {
			return nil, err
		}
		bytes := d.ops * entryBytes(data)
		m := s.measurement(s.row, d, bytes)
		all, err := s.settled(m, d, db, dir, bytes, bytes)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(closeWriters(), db.Close()); err != nil {
			return nil, err
		}
		return []Measurement{m, all}, s.keep(set, dir, random && d.ops == data.Count)
	}
}

// durable puts values that are durable before the next, into an empty directory.
func durable(writers int) func(*session) ([]Measurement, error) {
	return func(s *session) ([]Measurement, error) {
		if err := s.closeOpen(); err != nil {
			return nil, err
		}
		dir, data := s.fresh(), s.size.data(large)
		db, err := engines.Open(s.engine, dir, engines.OpenOptions{Sync: true, Writers: writers})
		if err != nil {
			return nil, err
		}
		order := workload.NewPermutation(data.Count, fillSeed)
		var n atomic.Uint64
		ops, closeWriters := puts(db, data, writers, func() (uint64, uint64, bool) {
			i := n.Add(1) - 1
			return order.At(i % data.Count), i / data.Count, true
		})
		if err := s.warm(ops); err != nil {
			return nil, err
		}
		d, err := s.measured(s.size.Row, ops)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(closeWriters(), checkPut(db, data, order, n.Load()), db.Close()); err != nil {
			return nil, err
		}
		return []Measurement{s.measurement(s.row, d, d.ops*entryBytes(data))}, s.keep(large, dir, false)
	}
}

// checkPut reads some of the first n values of an order.
func checkPut(db engines.Engine, data workload.Data, order workload.Permutation, n uint64) error {
	var key, value, scratch []byte
	n = min(n, data.Count)
	for i := uint64(0); i < n; i += n/100 + 1 {
		k := order.At(i)
		got, found, err := db.Get(data.Key(key, k), value)
		if err == nil && !found {
			err = fmt.Errorf("wrong read: key %d is not there", k)
		}
		if err == nil {
			scratch, err = data.Check(got, k, scratch)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// overwrite puts as many values as there are keys, under any of them, by four writers.
func overwrite(s *session) ([]Measurement, error) {
	set, err := s.use(large)
	if err != nil {
		return nil, err
	}
	if _, err := set.db.Settle(); err != nil {
		return nil, err
	}
	version := set.version.Add(1)
	var n atomic.Uint64
	ops, closeWriters := puts(set.db, set.Data, 4, func() (uint64, uint64, bool) {
		i := n.Add(1) - 1
		r := workload.NewRandom(i ^ version<<40)
		return r.Below(set.Count), version, i < set.Count
	})
	d, err := s.measured(s.size.FillLimit, ops)
	if err != nil {
		return nil, err
	}
	bytes := d.ops * entryBytes(set.Data)
	m := s.measurement(s.row, d, bytes)
	all, err := s.settled(m, d, set.db, set.dir, bytes, (set.Count+set.inserted.Load())*entryBytes(set.Data))
	if err != nil {
		return nil, err
	}
	if err := closeWriters(); err != nil {
		return nil, err
	}
	return []Measurement{m, all}, checkPut(set.db, set.Data, workload.NewPermutation(set.Count, version), set.Count)
}

// fillForKill opens dir and puts values until the log has about bytes, without a sync. It leaves the
// engine open, to be killed.
func fillForKill(name, dir string, data workload.Data, bytes uint64) (uint64, error) {
	db, err := engines.Open(name, dir, engines.OpenOptions{})
	if err != nil {
		return 0, err
	}
	return fillBytes(db, data, bytes)
}

// fillBytes puts the first values of the random order, bytes of them, and returns how many.
func fillBytes(db engines.Engine, data workload.Data, bytes uint64) (uint64, error) {
	n, count := uint64(0), min(bytes/entryBytes(data), data.Count)
	order := workload.NewPermutation(data.Count, fillSeed)
	ops, closeWriters := puts(db, data, 1, func() (uint64, uint64, bool) {
		n++
		return order.At(min(n, data.Count) - 1), 0, n <= count
	})
	d, err := drive(time.Hour, ops)
	return d.ops, errors.Join(err, closeWriters())
}

// recovery opens what a killed process left, and reads from it.
func recovery(s *session) ([]Measurement, error) {
	if err := s.closeOpen(); err != nil {
		return nil, err
	}
	data := s.size.data(large)
	order := workload.NewPermutation(data.Count, fillSeed)
	var db engines.Engine
	var key, value []byte
	found := false
	d, err := s.measured(time.Nanosecond, []operation{func() (err error) {
		if db, err = engines.Open(s.engine, s.killed, engines.OpenOptions{}); err != nil {
			return err
		}
		value, found, err = db.Get(data.Key(key, order.At(0)), value)
		return err
	}})
	if err != nil {
		return nil, err
	}
	if !found {
		err = errors.New("wrong read: the first key is not there after kill -9")
	}
	m := s.measurement(s.row, d, 0)
	put := min(s.size.RecoveryBytes/entryBytes(data), data.Count)
	kept, kerr := keptOf(db, data, order, put)
	if kept < put {
		m.Note = fmt.Sprintf("%d acknowledged puts lost", put-kept)
		if engines.WritesBeforeReturn(s.engine) {
			kerr = errors.Join(kerr, fmt.Errorf("wrong read: %d of %d acknowledged puts are lost after kill -9", put-kept, put))
		}
	}
	return []Measurement{m}, errors.Join(err, kerr, checkPut(db, data, order, kept), db.Close())
}

// keptOf returns how many of the first n keys of an order are there: none after the first that is not.
func keptOf(db engines.Engine, data workload.Data, order workload.Permutation, n uint64) (uint64, error) {
	var key, value []byte
	for n > 0 {
		var found bool
		var err error
		key = data.Key(key, order.At(n-1))
		if value, found, err = db.Get(key, value); err != nil || found {
			return n, err
		}
		n--
	}
	return 0, nil
}
