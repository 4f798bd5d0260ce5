package suite

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pairdb/pairdb/services/storage-node/bench/engines"
	"github.com/pairdb/pairdb/services/storage-node/bench/workload"
)

// checkEvery is how often a value is compared to the last byte; length and index are always. A full
// check costs some hundred nanoseconds.
const checkEvery = 1024

// chooser returns a function for one client that chooses the next index.
type chooser func(s *session, d *dataset, client int) func() uint64

func uniform(_ *session, d *dataset, client int) func() uint64 {
	r := workload.NewRandom(opSeed + uint64(client))
	return func() uint64 { return r.Below(d.Count) }
}

func zipfian(s *session, d *dataset, client int) func() uint64 {
	return drawn(s.zipf(d.Count, true), client)
}

// ranked chooses zipfian ranks.
func ranked(s *session, d *dataset, client int) func() uint64 {
	return drawn(s.zipf(d.Count, false), client)
}

// drawn goes round in draws, from another place for each client.
func drawn(draws []uint32, client int) func() uint64 {
	at := client * 1_000_003 % len(draws)
	return func() uint64 {
		if at++; at == len(draws) {
			at = 0
		}
		return uint64(draws[at])
	}
}

// misses marks a chooser of keys that are not there.
var misses chooser

// getter reads values and checks them, for one client.
type getter struct {
	d                   *dataset
	key, value, scratch []byte
	n                   uint64
}

func newGetter(d *dataset) *getter {
	return &getter{d: d, value: make([]byte, 0, d.ValueBytes+engines.Room)}
}

func (g *getter) get(i uint64) error {
	g.key = g.d.Key(g.key, i)
	value, found, err := g.d.db.Get(g.key, g.value)
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("wrong read: key %d is not there", i)
	}
	if cap(value) > cap(g.value) {
		g.value = value
	}
	if g.n++; g.n%checkEvery == 1 {
		g.scratch, err = g.d.Check(value, i, g.scratch)
		return err
	}
	return g.d.CheckHeader(value, i)
}

func (g *getter) miss(i uint64) error {
	g.key = g.d.Missing(g.key, i)
	_, found, err := g.d.db.Get(g.key, g.value)
	if err == nil && found {
		err = fmt.Errorf("wrong read: a key beside %d was never put and is there", i)
	}
	return err
}

// reads gets single keys with so many readers.
func reads(set string, choose chooser, readers int) func(*session) ([]Measurement, error) {
	return func(s *session) ([]Measurement, error) {
		d, err := s.use(set)
		if err != nil {
			return nil, err
		}
		clients := make([]operation, readers)
		for c := range clients {
			g := newGetter(d)
			if choose == nil {
				next := uniform(s, d, c)
				clients[c] = func() error { return g.miss(next()) }
				continue
			}
			next := choose(s, d, c)
			clients[c] = func() error { return g.get(next()) }
		}
		return s.readMeasured(clients)
	}
}

func (s *session) readMeasured(clients []operation) ([]Measurement, error) {
	if err := s.warm(clients); err != nil {
		return nil, err
	}
	r, err := s.measured(s.size.Row, clients)
	if err != nil {
		return nil, err
	}
	return []Measurement{s.measurement(s.row, r, 0)}, nil
}

// scanLength is what a scan reads.
const scanLength = 100

// scans reads runs of keys.
func scans(set string) func(*session) ([]Measurement, error) {
	return func(s *session) ([]Measurement, error) {
		d, err := s.use(set)
		if err != nil {
			return nil, err
		}
		next := uniform(s, d, 0)
		var key []byte
		return s.readMeasured([]operation{func() error {
			key, err = d.scan(key, next()%(d.Count-scanLength), scanLength)
			return err
		}})
	}
}

// scan reads n keys from index i on, and checks what can be checked: their number, their order, and
// that the values are those of the keys as long as there are no inserted ones between.
func (d *dataset) scan(key []byte, i uint64, n int) ([]byte, error) {
	key = d.Key(key, i)
	got, err := d.db.Scan(key, n)
	switch {
	case err != nil:
		return key, err
	case got.Count != n || got.First != engines.KeyDigest(key) || got.Last < got.First:
		return key, fmt.Errorf("wrong read: a scan of %d from key %d found %d, %x to %x", n, i, got.Count, got.First, got.Last)
	case d.reserved.Load() == 0 && got.Digest != d.ScanDigest(i, n):
		return key, fmt.Errorf("wrong read: a scan of %d from key %d has digest %x, %x expected", n, i, got.Digest, d.ScanDigest(i, n))
	}
	return key, nil
}

// The pace of read-while-writing: 20 puts every millisecond.
const (
	pacedPuts  = 20
	pacedEvery = time.Millisecond
)

// readWhileWriting gets any key with two readers while one writer puts at a steady pace.
func readWhileWriting(s *session) ([]Measurement, error) {
	d, err := s.use(large)
	if err != nil {
		return nil, err
	}
	if _, err := d.db.Settle(); err != nil {
		return nil, err
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var werr error
	var written uint64
	version, r := d.version.Add(1), workload.NewRandom(opSeed+100)
	ops, closeWriters := puts(d.db, d.Data, 1, func() (uint64, uint64, bool) { return r.Below(d.Count), version, true })
	start := time.Now()
	wg.Go(func() {
		tick := time.NewTicker(pacedEvery)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			// What a slow put or a late tick missed is caught up with, within reason.
			due := uint64(time.Since(start)/pacedEvery) * pacedPuts
			for k := 0; written < due && k < 50*pacedPuts; k++ {
				if werr = ops[0](); werr != nil {
					return
				}
				written++
			}
		}
	})
	clients := make([]operation, 2)
	for c := range clients {
		g, next := newGetter(d), uniform(s, d, c)
		clients[c] = func() error { return g.get(next()) }
	}
	m, err := s.readMeasured(clients)
	took := time.Since(start)
	close(stop)
	wg.Wait()
	if err = errors.Join(err, werr, closeWriters()); err != nil {
		return nil, err
	}
	m[0].Note = fmt.Sprintf("%.0f puts/s", float64(written)/took.Seconds())
	return m, nil
}
