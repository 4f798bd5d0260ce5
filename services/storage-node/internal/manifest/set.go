package manifest

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs"
)

// Options configure a Set. Zero values mean the defaults.
type Options struct {
	// MaxFileBytes is when a new manifest file is started: the old one is larger than this and
	// than four times the state. 1 MiB by default: some thousand edits, replayed in milliseconds.
	MaxFileBytes int64
	// Obsolete gets the tables whose last reference went; their files may be deleted. It is called
	// by whoever gave that reference back, which may be an Apply: it must not call the set.
	Obsolete func([]Obsolete)
}

// Obsolete is a table file that nothing needs any more.
type Obsolete struct {
	Num, Size uint64
}

var (
	// ErrPoisoned says that a write to the manifest failed in a way that leaves open what is on
	// disk. The set takes no more edits; the process must end and open the store again.
	ErrPoisoned = errors.New("manifest is poisoned")
	// ErrClosed says that the set was closed.
	ErrClosed = errors.New("manifest is closed")
	// ErrCorrupt says that a manifest is damaged. The error names file and offset.
	ErrCorrupt = errors.New("manifest is damaged")
	// ErrNoManifest says that there is no manifest in the directory.
	ErrNoManifest = errors.New("no manifest")
)

// Set is the manifest of an open store.
type Set struct {
	fs   vfs.FS
	dir  string
	opts Options

	current  atomic.Pointer[Version]
	nextFile atomic.Uint64
	versions atomic.Int64 // that are not gone

	// mu is held through an Apply, with its fsync. Readers don't take it.
	mu       sync.Mutex
	state    *state
	marker   marker
	f        vfs.File
	size     int64 // of f, synced
	base     int64 // size of the whole state when f was started
	rollAt   int64
	buf      []byte
	poisoned error
	closed   bool

	// files is what is live: in a version or pinned. After mu.
	filesMu sync.Mutex
	files   map[uint64]*file
}

// Create makes an empty manifest in dir, which it makes as well. There must be none yet, but for
// what a crash during an earlier Create left.
func Create(fsys vfs.FS, dir string, o Options) (*Set, error) {
	if err := fsys.MkdirAll(dir, dirPerm); err != nil {
		return nil, fmt.Errorf("create the manifest directory: %w", err)
	}
	if err := vfs.SyncDir(fsys, path.Dir(dir)); err != nil {
		return nil, err
	}
	l, err := list(fsys, dir)
	if err != nil {
		return nil, err
	}
	if m, ok := l.current(); ok {
		return nil, fmt.Errorf("create manifest: %s: %w", m.name(), fs.ErrExist)
	}
	if l.highest() > 1 {
		return nil, fmt.Errorf("%w: %s without a marker: the marker was removed", ErrCorrupt, fileName(l.highest()))
	}
	if len(l.files) == 1 {
		if left, err := load(fsys, dir, 1); err == nil && len(left.state.tables) > 0 {
			return nil, fmt.Errorf("%w: %s with %d tables without a marker: the marker was removed", ErrCorrupt, fileName(1), len(left.state.tables))
		}
	}
	s := newSet(fsys, dir, o, newState())
	if err := s.roll(marker{count: 1, file: 1}); err != nil {
		return nil, fmt.Errorf("create manifest: %w", s.abandon(err))
	}
	return s, nil
}

// Recovery says what Open found.
type Recovery struct {
	File     string
	Edits    int
	End      int64 // of the last edit in File
	TornTail int64 // bytes behind it, which are left out
}

// Open reads the manifest in dir and continues it in a new file. If there is no manifest, the error
// is ErrNoManifest.
func Open(fsys vfs.FS, dir string, o Options) (*Set, Recovery, error) {
	l, err := list(fsys, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, Recovery{}, fmt.Errorf("%w in %s", ErrNoManifest, dir)
	}
	if err != nil {
		return nil, Recovery{}, err
	}
	m, ok := l.current()
	if !ok {
		return nil, Recovery{}, fmt.Errorf("%w in %s", ErrNoManifest, dir)
	}
	found, err := load(fsys, dir, m.file)
	if err != nil {
		return nil, Recovery{}, err
	}
	rec := Recovery{File: fileName(m.file), Edits: found.edits, End: found.size, TornTail: found.torn}
	s := newSet(fsys, dir, o, found.state)
	if err := CheckInvariants(s.current.Load()); err != nil {
		return nil, rec, fmt.Errorf("%w: %s: %w", ErrCorrupt, rec.File, err)
	}
	s.marker = m
	err = s.roll(marker{count: m.count + 1, file: max(l.highest(), m.file) + 1})
	if errors.Is(err, vfs.ErrNoSpace) && s.poisoned == nil {
		err = s.resume(found)
	}
	if err != nil {
		return nil, rec, fmt.Errorf("open manifest: %w", s.abandon(err))
	}
	return s, rec, nil
}

// abandon closes what a failed Create or Open had opened.
func (s *Set) abandon(err error) error {
	if s.f == nil {
		return err
	}
	return errors.Join(err, s.f.Close())
}

func newSet(fsys vfs.FS, dir string, o Options, st *state) *Set {
	if o.MaxFileBytes <= 0 {
		o.MaxFileBytes = 1 << 20
	}
	s := &Set{fs: fsys, dir: dir, opts: o, state: st, files: make(map[uint64]*file)}
	for _, a := range st.tables {
		s.adopt(a.Table)
	}
	s.nextFile.Store(st.nextFile)
	s.publish(NewVersion(st.levels()))
	return s
}

// adopt gives a table its counter.
func (s *Set) adopt(t *Table) {
	t.file = &file{set: s, num: t.Num, size: t.Size}
	s.filesMu.Lock()
	s.files[t.Num] = t.file
	s.filesMu.Unlock()
}

// publish makes v current.
func (s *Set) publish(v *Version) {
	v.set = s
	for _, tables := range v.Levels {
		for _, t := range tables {
			t.file.refs.Add(1)
		}
	}
	v.refs.Store(1)
	s.versions.Add(1)
	if old := s.current.Swap(v); old != nil {
		old.Unref()
	}
}

func (s *Set) obsolete(files []*file) {
	out := make([]Obsolete, len(files))
	s.filesMu.Lock()
	for i, f := range files {
		delete(s.files, f.num)
		out[i] = Obsolete{Num: f.num, Size: f.size}
	}
	s.filesMu.Unlock()
	if s.opts.Obsolete != nil {
		s.opts.Obsolete(out)
	}
}

// Current returns the current version with a reference for the caller.
func (s *Set) Current() *Version {
	for {
		if v := s.current.Load(); v.tryRef() {
			return v
		}
	}
}

// Apply makes an edit durable and publishes the version after it. The set keeps the edit's tables
// but not the edit. An error that is ErrInvalidEdit or vfs.ErrNoSpace, and not ErrPoisoned, changed
// nothing, now and after a crash; after any other one it is not known whether the edit is in the
// manifest, so the files that it names must stay.
func (s *Set) Apply(e Edit) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	c, err := s.state.resolve(&e)
	if err != nil {
		return err
	}
	v, err := c.next(s.current.Load())
	if err != nil {
		return err
	}
	if s.size > s.rollAt {
		err := s.roll(marker{count: s.marker.count + 1, file: s.marker.file + 1})
		if s.poisoned != nil {
			return err
		}
		if err != nil {
			s.rollAt = s.size + s.opts.MaxFileBytes // no space for a new file: go on in the old one
		}
	}
	e.NextFile = max(e.NextFile, s.nextFile.Load())
	e.LastSeq = max(e.LastSeq, s.state.lastSeq)
	if err := s.append(frameEdit, e.encode(nil, notSnapshot)); err != nil {
		return err
	}
	for _, a := range c.puts {
		if a.Table.file == nil {
			s.adopt(a.Table)
		}
	}
	s.state.apply(c)
	s.RatchetFile(s.state.nextFile)
	s.publish(v)
	return nil
}

func (s *Set) usable() error {
	if s.poisoned != nil {
		return s.poisoned
	}
	if s.closed {
		return ErrClosed
	}
	return nil
}

// poison makes err the answer to every further Apply.
func (s *Set) poison(err error) error {
	s.poisoned = fmt.Errorf("%w: %w", ErrPoisoned, err)
	return s.poisoned
}

// Poisoned returns the error that stopped the set, or nil.
func (s *Set) Poisoned() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.poisoned
}

// Close ends the set: with a mark that the last edit is whole. The current version stays as it is,
// so nothing becomes obsolete by closing.
func (s *Set) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	var err error
	if s.poisoned == nil {
		if err = s.append(frameSeal, nil); errors.Is(err, vfs.ErrNoSpace) && s.poisoned == nil {
			err = nil // it is a convenience only
		}
	}
	return errors.Join(err, s.f.Close())
}

// NewFile returns a table number that was never used. It becomes durable with the next edit; numbers
// of tables that no edit names are given out again after a restart, unless RatchetFile is told of
// their files.
func (s *Set) NewFile() uint64 { return s.nextFile.Add(1) - 1 }

// RatchetFile makes NewFile return at least next from now on.
func (s *Set) RatchetFile(next uint64) {
	for {
		n := s.nextFile.Load()
		if n >= next || s.nextFile.CompareAndSwap(n, next) {
			return
		}
	}
}

// LogFloor returns the first commit-log segment that is still needed.
func (s *Set) LogFloor() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.logFloor
}

// LastSeq returns the largest sequence that the manifest knows of.
func (s *Set) LastSeq() ikey.Seq {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.lastSeq
}

// NodeMeta returns a copy of the facts of the node.
func (s *Set) NodeMeta() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.state.nodeMeta)
}

// LiveFiles returns the numbers of all tables in any version that is in use, or pinned, ascending.
func (s *Set) LiveFiles() []uint64 {
	s.filesMu.Lock()
	defer s.filesMu.Unlock()
	return slices.Sorted(maps.Keys(s.files))
}

// Versions returns how many versions are in use: 1 when only the current one is.
func (s *Set) Versions() int { return int(s.versions.Load()) }
