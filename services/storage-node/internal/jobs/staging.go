package jobs

import (
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/vfs"
)

// Permissions of an attempt: the worker's group may write the files that exist, and nobody but the
// node may make, rename or remove any. So after a wipe a late worker can't bring the place back.
const (
	stagingPerm = 0o770
	attemptPerm = 0o750
	outputPerm  = 0o660
	// copyPerm and copiedPerm are for the node's own copies, where there are no leases.
	copyPerm   = 0o700
	copiedPerm = 0o440
)

func (b *Board) stagingDir() string { return path.Join(b.o.Dir, compact.StagingDir) }

func (b *Board) attemptDir(k Key) string {
	return path.Join(b.stagingDir(), compact.AttemptName(k.ID, k.Epoch))
}

// copyDir is where the node copies the outputs of an attempt to when it can't seal them.
func (b *Board) copyDir(k Key) string { return b.attemptDir(k) + ".copy" }

func (b *Board) attemptDirs(k Key) []string { return []string{b.attemptDir(k), b.copyDir(k)} }

func (b *Board) tablePath(number uint64) string {
	return path.Join(b.o.Dir, compact.TableDir, compact.TableName(number))
}

// prepare makes the directory of an attempt and its empty files, durably, so that a wipe after a
// crash finds either all names or none that matter.
func (b *Board) prepare(k Key, outputs int) error {
	dir := b.attemptDir(k)
	if err := b.o.FS.MkdirAll(dir, attemptPerm); err != nil {
		return err
	}
	for i := 1; i <= outputs; i++ {
		f, err := b.o.FS.Create(path.Join(dir, compact.OutputName(i)), outputPerm)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	if err := b.syncDir(dir); err != nil {
		return err
	}
	return b.syncDir(b.stagingDir())
}

func (b *Board) syncDir(name string) error {
	d, err := b.o.FS.OpenDir(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// wipeAll empties staging/ but keeps the directory itself: in a pod it is a mount point of the
// worker, bound to its inode.
func (b *Board) wipeAll() error {
	dir := b.stagingDir()
	if err := b.o.FS.MkdirAll(dir, stagingPerm); err != nil {
		return err
	}
	names, err := b.o.FS.List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := b.o.FS.RemoveAll(path.Join(dir, name)); err != nil {
			return err
		}
	}
	return b.syncDir(dir)
}

// wipe removes directories of ended attempts. What can't be removed now is tried again by the
// sweeper, and in the end by the wipe at the next start.
func (b *Board) wipe(dirs ...string) {
	for _, dir := range dirs {
		err := b.o.FS.RemoveAll(dir)
		if err == nil {
			continue
		}
		b.mu.Lock()
		b.garbage = append(b.garbage, dir)
		b.events = append(b.events, Event{Kind: EventCleanup, Reason: fmt.Sprintf("remove %s: %v", path.Base(dir), err)})
		b.mu.Unlock()
	}
}

// seal makes the output at index of an attempt one that nobody can change any more, and returns
// its name and the open file. Where that can't be promised, it is a copy.
func (b *Board) seal(k Key, index int) (string, vfs.File, error) {
	name := path.Join(b.attemptDir(k), compact.OutputName(index))
	f, err := b.o.FS.OpenForeign(name, true)
	switch {
	case err == nil:
		return name, f, nil
	case errors.Is(err, vfs.ErrStillOpen):
		return "", nil, reject("STILL_OPEN", "output %d is still open for writing", index)
	case errors.Is(err, vfs.ErrNoLeases):
		return b.copyOutput(k, index)
	case errors.Is(err, fs.ErrNotExist):
		return "", nil, reject("FILES", "output %d is not there", index)
	}
	return "", nil, reject("FILES", "open output %d: %v", index, err)
}

// copyOutput copies an output to where only the node can write.
func (b *Board) copyOutput(k Key, index int) (string, vfs.File, error) {
	from, err := b.o.FS.OpenForeign(path.Join(b.attemptDir(k), compact.OutputName(index)), false)
	if err != nil {
		return "", nil, reject("FILES", "open output %d: %v", index, err)
	}
	defer func() { _ = from.Close() }() // read only
	dir := b.copyDir(k)
	if err := b.o.FS.MkdirAll(dir, copyPerm); err != nil {
		return "", nil, fmt.Errorf("copy output %d: %w", index, err)
	}
	name := path.Join(dir, compact.OutputName(index))
	to, err := b.o.FS.Create(name, copiedPerm)
	if err != nil {
		return "", nil, fmt.Errorf("copy output %d: %w", index, err)
	}
	if err := copyAll(to, from, 4*b.o.MaxInputBytes); err != nil {
		return "", nil, errors.Join(fmt.Errorf("copy output %d: %w", index, err), to.Close())
	}
	return name, to, nil
}

// copyAll copies at most limit bytes. It reads by offset: nothing relies on where from stands.
func copyAll(to, from vfs.File, limit int64) error {
	info, err := from.Stat()
	if err != nil {
		return err
	}
	if info.Size() > limit {
		return reject("SIZE", "%d bytes, more than any output can have", info.Size())
	}
	buf := make([]byte, 256<<10)
	for off := int64(0); off < info.Size(); {
		n, err := from.ReadAt(buf[:min(int64(len(buf)), info.Size()-off)], off)
		if n == 0 {
			return fmt.Errorf("read at %d: %w", off, err)
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}
