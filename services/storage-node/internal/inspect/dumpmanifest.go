package inspect

import (
	"fmt"
	"io"
	"strings"

	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// manifest dumps the edits of a manifest file, without applying them.
func (d *dumper) manifest(name, show string) error {
	d.print(manifestFile{Type: "manifest", File: show})
	var stop error
	w, err := manifest.Walk(d.fs, name, func(s manifest.Step) error {
		if stop = d.ctx.Err(); stop == nil {
			d.print(newEdit(show, s))
			stop = d.err
		}
		return stop
	})
	if stop != nil {
		return stop
	}
	if err != nil {
		d.finding(describe(show, err))
		return nil
	}
	if w.TornTail > 0 {
		d.finding(newFinding(Note, show, w.End, fmt.Sprintf("torn tail of %d bytes: an edit that was never acknowledged", w.TornTail)))
	}
	return nil
}

// manifestFile begins a manifest.
type manifestFile struct {
	Type string `json:"type"`
	File string `json:"file"`
}

func (m manifestFile) text(w io.Writer) { fmt.Fprintf(w, "%s: manifest\n", m.File) }

// edit is a step of a manifest.
type edit struct {
	Type        string            `json:"type"` // state: a part of the whole state; edit; seal
	File        string            `json:"file"`
	Offset      int64             `json:"offset"`
	Last        bool              `json:"last,omitempty"` // part of the state
	Added       []listedTable     `json:"added,omitempty"`
	Deleted     []listedTable     `json:"deleted,omitempty"`
	Quarantined []uint64          `json:"quarantined,omitempty"`
	Released    []uint64          `json:"released,omitempty"`
	LogFloor    uint64            `json:"log_floor,omitempty"`
	NextFile    uint64            `json:"next_file,omitempty"`
	LastSeq     uint64            `json:"last_sequence,omitempty"`
	NodeMeta    map[string]string `json:"node,omitempty"`

	lines string
}

// listedTable is a table in an edit; a deletion names level and number only.
type listedTable struct {
	Level       int    `json:"level"`
	Number      uint64 `json:"number"`
	Bytes       uint64 `json:"bytes,omitempty"`
	Digest      string `json:"digest,omitempty"`
	Smallest    string `json:"smallest,omitempty"`
	Largest     string `json:"largest,omitempty"`
	MinSequence uint64 `json:"min_sequence,omitempty"`
	MaxSequence uint64 `json:"max_sequence,omitempty"`
	Entries     uint64 `json:"entries,omitempty"`
	Origin      string `json:"origin,omitempty"`
	Quarantined bool   `json:"quarantined,omitempty"`
}

func newEdit(show string, s manifest.Step) edit {
	e := edit{Type: "edit", File: show, Offset: s.Offset, Last: s.Last}
	switch {
	case s.Seal:
		e.Type = "seal"
		return e
	case s.State:
		e.Type = "state"
	}
	for _, a := range s.Edit.Added {
		t := a.Table
		e.Added = append(e.Added, listedTable{
			Level: a.Level, Number: t.Num, Bytes: t.Size, Digest: digest(t.Digest), Smallest: t.Smallest.String(), Largest: t.Largest.String(),
			MinSequence: uint64(t.MinSeq), MaxSequence: uint64(t.MaxSeq), Entries: t.Entries, Origin: t.Origin.String(), Quarantined: t.Quarantined,
		})
	}
	for _, t := range s.Edit.Deleted {
		e.Deleted = append(e.Deleted, listedTable{Level: t.Level, Number: t.Num})
	}
	e.Quarantined, e.Released = s.Edit.Quarantined, s.Edit.Released
	e.LogFloor, e.NextFile, e.LastSeq, e.NodeMeta = s.Edit.LogFloor, s.Edit.NextFile, uint64(s.Edit.LastSeq), s.Edit.NodeMeta
	e.lines = s.Edit.String()
	return e
}

func (e edit) text(w io.Writer) {
	what := e.Type
	if e.Type == "state" {
		what = "part of the state"
		if e.Last {
			what = "state"
		}
	}
	fmt.Fprintf(w, "  @%d %s\n", e.Offset, what)
	for line := range strings.Lines(e.lines) {
		fmt.Fprint(w, "    ", line)
	}
}
