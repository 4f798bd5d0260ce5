package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// CheckOptions say how a check is done.
type CheckOptions struct {
	// BytesPerSecond limits reading; 0 is no limit. It needs Clock, which Engine.Check has.
	BytesPerSecond int64
	Clock          Clock
	// Progress is called with the bytes of tables that were verified, and their sum. May be nil.
	Progress func(done, total int64)
	// File is called with each file below the data directory that is about to be read, and its size.
	// May be nil.
	File func(name string, bytes int64)
	// MetadataOnly leaves out the content of tables: names, sizes, digests and invariants only.
	MetadataOnly bool
}

// Finding is one thing that is not as it should be.
type Finding struct {
	// File is the path below the data directory, empty for findings about no single file.
	File string
	// Offset is the place in the file, NoOffset if it is not known or the finding is about all of it.
	Offset int64
	// Problem says what is wrong, for people, in one line.
	Problem string
	// Harmless findings cost no data: the next Open puts them in order, or they only say what was
	// not checked.
	Harmless bool
	// Err is the error behind the finding, if there was one.
	Err error
}

// NoOffset is the offset of a finding that has none.
const NoOffset = -1

// String prints the finding in one line.
func (f Finding) String() string {
	s := f.Problem
	if f.File != "" {
		s = f.File + ": " + s
	}
	if f.Harmless {
		s += " (harmless)"
	}
	return s
}

// Check verifies the tables of the current version while the engine works: every one is there with
// the size and digest that the manifest says, all checksums, order and counts within, and the
// invariants between them. It pins the version. Damaged tables are quarantined. Files that nothing
// refers to are judged offline only (CheckDir): now they may be in flight or about to be deleted.
// The error says that the check did not get to its end.
func (e *Engine) Check(ctx context.Context, o CheckOptions) ([]Finding, error) {
	if o.Clock == nil {
		o.Clock = e.opts.Clock
	}
	s, err := e.acquireFixed()
	if err != nil {
		return nil, err
	}
	defer s.unref()
	c := &checker{fs: e.fs, dir: e.dir, o: o, damaged: e.tables.onCorrupt}
	c.version(s.version)
	err = c.tables(ctx, s.version)
	return c.findings, err
}

// checker collects findings.
type checker struct {
	fs       vfs.FS
	dir      string
	o        CheckOptions
	damaged  func(num uint64, err error)
	findings []Finding

	done, total int64
	next        time.Time // when the rate allows the next bytes
}

func (c *checker) found(file string, err error, format string, args ...any) {
	c.foundAt(file, NoOffset, err, format, args...)
}

func (c *checker) foundAt(file string, offset int64, err error, format string, args ...any) {
	c.findings = append(c.findings, Finding{File: file, Offset: offset, Problem: fmt.Sprintf(format, args...), Err: err})
}

func (c *checker) harmless(file string, offset int64, format string, args ...any) {
	c.findings = append(c.findings, Finding{File: file, Offset: offset, Problem: fmt.Sprintf(format, args...), Harmless: true})
}

// visit tells the caller of the check that a file is about to be read.
func (c *checker) visit(file string) error {
	if c.o.File == nil {
		return nil
	}
	info, err := c.fs.Stat(path.Join(c.dir, file))
	if err == nil {
		c.o.File(file, info.Size())
	}
	return err
}

// version checks what the list of tables alone tells.
func (c *checker) version(v *manifest.Version) {
	if err := manifest.CheckInvariants(v); err != nil {
		c.found("manifest", err, "level invariants: %v", err)
	}
}

// tables checks every table of a version.
func (c *checker) tables(ctx context.Context, v *manifest.Version) error {
	c.total = int64(v.TotalBytes())
	for _, tables := range v.Levels {
		for _, t := range tables {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := c.table(ctx, t); err != nil {
				return err
			}
		}
	}
	return nil
}

// table checks one table. Only the end of ctx is an error; all else is a finding.
func (c *checker) table(ctx context.Context, t *manifest.Table) error {
	file := path.Join(compact.TableDir, compact.TableName(t.Num))
	if t.Quarantined {
		c.found(file, nil, "quarantined: it was found damaged before")
	}
	err := c.verify(ctx, t, file)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	missing := errors.Is(err, fs.ErrNotExist)
	if missing {
		err = &sstable.CorruptionError{File: file, What: "the manifest names this table, but there is no such file"}
	}
	offset := int64(NoOffset)
	if bad := sstable.AsCorrupt(err); bad != nil && !missing {
		offset = int64(bad.Offset)
	}
	c.foundAt(file, offset, err, "%v", err)
	if isDamage(err) && c.damaged != nil && !t.Quarantined {
		c.damaged(t.Num, err)
	}
	return nil
}

// verify reads a table through a descriptor of its own: a reader that is open could have its
// metadata from before the damage.
func (c *checker) verify(ctx context.Context, t *manifest.Table, file string) (err error) {
	if err := c.visit(file); err != nil {
		return err
	}
	f, err := c.fs.Open(path.Join(c.dir, file))
	if err != nil {
		return err
	}
	r, err := sstable.Open(f, sstable.ReaderOptions{FileNum: t.Num, Name: file}) // closes f
	if err != nil {
		return err
	}
	defer func() {
		if cerr := r.Close(); err == nil {
			err = cerr
		}
	}()
	if what := metaDifference(t.Meta, r.Meta()); what != "" {
		return &sstable.CorruptionError{File: file, What: "not the table that the manifest means: " + what}
	}
	if c.o.MetadataOnly {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err = r.Verify(ctx, func(n int64) {
		if terr := c.throttle(ctx, n); terr != nil {
			cancel(terr)
		}
	})
	return err
}

// metaDifference says how a table differs from what the manifest says of it, or "".
func metaDifference(want, got sstable.Meta) string {
	switch {
	case want.Size != got.Size:
		return fmt.Sprintf("size %d, the manifest says %d", got.Size, want.Size)
	case want.Digest != got.Digest:
		return fmt.Sprintf("digest %016x, the manifest says %016x", got.Digest, want.Digest)
	case ikey.Compare(want.Smallest, got.Smallest) != 0 || ikey.Compare(want.Largest, got.Largest) != 0:
		return fmt.Sprintf("bounds [%s-%s], the manifest says [%s-%s]",
			got.Smallest.Redacted(), got.Largest.Redacted(), want.Smallest.Redacted(), want.Largest.Redacted())
	case want.Entries != got.Entries || want.RangeDeletes != got.RangeDeletes:
		return fmt.Sprintf("%d entries and %d range deletes, the manifest says %d and %d", got.Entries, got.RangeDeletes, want.Entries, want.RangeDeletes)
	case want.MinSeq != got.MinSeq || want.MaxSeq != got.MaxSeq:
		return fmt.Sprintf("sequences %d-%d, the manifest says %d-%d", got.MinSeq, got.MaxSeq, want.MinSeq, want.MaxSeq)
	}
	return ""
}

// throttle accounts for n bytes and waits as long as the rate asks for.
func (c *checker) throttle(ctx context.Context, n int64) error {
	c.done += n
	if c.o.Progress != nil {
		c.o.Progress(c.done, c.total)
	}
	if c.o.BytesPerSecond <= 0 || c.o.Clock == nil {
		return ctx.Err()
	}
	now := c.o.Clock.Now()
	if c.next.Before(now) {
		c.next = now
	}
	c.next = c.next.Add(time.Duration(float64(n) / float64(c.o.BytesPerSecond) * float64(time.Second)))
	wait := c.next.Sub(now)
	if wait < 10*time.Millisecond {
		return ctx.Err() // gathered: a timer for every block costs more than the block
	}
	select {
	case <-c.o.Clock.After(wait):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
