package inspect

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"

	"github.com/pairdb/pairdb/libs/record"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// ErrDamaged says that findings are damage, or data of a newer release. They were printed.
var ErrDamaged = errors.New("data is damaged or of a newer format")

// Severity of a finding.
type Severity string

// The severities; the package comment says what they mean.
const (
	Damage Severity = "damage"
	Newer  Severity = "newer"
	Failed Severity = "error"
	Note   Severity = "note"
)

// Finding is one thing that is not as it should be.
type Finding struct {
	Type     string   `json:"type"` // "finding"
	Severity Severity `json:"severity"`
	File     string   `json:"file,omitempty"`
	// Offset is nil if the finding has no single place.
	Offset *int64 `json:"offset,omitempty"`
	What   string `json:"what"`

	err error
}

func newFinding(s Severity, file string, offset int64, what string) Finding {
	f := Finding{Type: "finding", Severity: s, File: file, What: what}
	if offset >= 0 {
		f.Offset = &offset
	}
	return f
}

// describe turns an error that stopped the reading of file into a finding.
func describe(file string, err error) Finding {
	offset, what := place(err)
	f := newFinding(severity(err), file, offset, what)
	f.err = err
	return f
}

// place returns where an error is, engine.NoOffset if it does not say, and what it is without that.
func place(err error) (offset int64, what string) {
	var log *commitlog.CorruptionError
	var list *manifest.CorruptionError
	if table := sstable.AsCorrupt(err); table != nil {
		return int64(table.Offset), table.What
	}
	if errors.As(err, &log) {
		return log.Offset, log.What
	}
	if errors.As(err, &list) {
		var frame *record.CorruptError
		if errors.As(list.Err, &frame) {
			return list.Offset, frame.What
		}
		return list.Offset, list.Err.Error()
	}
	return engine.NoOffset, err.Error()
}

func severity(err error) Severity {
	for _, newer := range []error{engine.ErrNewerFormat, sstable.ErrNewerFormat, commitlog.ErrUnknownFormat, manifest.ErrUnknownFormat} {
		if errors.Is(err, newer) {
			return Newer
		}
	}
	var failed *fs.PathError
	if errors.As(err, &failed) && !errors.Is(err, fs.ErrNotExist) {
		return Failed
	}
	return Damage
}

func (f Finding) text(w io.Writer) {
	file, offset := f.File, "-"
	if file == "" {
		file = "-"
	}
	if f.Offset != nil {
		offset = strconv.FormatInt(*f.Offset, 10)
	}
	fmt.Fprintf(w, "%s %s %s %s\n", f.Severity, file, offset, f.What)
}

// counts are findings by severity.
type counts struct {
	Damage int `json:"damage"`
	Newer  int `json:"newer"`
	Errors int `json:"errors"`
	Notes  int `json:"notes"`

	failed error // the first error of the operating system
}

func (c *counts) add(f Finding) {
	switch f.Severity {
	case Damage:
		c.Damage++
	case Newer:
		c.Newer++
	case Failed:
		c.Errors++
		if c.failed == nil {
			c.failed = f.err
		}
	case Note:
		c.Notes++
	}
}

// err is how a tool ends that found this.
func (c *counts) err() error {
	switch {
	case c.Damage+c.Newer > 0:
		return fmt.Errorf("%w: %s", ErrDamaged, c)
	case c.Errors > 0:
		return fmt.Errorf("%s: %w", c, c.failed)
	}
	return nil
}

func (c *counts) String() string {
	return fmt.Sprintf("%d damage, %d newer, %d error, %d note", c.Damage, c.Newer, c.Errors, c.Notes)
}
