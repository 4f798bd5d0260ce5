package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// DumpOptions say what Dump shows.
type DumpOptions struct {
	// JSON prints one object a line instead of text.
	JSON bool
	// Values prints values, not only their length.
	Values bool
}

// Dump writes to w what is in a file or in all files of a data directory. What can be read before
// damage is printed before it; damage is a finding among the rest, and ErrDamaged in the end. The
// directory of a running node is vfs.ErrLocked; a single file may be one of a running node: then its
// end is whatever was there.
func Dump(ctx context.Context, fsys vfs.FS, name string, o DumpOptions, w io.Writer) error {
	d := &dumper{ctx: ctx, fs: fsys, o: o, printer: printer{w: w, json: o.JSON}}
	err := d.file(name, name)
	if errors.Is(err, errDir) {
		err = d.dir(name)
	}
	switch {
	case err != nil:
		return err
	case d.err != nil:
		return d.err
	}
	return d.found.err()
}

// dumper is one run of Dump. Its methods return errors that end it; damage is a finding.
type dumper struct {
	printer
	ctx context.Context
	fs  vfs.FS
	o   DumpOptions
}

var errDir = errors.New("is a directory")

// dir dumps a data directory: what says what counts first.
func (d *dumper) dir(dir string) (err error) {
	unlock, err := engine.LockOffline(d.fs, dir)
	if errors.Is(err, vfs.ErrLocked) {
		return fmt.Errorf("a node runs on %s: stop it, or dump single files: %w", dir, err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	version, err := engine.ReadFormat(d.fs, dir)
	switch {
	case errors.Is(err, engine.ErrNewerFormat), errors.Is(err, engine.ErrCorrupt):
		d.finding(describe("FORMAT", err))
		if severity(err) == Newer {
			return nil
		}
	case err != nil:
		return err
	case version != 0:
		d.print(format{Type: "format", File: "FORMAT", Version: version})
	}
	found := version != 0
	for _, sub := range []string{"manifest", "log", compact.TableDir} {
		names, err := d.fs.List(path.Join(dir, sub))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		found = true
		for _, name := range names {
			if err := d.file(path.Join(dir, sub, name), path.Join(sub, name)); err != nil {
				return err
			}
		}
	}
	if !found {
		return usage(fmt.Errorf("%s is not a data directory: there is neither FORMAT nor manifest, log or sst", dir))
	}
	return nil
}

// file dumps one file; show is its name in the output.
func (d *dumper) file(name, show string) error {
	if err := d.ctx.Err(); err != nil {
		return err
	}
	kind, err := recognise(d.fs, name)
	if err != nil {
		return err
	}
	switch kind {
	case kindTable:
		return d.table(name, show)
	case kindSegment:
		return d.segment(name, show)
	case kindManifest:
		return d.manifest(name, show)
	case kindMarker:
		m, _ := manifest.ParseMarker(path.Base(name))
		d.print(marker{Type: "marker", File: show, Count: m.Count, Manifest: m.File})
		return nil
	}
	if name != show {
		d.finding(newFinding(Note, show, engine.NoOffset, "not one of our files: it is not shown"))
		return nil
	}
	return usage(fmt.Errorf("%s is neither a log segment nor a table, a manifest or its marker", name))
}

type kind uint8

const (
	kindUnknown kind = iota
	kindTable
	kindSegment
	kindManifest
	kindMarker
)

// peekBytes is enough for every magic.
const peekBytes = 64

// recognise tells what a file is by its content; the name counts where the content says nothing: a
// marker is empty, and the start of a file may be what is damaged.
func recognise(fsys vfs.FS, name string) (kind, error) {
	f, err := fsys.Open(name)
	if err != nil {
		if info, serr := fsys.Stat(name); serr == nil && info.IsDir() {
			return kindUnknown, errDir
		}
		if errors.Is(err, fs.ErrNotExist) {
			return kindUnknown, usage(err)
		}
		return kindUnknown, err
	}
	defer func() { _ = f.Close() }() // read only
	info, err := f.Stat()
	if err != nil {
		return kindUnknown, err
	}
	if info.IsDir() {
		return kindUnknown, errDir
	}
	b := make([]byte, min(info.Size(), peekBytes))
	if n, err := f.ReadAt(b, 0); n < len(b) {
		return kindUnknown, fmt.Errorf("read %s: %w", name, err)
	}
	base := path.Base(name)
	_, isMarker := manifest.ParseMarker(base)
	_, isSegment := commitlog.ParseFileName(base)
	switch {
	case sstable.HasMagic(b):
		return kindTable, nil
	case manifest.HasMagic(b):
		return kindManifest, nil
	case commitlog.HasMagic(b):
		return kindSegment, nil
	case isMarker:
		return kindMarker, nil
	case isSegment:
		return kindSegment, nil
	case manifest.IsFileName(base):
		return kindManifest, nil
	case strings.HasSuffix(base, ".sst"):
		return kindTable, nil
	}
	return kindUnknown, nil
}

// format is the FORMAT file.
type format struct {
	Type    string `json:"type"`
	File    string `json:"file"`
	Version int    `json:"version"`
}

func (f format) text(w io.Writer) { fmt.Fprintf(w, "%s: format %d\n", f.File, f.Version) }

// marker names the manifest that counts.
type marker struct {
	Type     string `json:"type"`
	File     string `json:"file"`
	Count    uint64 `json:"count"`
	Manifest string `json:"manifest"`
}

func (m marker) text(w io.Writer) {
	fmt.Fprintf(w, "%s: marker %d, names %s\n", m.File, m.Count, m.Manifest)
}
