package jobs

import (
	"io/fs"
	"path"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/vfs"
)

// syncs is a file system that knows which files and directories were synced after their last change.
type syncs struct {
	vfs.FS
	mu     sync.Mutex
	synced map[string]bool
}

func (s *syncs) wrap(name string, f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &syncedFile{f, s, name}, nil
}

func (s *syncs) note(name string, synced bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced[name] = synced
}

func (s *syncs) was(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.synced[name]
}

func (s *syncs) Create(name string, perm fs.FileMode) (vfs.File, error) {
	s.note(path.Dir(name), false)
	f, err := s.FS.Create(name, perm)
	return s.wrap(name, f, err)
}

func (s *syncs) OpenForeign(name string, seal bool) (vfs.File, error) {
	f, err := s.FS.OpenForeign(name, seal)
	return s.wrap(name, f, err)
}

func (s *syncs) OpenDir(name string) (vfs.File, error) {
	f, err := s.FS.OpenDir(name)
	return s.wrap(name, f, err)
}

func (s *syncs) MkdirAll(name string, perm fs.FileMode) error {
	s.note(path.Dir(name), false)
	return s.FS.MkdirAll(name, perm)
}

type syncedFile struct {
	vfs.File
	s    *syncs
	name string
}

func (f *syncedFile) Write(b []byte) (int, error) {
	f.s.note(f.name, false)
	return f.File.Write(b)
}

func (f *syncedFile) Sync() error {
	err := f.File.Sync()
	f.s.note(f.name, err == nil)
	return err
}

func TestNodeItselfSyncsWhatItInstalls(t *testing.T) {
	// A worker says that it has synced. After a power cut the manifest would name tables of zeros.
	for name, under := range map[string]func(vfs.FS) vfs.FS{
		"sealed": func(f vfs.FS) vfs.FS { return f },
		"copied": func(f vfs.FS) vfs.FS { return noLeases{f} },
	} {
		t.Run(name, func(t *testing.T) {
			s := &syncs{synced: map[string]bool{}}
			inBubble(t, func(o *Options) { s.FS = under(o.FS); o.FS = s }, func(f *fixture) {
				p := f.e.somePlan("k")
				f.offer(p)
				l := f.lease(someWorker("w"))
				dir := path.Dir(f.attempt(l).path(1))
				require.True(f, s.was(dir), "the attempt's names")
				require.True(f, s.was(path.Dir(dir)), "the attempt's directory")

				r := f.attempt(l).honest(2)
				checked := &checkedInstaller{Installer: f.e, synced: s.was}
				f.b.o.Installer = checked
				require.Equal(f, Installed, f.complete(l.Key, r).Outcome)
				require.Len(f, checked.files, 2)
				require.Empty(f, checked.unsynced)
			})
		})
	}
}

// checkedInstaller looks at the files before they are installed.
type checkedInstaller struct {
	Installer
	synced          func(name string) bool
	files, unsynced []string
}

func (c *checkedInstaller) Install(p *Plan, outs []compact.Output, files []string, by Origin) error {
	c.files = files
	for _, name := range files {
		if !c.synced(name) {
			c.unsynced = append(c.unsynced, name)
		}
	}
	return c.Installer.Install(p, outs, files, by)
}
