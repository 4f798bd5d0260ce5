package inspect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
)

// CheckOptions say how Check shows what it finds.
type CheckOptions struct {
	// JSON prints one object a line instead of text.
	JSON bool
	// Progress is called with the bytes of tables that were verified, and their sum. May be nil.
	Progress func(done, total int64)
}

// summary ends the output of a check.
type summary struct {
	Type  string `json:"type"`
	Files int    `json:"files"`
	Bytes int64  `json:"bytes"`
	counts
}

func (s summary) text(w io.Writer) {
	fmt.Fprintf(w, "checked %d files, %d bytes: %s\n", s.Files, s.Bytes, &s.counts)
}

// Check verifies the data directory dir and writes its findings to w, then a summary. The error is
// ErrDamaged if something is damaged, vfs.ErrLocked if a node runs on the directory; then nothing
// was read.
func Check(ctx context.Context, fsys vfs.FS, dir string, o CheckOptions, w io.Writer) error {
	if err := isDir(fsys, dir); err != nil {
		return err
	}
	s := summary{Type: "summary"}
	found, err := engine.CheckDir(ctx, dir, fsys, engine.CheckOptions{
		Progress: o.Progress,
		File:     func(_ string, bytes int64) { s.Files, s.Bytes = s.Files+1, s.Bytes+bytes },
	})
	if errors.Is(err, vfs.ErrLocked) {
		return fmt.Errorf("a node runs on %s: stop it, or have it check itself with `pairctl verify`: %w", dir, err)
	}
	p := &printer{w: w, json: o.JSON}
	for _, f := range found {
		p.finding(fromEngine(f))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("check is not complete: %w", err), p.err)
	}
	s.counts = p.found
	p.print(s)
	if p.err != nil {
		return p.err
	}
	return s.err()
}

func fromEngine(f engine.Finding) Finding {
	out := newFinding(Damage, f.File, f.Offset, f.Problem)
	if f.Harmless {
		out.Severity = Note
	} else if f.Err != nil {
		out.Severity, out.err = severity(f.Err), f.Err
		if at, what := place(f.Err); at != engine.NoOffset {
			out.What = what // the place stands before it
		}
	}
	return out
}

// isDir tells a wrong argument from a directory that is damaged.
func isDir(fsys vfs.FS, dir string) error {
	info, err := fsys.Stat(dir)
	if err != nil {
		return usage(err)
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return nil // Stat does not follow; what is behind it shows itself
	}
	if !info.IsDir() {
		return usage(fmt.Errorf("%s is not a directory; dump shows a file", dir))
	}
	return nil
}

// item is something that is printed, as text or as an object.
type item interface{ text(w io.Writer) }

// printer writes items and counts findings. After a failed write it writes nothing more.
type printer struct {
	w     io.Writer
	json  bool
	found counts
	err   error
}

func (p *printer) finding(f Finding) {
	p.found.add(f)
	p.print(f)
}

func (p *printer) print(i item) {
	if p.err != nil {
		return
	}
	if !p.json {
		i.text(errWriter{p})
		return
	}
	e := json.NewEncoder(p.w) // ends each object with a line feed
	e.SetEscapeHTML(false)
	p.err = e.Encode(i)
}

// errWriter keeps the first error of a write.
type errWriter struct{ p *printer }

func (w errWriter) Write(b []byte) (int, error) {
	if w.p.err != nil {
		return 0, w.p.err
	}
	n, err := w.p.w.Write(b)
	w.p.err = err
	return n, err
}
