package manifest

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/pairdb/pairdb/libs/vfs"
)

// The marker says which manifest file counts. It is an empty file whose name carries everything:
// CURRENT.<count>.MANIFEST-<number>. Creating a name is atomic, and of several the highest count
// is right, so there is no moment without a marker and nothing to be torn. (The idea is that of
// Pebble's atomicfs.)

const (
	filePrefix   = "MANIFEST-"
	markerPrefix = "CURRENT."
	filePerm     = 0o660
	dirPerm      = 0o770
)

func fileName(number uint64) string { return fmt.Sprintf("%s%06d", filePrefix, number) }

func parseFileName(name string) (number uint64, ok bool) {
	s, ok := strings.CutPrefix(name, filePrefix)
	if !ok {
		return 0, false
	}
	number, err := strconv.ParseUint(s, 10, 32)
	return number, err == nil && number > 0 && fileName(number) == name
}

type marker struct{ count, file uint64 }

func (m marker) name() string {
	return fmt.Sprintf("%s%06d.%s", markerPrefix, m.count, fileName(m.file))
}

func parseMarker(name string) (m marker, ok bool) {
	s, ok := strings.CutPrefix(name, markerPrefix)
	if !ok {
		return m, false
	}
	count, file, ok := strings.Cut(s, ".")
	if !ok {
		return m, false
	}
	var err error
	if m.count, err = strconv.ParseUint(count, 10, 63); err != nil {
		return m, false
	}
	m.file, ok = parseFileName(file)
	return m, ok && m.name() == name
}

// listing is what is in the manifest directory.
type listing struct {
	files   []uint64
	markers []marker
}

func list(fsys vfs.FS, dir string) (l listing, err error) {
	names, err := fsys.List(dir)
	if err != nil {
		return l, fmt.Errorf("list the manifest directory: %w", err)
	}
	for _, name := range names {
		if m, ok := parseMarker(name); ok {
			l.markers = append(l.markers, m)
		} else if n, ok := parseFileName(name); ok {
			l.files = append(l.files, n)
		}
	}
	return l, nil
}

// current returns the marker that counts.
func (l listing) current() (marker, bool) {
	var m marker
	for _, o := range l.markers {
		if o.count > m.count {
			m = o
		}
	}
	return m, m.count > 0
}

// highest returns the largest number of a manifest file, or 0.
func (l listing) highest() (n uint64) {
	for _, f := range l.files {
		n = max(n, f)
	}
	return n
}

// writeMarker creates a marker and makes it durable.
func writeMarker(fsys vfs.FS, dir string, m marker) error {
	f, err := fsys.Create(path.Join(dir, m.name()), filePerm)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return vfs.SyncDir(fsys, dir)
}

// removeStale removes the markers and files that m has replaced. They are harmless: m is durable and has
// the highest count, so it does not matter which of these removals a crash takes back.
func removeStale(fsys vfs.FS, dir string, l listing, m marker) error {
	var first error
	remove := func(name string) {
		if err := fsys.Remove(path.Join(dir, name)); err != nil && !isNotExist(err) && first == nil {
			first = err
		}
	}
	for _, o := range l.markers {
		if o != m {
			remove(o.name())
		}
	}
	if first != nil {
		return first // a file may still be named by a marker
	}
	for _, n := range l.files {
		if n != m.file {
			remove(fileName(n))
		}
	}
	return first
}

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
