package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/vfs"
)

// The names in a data directory.
const (
	lockName    = "LOCK"
	formatName  = "FORMAT"
	logDir      = "log"
	manifestDir = "manifest"
	snapshotDir = "snapshots"

	dirPerm  = 0o770
	filePerm = 0o660

	// FormatVersion is the version of the directory that this engine writes, and the newest that it
	// opens. The files in it have versions of their own.
	FormatVersion = 1
)

// makeDataDir makes dir and the parents that are missing, durably: a store whose own name is lost in
// a power cut is lost with all that was synced in it. Until there is a FORMAT, the name may be from
// an attempt that ended before it was durable.
func makeDataDir(fsys vfs.FS, dir string) error {
	if _, err := fsys.Stat(path.Join(dir, formatName)); err == nil {
		return nil
	}
	made := []string{path.Clean(dir)}
	for d := path.Dir(made[0]); d != "." && d != "/"; d = path.Dir(d) {
		if _, err := fsys.Stat(d); err == nil {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		made = append(made, d)
	}
	if err := fsys.MkdirAll(dir, dirPerm); err != nil {
		return err
	}
	for _, d := range made {
		if err := vfs.SyncDir(fsys, path.Dir(d)); err != nil {
			return err
		}
	}
	return nil
}

// makeDirs makes the directories of the engine, durably. The job board makes staging.
func makeDirs(fsys vfs.FS, dir string) error {
	for _, name := range []string{compact.TableDir, logDir, snapshotDir} {
		if err := fsys.MkdirAll(path.Join(dir, name), dirPerm); err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
	}
	return vfs.SyncDir(fsys, dir)
}

// readFormat returns the version of the directory, 0 if it has none yet.
func readFormat(fsys vfs.FS, dir string) (int, error) {
	b, err := readSmall(fsys, path.Join(dir, formatName))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", formatName, err)
	}
	text, ok := strings.CutPrefix(strings.TrimSpace(string(b)), "pairdb ")
	version, err := strconv.Atoi(text)
	if !ok || err != nil || version < 1 {
		return 0, fmt.Errorf("%w: %s holds %.40q, \"pairdb <version>\" expected: is this a PairDB data directory?", ErrCorrupt, formatName, b)
	}
	if version > FormatVersion {
		return 0, fmt.Errorf("%w: version %d, this program knows %d: use the newer program", ErrNewerFormat, version, FormatVersion)
	}
	return version, nil
}

// writeFormat marks the directory, once everything else that a new one needs is there.
func writeFormat(fsys vfs.FS, dir string) error {
	return vfs.WriteFile(fsys, path.Join(dir, formatName), fmt.Appendf(nil, "pairdb %d\n", FormatVersion), filePerm)
}

// maxSmallFile bounds what readSmall reads: FORMAT and the like.
const maxSmallFile = 64 << 10

func readSmall(fsys vfs.FS, name string) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > maxSmallFile {
		return nil, fmt.Errorf("%w: %s has %d bytes", ErrCorrupt, path.Base(name), info.Size())
	}
	b := make([]byte, info.Size())
	for n := 0; n < len(b); {
		m, err := f.ReadAt(b[n:], int64(n))
		if n += m; err != nil && n < len(b) {
			return nil, err
		}
	}
	return b, nil
}

// tableNumber returns the number of a table file's name.
func tableNumber(name string) (uint64, bool) {
	text, ok := strings.CutSuffix(name, ".sst")
	if !ok {
		return 0, false
	}
	num, err := strconv.ParseUint(text, 10, 64)
	if err != nil || num == 0 || compact.TableName(num) != name {
		return 0, false // not ours: leave it
	}
	return num, true
}
