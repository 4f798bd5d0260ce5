package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// CheckDir verifies a data directory that no engine has open, and changes nothing in it: the format,
// the manifest and the invariants of the version that it describes, every table as Engine.Check
// does, files in sst/ that nothing refers to, and the commit log from the manifest's floor on. A
// checkpoint is a data directory, too. The error says that the check did not get to its end
// (vfs.ErrLocked: an engine has the directory open); damage is a finding.
func CheckDir(ctx context.Context, dir string, fsys vfs.FS, o CheckOptions) (findings []Finding, err error) {
	unlock, err := lockForCheck(fsys, dir)
	if err != nil {
		return nil, fmt.Errorf("check %s: %w", dir, err)
	}
	defer func() {
		if cerr := unlock(); err == nil {
			err = cerr
		}
	}()
	c := &checker{fs: fsys, dir: dir, o: o}
	if !c.format() {
		c.skipped("without a known format the rest can't be read")
		return c.findings, nil
	}
	set, err := c.openManifest()
	if err != nil || set == nil {
		return c.findings, err
	}
	defer func() { _ = set.Close() }() // a copy in memory
	v := set.Current()
	defer v.Unref()
	c.version(v)
	if err := c.orphans(v, set.NodeMeta()); err != nil {
		return c.findings, err
	}
	if err := c.tables(ctx, v); err != nil {
		return c.findings, err
	}
	if err := c.log(ctx, set.LogFloor()); err != nil {
		return c.findings, err
	}
	return c.findings, c.leftovers()
}

// lockForCheck keeps engines away during the check, if there is a LOCK to hold. A directory without
// one, or one that is read-only, is checked all the same.
func lockForCheck(fsys vfs.FS, dir string) (unlock func() error, err error) {
	none := func() error { return nil }
	name := path.Join(dir, lockName)
	if _, err := fsys.Stat(name); errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	lock, err := fsys.Lock(name)
	if errors.Is(err, fs.ErrPermission) {
		return none, nil
	}
	if err != nil {
		return nil, err
	}
	return lock.Close, nil
}

// format reports whether it makes sense to look further.
func (c *checker) format() bool {
	version, err := readFormat(c.fs, c.dir)
	if err == nil && version != 0 {
		err = c.visit(formatName)
	}
	if err != nil {
		c.found(formatName, err, "%v", err)
		return false
	}
	if version == 0 {
		c.found(formatName, nil, "there is no %s: not a data directory, or one whose creation did not end", formatName)
		return false
	}
	return true
}

// openManifest opens a copy of the manifest in memory: opening the real one writes a new file. It
// returns nil when there is nothing that can be opened, and says so as a finding.
func (c *checker) openManifest() (*manifest.Set, error) {
	mem := vfs.NewMem()
	from := path.Join(c.dir, manifestDir)
	if err := mem.MkdirAll(manifestDir, dirPerm); err != nil {
		return nil, err
	}
	names, err := c.fs.List(from)
	if errors.Is(err, fs.ErrNotExist) {
		c.found(manifestDir, err, "there is no manifest")
		c.skipped("without a manifest nobody knows which tables and log segments count")
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if err := c.visit(path.Join(manifestDir, name)); err != nil {
			return nil, err
		}
		if err := copyToMem(mem, c.fs, path.Join(from, name), path.Join(manifestDir, name)); err != nil {
			return nil, err
		}
	}
	set, rec, err := manifest.Open(mem, manifestDir, manifest.Options{})
	if err != nil {
		file, offset := manifestDir, int64(NoOffset)
		var bad *manifest.CorruptionError
		if errors.As(err, &bad) {
			file, offset = path.Join(manifestDir, bad.File), bad.Offset
		}
		c.foundAt(file, offset, err, "%v", err)
		c.skipped("without a manifest nobody knows which tables and log segments count")
		return nil, nil
	}
	if rec.TornTail > 0 {
		c.harmless(path.Join(manifestDir, rec.File), rec.End, "torn tail of %d bytes: an edit that was never acknowledged", rec.TornTail)
	}
	return set, nil
}

// maxManifestBytes bounds what a check copies of one manifest file.
const maxManifestBytes = 1 << 30

func copyToMem(mem *vfs.MemFS, fsys vfs.FS, from, to string) error {
	in, err := fsys.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // read only
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() || info.Size() > maxManifestBytes {
		return nil // not a manifest
	}
	out, err := mem.Create(to, filePerm)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }() // in memory
	b := make([]byte, 64<<10)
	for at := int64(0); at < info.Size(); {
		n, err := in.ReadAt(b[:min(int64(len(b)), info.Size()-at)], at)
		if n == 0 && err != nil {
			return fmt.Errorf("read %s at %d: %w", from, at, err)
		}
		if _, err := out.Write(b[:n]); err != nil {
			return err
		}
		at += int64(n)
	}
	return out.Sync()
}

// orphans reports files in sst/ that neither the version nor an ingest marker refers to: Open
// deletes what has our names and leaves the rest.
func (c *checker) orphans(v *manifest.Version, meta map[string]string) error {
	names, err := c.fs.List(path.Join(c.dir, compact.TableDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // then every table is missing, which is said of each
	}
	if err != nil {
		return err
	}
	known := make(map[string]bool, v.Count())
	for _, tables := range v.Levels {
		for _, t := range tables {
			known[compact.TableName(t.Num)] = true
		}
	}
	for _, num := range keptForTail(meta) {
		name := compact.TableName(num)
		known[name] = true
		if !slices.Contains(names, name) {
			c.found(path.Join(compact.TableDir, name), nil, "an ingest marker in the commit log names this table, but there is no such file")
		}
	}
	for _, name := range names {
		if known[name] {
			continue
		}
		problem := "nothing refers to this table: the next open deletes it"
		if _, ours := tableNumber(name); !ours {
			problem = "not one of our names: nobody reads or deletes it"
		}
		c.harmless(path.Join(compact.TableDir, name), NoOffset, "%s", problem)
	}
	return nil
}

// log reads the commit log from the floor on, as recovery does, and looks into every frame.
func (c *checker) log(ctx context.Context, floor uint64) error {
	if err := c.visitLog(floor); err != nil {
		return err
	}
	dir := path.Join(c.dir, logDir)
	rec, err := commitlog.Replay(c.fs, dir, floor, func(f commitlog.Frame) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := DecodeLogFrame(f.Type, f.Payload, nil); err != nil {
			return &frameError{place: f.Start, err: err}
		}
		return nil
	}, nil)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var bad *commitlog.CorruptionError
	var frame *frameError
	switch {
	case errors.As(err, &bad):
		c.foundAt(path.Join(logDir, path.Base(bad.File)), bad.Offset, err, "%v", err)
	case errors.As(err, &frame):
		c.foundAt(path.Join(logDir, commitlog.FileName(frame.place.Segment)), frame.place.Offset, err, "%v", err)
	case err != nil:
		c.found(logDir, err, "%v", err)
	case rec.TornBytes > 0:
		c.harmless(path.Join(logDir, commitlog.FileName(rec.End.Segment)), rec.End.Offset,
			"torn tail of %d bytes at offset %d: writes that were never acknowledged", rec.TornBytes, rec.End.Offset)
	}
	return nil
}

// frameError is a frame whole by its checksum that makes no sense.
type frameError struct {
	place commitlog.Position
	err   error
}

func (e *frameError) Error() string { return fmt.Sprintf("frame at %v: %v", e.place, e.err) }
func (e *frameError) Unwrap() error { return e.err }

// visitLog reports the segments that log reads.
func (c *checker) visitLog(floor uint64) error {
	names, err := c.fs.List(path.Join(c.dir, logDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, name := range names {
		if num, ok := commitlog.ParseFileName(name); ok && num >= floor {
			if err := c.visit(path.Join(logDir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// skipped says that the check ends here.
func (c *checker) skipped(why string) { c.harmless("", NoOffset, "nothing else was checked: %s", why) }

// leftovers reports what attempts of jobs left in staging/.
func (c *checker) leftovers() error {
	names, err := c.fs.List(path.Join(c.dir, compact.StagingDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, name := range names {
		c.harmless(path.Join(compact.StagingDir, name), NoOffset, "left by an attempt of a job: the next open removes it")
	}
	return err
}
