package inspect

import (
	"fmt"
	"io"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
)

// segment dumps a segment of the commit log.
func (d *dumper) segment(name, show string) error {
	var stop error // what ends the dump is not a finding
	info, err := commitlog.ReadSegment(d.fs, name, func(i commitlog.SegmentInfo) error {
		d.print(segment{
			Type: "segment", File: show, Number: i.Number, Previous: i.Previous, PreviousBytes: i.PreviousBytes,
			Sealed: i.Sealed, Bytes: i.Bytes,
		})
		return nil
	}, func(f commitlog.Frame) error {
		if stop = d.ctx.Err(); stop == nil {
			d.frame(show, f)
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
	if info.Number == 0 {
		return nil
	}
	d.print(segmentEnd{Type: "segment-end", File: show, Offset: info.End, Closed: info.Closed})
	if info.TornBytes > 0 {
		d.finding(newFinding(Note, show, info.End, fmt.Sprintf("torn tail of %d bytes: writes that were never acknowledged", info.TornBytes)))
	}
	return nil
}

// frame dumps a frame. Its checksum was good: what makes no sense in it does not hide what follows.
func (d *dumper) frame(show string, f commitlog.Frame) {
	head, err := engine.DecodeLogFrame(f.Type, f.Payload, nil)
	b := batch{Type: head.Kind, File: show, Offset: f.Start.Offset, First: uint64(head.First), Count: head.Count}
	for _, t := range head.Tables {
		b.Tables = append(b.Tables, logTable{Number: t.Num, Digest: digest(t.Digest)})
	}
	if head.Kind != "" {
		d.print(b)
	}
	_, _ = engine.DecodeLogFrame(f.Type, f.Payload, func(c engine.LogChange) error {
		e := newEntry("change", show, ikey.Make(c.Key, c.Seq, c.Kind), c.Value, d.o.Values)
		e.Offset = &f.Start.Offset
		d.entry(e, f.Start.Offset)
		return nil
	}) // the error is that of the first time
	if err != nil {
		found := describe(show, err)
		found.Offset = &f.Start.Offset
		d.finding(found)
	}
}

// entry prints an entry, and a finding if its record can't be decoded.
func (d *dumper) entry(e entry, offset int64) {
	d.print(e)
	if e.Problem != "" {
		d.finding(newFinding(Damage, e.File, offset, fmt.Sprintf("record of %s at sequence %d: %s", e.key, e.Seq, e.Problem)))
	}
}

// segment is the header of a segment.
type segment struct {
	Type          string `json:"type"`
	File          string `json:"file"`
	Number        uint64 `json:"number,omitempty"`
	Previous      uint64 `json:"previous,omitempty"`
	PreviousBytes int64  `json:"previous_bytes,omitempty"`
	// Sealed: a later segment continues this one, which has Bytes then.
	Sealed bool  `json:"sealed"`
	Bytes  int64 `json:"bytes"`
}

func (s segment) text(w io.Writer) {
	switch {
	case s.Number == 0:
		fmt.Fprintf(w, "%s: log segment without a header of its own: prepared, nothing in it counts\n", s.File)
		return
	case s.Previous == 0:
		fmt.Fprintf(w, "%s: log segment %d, the first", s.File, s.Number)
	default:
		fmt.Fprintf(w, "%s: log segment %d, after %d bytes of segment %d", s.File, s.Number, s.PreviousBytes, s.Previous)
	}
	if s.Sealed {
		fmt.Fprintf(w, ", sealed with %d bytes", s.Bytes)
	}
	fmt.Fprintln(w)
}

// segmentEnd is where a segment ends.
type segmentEnd struct {
	Type   string `json:"type"`
	File   string `json:"file"`
	Offset int64  `json:"offset"`
	Closed bool   `json:"closed"` // in order
}

func (s segmentEnd) text(w io.Writer) {
	how := "end"
	if s.Closed {
		how = "end, closed in order"
	}
	fmt.Fprintf(w, "  @%d %s\n", s.Offset, how)
}

// batch is a frame: changes that were made together, or an ingest.
type batch struct {
	Type   string     `json:"type"` // batch or ingest
	File   string     `json:"file"`
	Offset int64      `json:"offset"`
	First  uint64     `json:"sequence"`
	Count  int        `json:"changes"`
	Tables []logTable `json:"tables,omitempty"`
}

// logTable is a table that was ingested.
type logTable struct {
	Number uint64 `json:"number"`
	Digest string `json:"digest"`
}

func (b batch) text(w io.Writer) {
	fmt.Fprintf(w, "  @%d %s at sequence %d", b.Offset, b.Type, b.First)
	if b.Type == "batch" {
		fmt.Fprintf(w, ", %d changes", b.Count)
	}
	for _, t := range b.Tables {
		fmt.Fprintf(w, ", table %06d digest %s", t.Number, t.Digest)
	}
	fmt.Fprintln(w)
}
