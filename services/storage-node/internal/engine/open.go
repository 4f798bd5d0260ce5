package engine

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/cache"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
	"github.com/pairdb/pairdb/services/storage-node/internal/picker"
)

// Open opens the data directory dir, which it makes if it is not there, and recovers what the last
// process left: its time depends on the live commit log, not on the data. Only one process can have
// a directory open (vfs.ErrLocked).
func Open(dir string, o Options) (*Engine, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	e := newEngine(dir, o.withDefaults())
	if err := e.open(); err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	return e, nil
}

func newEngine(dir string, o Options) *Engine {
	e := &Engine{dir: dir, opts: o, fs: o.FS, stop: make(chan struct{}), wake: newWakeups()}
	e.mu.changed.L = &e.mu
	e.mu.quarantining = map[uint64]bool{}
	e.mu.kept, e.cleaning = map[uint64]picker.Kept{}, make(chan struct{}, 1)
	e.tails.pins, e.tails.open = map[string]*tailPin{}, map[*Tail]struct{}{}
	e.tails.ingests, e.tails.kept, e.tails.obsolete = map[ikey.Seq][]uint64{}, map[uint64]int{}, map[uint64]bool{}
	e.blocks, e.rows = cache.NewBlocks(o.BlockCacheBytes), cache.NewRows(o.RowCacheBytes)
	e.tables = newTableCache(o.FS, e.tableDir(), o.MaxOpenTables, e.blocks, e.quarantine)
	e.tables.mapped, e.tables.noHashIndex = !o.NoMappedTables, o.NoHashIndex
	if o.NoRowAdmission {
		e.rows.AdmitAll()
	}
	if !o.NoSpareMemtable {
		e.arenas.max = 1 // for the rotation to come
	}
	e.recycle = e.recycleMemtable
	return e
}

// open brings the parts up in the order in which they need each other; what a failure leaves is
// closed in reverse.
func (e *Engine) open() (err error) {
	began := e.opts.Clock.Now()
	if err := makeDataDir(e.fs, e.dir); err != nil {
		return err
	}
	if e.lock, err = e.fs.Lock(path.Join(e.dir, lockName)); err != nil {
		return fmt.Errorf("%s: %w", lockName, err)
	}
	if e.opts.Locked != nil {
		e.opts.Locked()
	}
	undo := []func() error{e.lock.Close}
	defer func() {
		for i := len(undo) - 1; err != nil && i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
	}()
	if err := e.openManifest(); err != nil {
		return err
	}
	undo = append(undo, e.manifest.Close)
	if err := e.openLog(); err != nil {
		return err
	}
	undo = append(undo, e.log.Close)
	if err := e.recover(); err != nil {
		return err
	}
	undo = append(undo, e.closeRecovered)
	if e.board, err = jobs.NewBoard(e.boardOptions()); err != nil {
		return err
	}
	e.restorePins()
	e.trimLog(e.manifest.LogFloor())
	e.start()
	e.stats.recoveryNanos.Store(int64(e.opts.Clock.Now().Sub(began)))
	e.emit(Event{Kind: EventOpened, Seq: e.applied.Load(), Duration: e.opts.Clock.Now().Sub(began)})
	return nil
}

// openManifest checks the format of the directory and opens the manifest, or makes a new store. The
// FORMAT file is what says that a store is there, so it is written last.
func (e *Engine) openManifest() error {
	version, err := readFormat(e.fs, e.dir)
	if err != nil {
		return err
	}
	dir := path.Join(e.dir, manifestDir)
	o := manifest.Options{Obsolete: e.noteObsolete}
	if err := makeDirs(e.fs, e.dir); err != nil {
		return err
	}
	set, _, err := manifest.Open(e.fs, dir, o)
	if errors.Is(err, manifest.ErrCorrupt) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if version == 0 && errors.Is(err, manifest.ErrNoManifest) {
		if err := e.refuseForeign(); err != nil {
			return err
		}
		set, err = manifest.Create(e.fs, dir, o)
	}
	if err != nil {
		return err
	}
	e.manifest = set
	if version == 0 {
		if err := writeFormat(e.fs, e.dir); err != nil {
			return errors.Join(err, set.Close())
		}
	}
	return nil
}

// refuseForeign refuses to make a store where tables are, but no manifest: its files would count as
// garbage.
func (e *Engine) refuseForeign() error {
	names, err := e.fs.List(e.tableDir())
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, ok := tableNumber(name); ok {
			return fmt.Errorf("%w: there are tables but neither %s nor a manifest: restore the directory from a snapshot", ErrCorrupt, formatName)
		}
	}
	return nil
}

// ratchetNumbers makes new table numbers larger than those of all files, and returns the numbers of
// the files, ascending. Files with other names are not ours.
func (e *Engine) ratchetNumbers() ([]uint64, error) {
	names, err := e.fs.List(e.tableDir())
	if err != nil {
		return nil, err
	}
	var nums []uint64
	for _, name := range names {
		if num, ok := tableNumber(name); ok {
			e.manifest.RatchetFile(num + 1)
			nums = append(nums, num)
		}
	}
	slices.Sort(nums) // names of more than six digits are not in the order of their numbers
	return nums, nil
}

// missingTables returns those tables of the manifest that are not among the files found at open. It
// is asked before the replay, whose flushes add tables that were not there to be found.
func (e *Engine) missingTables(found []uint64) (missing manifest.Edit) {
	v := e.manifest.Current()
	defer v.Unref()
	for _, tables := range v.Levels {
		for _, t := range tables {
			if _, there := slices.BinarySearch(found, t.Num); !there && !t.Quarantined {
				missing.Quarantined = append(missing.Quarantined, t.Num)
			}
		}
	}
	return missing
}

// sweepTables deletes those of the files found at open that no version names, and no tail may need:
// what a crash left of flushes, compactions and ingests.
func (e *Engine) sweepTables(found []uint64) {
	v := e.manifest.Current()
	defer v.Unref()
	live := map[uint64]bool{}
	for _, tables := range v.Levels {
		for _, t := range tables {
			live[t.Num] = true
		}
	}
	for _, num := range found {
		if !live[num] && !e.tails.keeps(num) {
			e.removeTable(num)
		}
	}
}

// quarantineMissing marks tables whose files are not there.
func (e *Engine) quarantineMissing(edit manifest.Edit) error {
	if len(edit.Quarantined) == 0 {
		return nil
	}
	err := e.applyEdit(edit, nil, nil)
	for _, num := range edit.Quarantined {
		e.stats.quarantined.Add(1)
		e.emit(Event{Kind: EventQuarantined, Table: num, Reason: compact.TableName(num),
			Err: fmt.Errorf("%w: the manifest names %s, but there is no such file", ErrCorrupt, compact.TableName(num))})
	}
	return err
}

// metaSeq reads a sequence that is kept as a fact of the node.
func (e *Engine) metaSeq(key string) (ikey.Seq, error) {
	text := e.manifest.NodeMeta()[key]
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 56)
	if err != nil {
		return 0, fmt.Errorf("%w: manifest: %s: %w", ErrCorrupt, key, err)
	}
	return ikey.Seq(n), nil
}

// boardOptions are the owner's, with what only the engine knows.
func (e *Engine) boardOptions() jobs.Options {
	o := e.opts.Jobs
	o.FS, o.Dir, o.Rand, o.Installer = e.fs, e.dir, e.opts.Rand, installer{e}
	o.Now, o.After = e.opts.Clock.Now, e.opts.Clock.After
	o.MaxInputBytes = e.opts.MaxJobInputBytes
	o.ReserveBytes = uint64(e.opts.ReserveBytes)
	o.Events = e.jobEvent
	if o.Scrub == nil {
		o.Scrub = e.nextScrub
	}
	return o
}

func (e *Engine) jobEvent(ev jobs.Event) {
	e.emit(Event{Kind: EventJob, Job: &ev, Reason: ev.Reason, Tables: ev.Outputs, Bytes: ev.BytesOut, Duration: ev.Duration})
}

// start begins the background work.
func (e *Engine) start() {
	e.lookAtDisk()
	e.updatePressure()
	for _, loop := range []func(){e.flushLoop, e.syncLoop, e.scheduleLoop, e.spaceLoop, e.deleteLoop, e.memtableLoop} {
		e.background.Go(loop)
	}
	notify(e.wake.schedule)
	notify(e.wake.obsolete)
}
