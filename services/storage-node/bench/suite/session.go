package suite

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pairdb/pairdb/services/storage-node/bench/engines"
	"github.com/pairdb/pairdb/services/storage-node/bench/measure"
	"github.com/pairdb/pairdb/services/storage-node/bench/workload"
)

// session is one engine's process: what it has loaded and what is open.
type session struct {
	engine string
	dir    string // of this engine alone
	size   Size
	row    string
	killed string // directory that a killed process left
	// profile is where the profile of the row's measured part goes; nil: none is wanted.
	profile *os.File

	loaded  map[string]*dataset
	open    *dataset // its engine is open
	zipfs   map[zipfKey][]uint32
	scratch int // directories made
}

// dataset is a loaded directory.
type dataset struct {
	workload.Data
	dir string
	db  engines.Engine
	// reserved indices are of insertions that began; all of the first inserted ones have ended, and
	// only those are asked for.
	reserved, inserted atomic.Uint64
	mu                 sync.Mutex
	early              map[uint64]bool // ended before an older one did
	// version is that of the newest value.
	version atomic.Uint64
}

// acknowledge says that the i-th insertion has ended.
func (d *dataset) acknowledge(i uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.early[i] = true
	for n := d.inserted.Load(); d.early[n]; n++ {
		delete(d.early, n)
		d.inserted.Store(n + 1)
	}
}

// youngest returns the index of the key that is the rank-th youngest.
func (d *dataset) youngest(rank uint64) uint64 {
	n := d.inserted.Load()
	if rank < n {
		return d.Count + n - 1 - rank
	}
	return workload.NewPermutation(d.Count, fillSeed).At(d.Count - 1 - (rank-n)%d.Count)
}

func (s *session) inGo() bool { return s.engine != "rocksdb" }

// fresh returns an empty directory.
func (s *session) fresh() string {
	s.scratch++
	return filepath.Join(s.dir, fmt.Sprintf("scratch-%d", s.scratch))
}

// use returns the data set, loaded, settled, open, and read once from end to end. Any other one is
// closed: only one at a time has memory.
func (s *session) use(set string) (*dataset, error) {
	d := s.loaded[set]
	if d != nil && d == s.open {
		return d, nil
	}
	if err := s.closeOpen(); err != nil {
		return nil, err
	}
	if d == nil {
		d = &dataset{Data: s.size.data(set), dir: filepath.Join(s.dir, set), early: map[uint64]bool{}}
		if err := s.load(d); err != nil {
			return nil, fmt.Errorf("load the %s data set: %w", set, err)
		}
		s.loaded[set] = d
	}
	db, err := engines.Open(s.engine, d.dir, engines.OpenOptions{Writers: 4})
	if err != nil {
		return nil, err
	}
	d.db, s.open = db, d
	return d, d.readAll()
}

func (s *session) closeOpen() error {
	if s.open == nil {
		return nil
	}
	db := s.open.db
	s.open.db, s.open = nil, nil
	return db.Close()
}

// loadBatch is how many keys are loaded in one commit.
const loadBatch = 500

// load puts what is not there yet, in random order, and settles.
func (s *session) load(d *dataset) error {
	db, err := engines.Open(s.engine, d.dir, engines.OpenOptions{})
	if err != nil {
		return err
	}
	w := db.NewWriter()
	order := workload.NewPermutation(d.Count, fillSeed)
	var key, value []byte
	for i := uint64(0); i < d.Count && err == nil; i++ {
		k := order.At(i)
		key, value = d.Key(key, k), d.Value(value, k, 0)
		if err = w.Set(key, value); err == nil && (i%loadBatch == loadBatch-1 || i == d.Count-1) {
			err = w.Commit()
		}
	}
	if err == nil {
		_, err = db.Settle()
	}
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if cerr := db.Close(); err == nil {
		err = cerr
	}
	return err
}

// readAll scans everything once, which fills the page cache and proves that all keys are there.
func (d *dataset) readAll() error {
	var key []byte
	const step = 1000
	var total, want uint64
	for i := uint64(0); i < d.Count; i += step {
		n := int(min(step, d.Count-i))
		key = d.Key(key, i)
		got, err := d.db.Scan(key, n)
		if err != nil {
			return err
		}
		if got.Count != n {
			return fmt.Errorf("wrong read: a scan of %d from key %d found %d", n, i, got.Count)
		}
		total += got.Digest
		want += d.ScanDigest(i, n)
	}
	if d.inserted.Load() == 0 && total != want {
		return fmt.Errorf("wrong read: the digest of all keys and values is %x, %x expected", total, want)
	}
	return nil
}

// keep makes a directory that a row has filled completely a data set, if there is none yet; otherwise
// it is removed.
func (s *session) keep(set, dir string, complete bool) error {
	if s.loaded[set] != nil || !complete {
		return os.RemoveAll(dir)
	}
	d := &dataset{Data: s.size.data(set), dir: filepath.Join(s.dir, set), early: map[uint64]bool{}}
	if err := os.Rename(dir, d.dir); err != nil {
		return err
	}
	s.loaded[set] = d
	return nil
}

// settledBytes returns what dir takes on the disk once that has not changed for a while: engines delete
// what they no longer need bit by bit, after the work that settling waits for.
func settledBytes(dir string) (uint64, error) {
	const every, looks, limit = 50 * time.Millisecond, 8, 10 * time.Second
	last, same := uint64(0), 0
	for start := time.Now(); same < looks && time.Since(start) < limit; time.Sleep(every) {
		n, err := measure.DiskBytes(dir)
		if err != nil {
			return 0, err
		}
		if same++; n != last {
			last, same = n, 0
		}
	}
	return last, nil
}

// settled adds to a measurement of writes what its settling took.
func (s *session) settled(m Measurement, d driven, db engines.Engine, dir string, userBytes, thereBytes uint64) (Measurement, error) {
	before := measure.Used()
	quiet, err := db.Settle()
	if err != nil {
		return m, err
	}
	used := measure.Used().Since(before)
	all := Measurement{Name: m.Name + "+settle", Ops: d.ops, Seconds: max(d.elapsed, quiet.Sub(d.start)).Seconds()}
	all.cost(measure.Resources{
		CPU: d.used.CPU + used.CPU, Mallocs: d.used.Mallocs + used.Mallocs, WrittenBytes: d.used.WrittenBytes + used.WrittenBytes,
	}, s.inGo(), userBytes)
	space, err := settledBytes(dir)
	all.Space = float64(space) / float64(thereBytes)
	return all, err
}

// zipf returns ranks of the zipfian distribution below n, scrambled or as they are. They are drawn
// ahead: a draw costs as much as a good engine's read.
func (s *session) zipf(n uint64, scrambled bool) []uint32 {
	k := zipfKey{n, scrambled}
	if draws := s.zipfs[k]; draws != nil {
		return draws
	}
	z, order, r := workload.NewZipfian(n), workload.NewPermutation(n, zipfSeed), workload.NewRandom(zipfSeed)
	draws := make([]uint32, 4*n)
	for i := range draws {
		if rank := z.Rank(r); scrambled {
			draws[i] = uint32(order.At(rank))
		} else {
			draws[i] = uint32(rank)
		}
	}
	s.zipfs[k] = draws
	return draws
}

type zipfKey struct {
	n         uint64
	scrambled bool
}

// Seeds: the same for all engines and runs.
const (
	fillSeed = 1
	zipfSeed = 2
	opSeed   = 3
)

// measured drives the clients of the row's measured part.
func (s *session) measured(limit time.Duration, clients []operation) (driven, error) {
	stop, err := s.startProfile()
	if err != nil {
		return driven{}, err
	}
	defer stop()
	return drive(limit, clients)
}

// warm runs the clients as long as the size says, unmeasured.
func (s *session) warm(clients []operation) error {
	_, err := drive(s.size.Warm, clients)
	return err
}

// run runs a row.
func (s *session) run(name string) ([]Measurement, error) {
	row, ok := rowNamed(name)
	if !ok {
		return nil, fmt.Errorf("no row %q", name)
	}
	s.row = name
	start := time.Now()
	m, err := row.run(s)
	if err != nil {
		return nil, fmt.Errorf("%s, %s, after %v: %w", name, s.engine, time.Since(start).Round(time.Millisecond), err)
	}
	return m, nil
}
