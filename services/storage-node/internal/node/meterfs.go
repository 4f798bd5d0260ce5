package node

import (
	"io/fs"
	"path"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/vfs"
)

// meterFS is a file system that measures what the engine does with its files: appends and syncs of
// the commit log, reads and writes of tables. So the engine knows no Prometheus, and what is
// measured is the disk, without the engine's own work.
type meterFS struct {
	vfs.FS
	log, table *fileMeter
}

// fileMeter measures one kind of file.
type fileMeter struct {
	reads, writes, syncs operation
}

// operation counts calls and measures their time; the zero value does neither.
type operation struct {
	total    prometheus.Counter
	duration prometheus.Observer
}

func (o operation) done(start time.Time) {
	if o.total != nil {
		o.total.Inc()
		o.duration.Observe(time.Since(start).Seconds())
	}
}

// logDir is the directory of commit log segments, below the data directory.
const logDir = "log"

// From a copy into the page cache to a disk that hangs.
var ioBuckets = prometheus.ExponentialBucketsRange(1e-6, 10, 22)

// newMeterFS wraps a file system and returns its metrics.
func newMeterFS(inner vfs.FS, labels prometheus.Labels) (*meterFS, []prometheus.Collector) {
	var all []prometheus.Collector
	measure := func(total, duration, help string) operation {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "pairdb_" + total, Help: help + ".", ConstLabels: labels})
		h := histogram(duration, help+": time of the system call.", labels, ioBuckets)
		all = append(all, c, h)
		return operation{c, h}
	}
	m := &meterFS{
		FS: inner,
		log: &fileMeter{
			writes: measure("commitlog_appends_total", "commitlog_append_duration_seconds", "Writes to the commit log, each of a group of batches"),
			syncs:  measure("commitlog_syncs_total", "commitlog_sync_duration_seconds", "Syncs of the commit log"),
		},
		table: &fileMeter{
			reads:  measure("sstable_reads_total", "sstable_read_duration_seconds", "Reads of table files that no cache answered"),
			writes: measure("sstable_writes_total", "sstable_write_duration_seconds", "Writes to table files by the node itself"),
		},
	}
	return m, all
}

// wrap measures a file by the directory that it is in.
func (m *meterFS) wrap(name string, f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	switch path.Base(path.Dir(name)) {
	case logDir:
		return &meterFile{f, m.log}, nil
	case compact.TableDir:
		return &meterFile{f, m.table}, nil
	}
	return f, nil
}

func (m *meterFS) Create(name string, perm fs.FileMode) (vfs.File, error) {
	f, err := m.FS.Create(name, perm)
	return m.wrap(name, f, err)
}

func (m *meterFS) Open(name string) (vfs.File, error) {
	f, err := m.FS.Open(name)
	return m.wrap(name, f, err)
}

func (m *meterFS) OpenReadWrite(name string) (vfs.File, error) {
	f, err := m.FS.OpenReadWrite(name)
	return m.wrap(name, f, err)
}

// meterFile measures the calls that move bytes.
type meterFile struct {
	vfs.File
	meter *fileMeter
}

func (f *meterFile) Read(p []byte) (int, error) {
	start := time.Now()
	n, err := f.File.Read(p)
	f.meter.reads.done(start)
	return n, err
}

func (f *meterFile) ReadAt(p []byte, off int64) (int, error) {
	start := time.Now()
	n, err := f.File.ReadAt(p, off)
	f.meter.reads.done(start)
	return n, err
}

func (f *meterFile) Write(p []byte) (int, error) {
	start := time.Now()
	n, err := f.File.Write(p)
	f.meter.writes.done(start)
	return n, err
}

func (f *meterFile) WriteAt(p []byte, off int64) (int, error) {
	start := time.Now()
	n, err := f.File.WriteAt(p, off)
	f.meter.writes.done(start)
	return n, err
}

func (f *meterFile) Sync() error {
	start := time.Now()
	err := f.File.Sync()
	f.meter.syncs.done(start)
	return err
}

func (f *meterFile) SyncData() error {
	start := time.Now()
	err := f.File.SyncData()
	f.meter.syncs.done(start)
	return err
}
