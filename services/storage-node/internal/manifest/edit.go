package manifest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pairdb/pairdb/libs/ikey"
)

// Added places a table at a level.
type Added struct {
	Level int
	Table *Table
}

// Deleted takes a table from a level.
type Deleted struct {
	Level int
	Num   uint64
}

// Edit is a step from one version to the next. It is applied as a whole or not at all. A table that
// is deleted and added in one edit moves; it is the same file.
type Edit struct {
	Added   []Added
	Deleted []Deleted
	// LogFloor is the first commit-log segment that is still needed; 0 leaves it as it is. It
	// never falls.
	LogFloor uint64
	// NextFile is larger than every number that was given out; Apply raises it by itself.
	NextFile uint64
	// LastSeq is at least the largest sequence in any table; Apply raises it by itself.
	LastSeq ikey.Seq
	// Quarantined tables are marked, Released ones are no longer.
	Quarantined, Released []uint64
	// NodeMeta sets facts of the node (format, incarnation, …); an empty value removes one.
	NodeMeta map[string]string
}

// ErrInvalidEdit says that an edit does not fit the version that it is applied to. Nothing happened.
var ErrInvalidEdit = errors.New("invalid manifest edit")

// Limits of what an edit may hold; they bound what a damaged or hostile file can make us allocate.
const (
	maxKeyBytes       = 64 << 10 // engine keys have at most 256 + 1 + 1,024 bytes
	maxEditBytes      = 48 << 20 // below the largest frame of libs/record, 64 MiB
	maxNodeMetaKey    = 256
	maxNodeMetaValue  = 64 << 10
	maxNodeMeta       = 1024
	tablesPerSnapshot = 8 << 10 // tables per frame when the whole state is written
)

// check says whether t can be in a version.
func (t *Table) check() error {
	switch {
	case t.Num == 0:
		return errors.New("number 0")
	case t.Size == 0:
		return errors.New("size 0")
	case len(t.Smallest.User) > maxKeyBytes || len(t.Largest.User) > maxKeyBytes:
		return fmt.Errorf("a bound is longer than %d bytes", maxKeyBytes)
	case ikey.Compare(t.Smallest, t.Largest) > 0:
		return fmt.Errorf("smallest key %s is above largest %s", t.Smallest.Redacted(), t.Largest.Redacted())
	case t.MinSeq > t.MaxSeq:
		return fmt.Errorf("sequences %d-%d", t.MinSeq, t.MaxSeq)
	case t.MaxSeq >= ikey.MaxSeq:
		return fmt.Errorf("largest sequence %d is out of range", t.MaxSeq)
	case t.Origin == 0 || t.Origin > maxOrigin:
		return fmt.Errorf("unknown %s", t.Origin)
	}
	return nil
}

// String prints the edit as golden files do.
func (e *Edit) String() string {
	var b strings.Builder
	for _, d := range e.Deleted {
		fmt.Fprintf(&b, "delete L%d %06d\n", d.Level, d.Num)
	}
	for _, a := range e.Added {
		fmt.Fprintf(&b, "add    L%d %s\n", a.Level, a.Table)
	}
	for _, num := range e.Quarantined {
		fmt.Fprintf(&b, "quarantine %06d\n", num)
	}
	for _, num := range e.Released {
		fmt.Fprintf(&b, "release %06d\n", num)
	}
	if e.LogFloor != 0 {
		fmt.Fprintf(&b, "log floor %d\n", e.LogFloor)
	}
	if e.NextFile != 0 {
		fmt.Fprintf(&b, "next file %d\n", e.NextFile)
	}
	if e.LastSeq != 0 {
		fmt.Fprintf(&b, "last seq %d\n", e.LastSeq)
	}
	for _, k := range slices.Sorted(maps.Keys(e.NodeMeta)) {
		fmt.Fprintf(&b, "node %s=%q\n", k, e.NodeMeta[k])
	}
	return b.String()
}
