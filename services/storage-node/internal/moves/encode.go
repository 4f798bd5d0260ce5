package moves

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/ring"
)

// Kinds of records, the beginnings of their keys.
const (
	movePrefix  = "move/"
	whatPrefix  = "what/"
	drainPrefix = "drain/"
	wantedKey   = "wanted"
)

// recordVersion is the format of all records. A newer one is not read: what it says may bind this node.
const recordVersion = 1

// maxRecordBytes bounds a record: a selection of MaxSelectionBytes of characters that JSON escapes, its
// hash ranges in decimal digits.
const maxRecordBytes = 8 << 20

var errNewer = errors.New("it was written by a newer version")

// moveRecord is move/<id>.
type moveRecord struct {
	V           int    `json:"v"`
	Incarnation string `json:"incarnation,omitempty"`

	ID                string  `json:"id"`
	Purpose           Purpose `json:"purpose"`
	Mode              Mode    `json:"mode"`
	TargetNodeID      string  `json:"target"`
	TargetAddr        string  `json:"target_addr,omitempty"`
	HandOver          bool    `json:"hand_over,omitempty"`
	MaxBytesPerSecond int64   `json:"max_bytes_per_second,omitempty"`
	Parent            string  `json:"parent,omitempty"`

	Version        uint64   `json:"version"`
	State          State    `json:"state"`
	ResumeState    State    `json:"resume_state,omitempty"`
	Reason         string   `json:"reason,omitempty"`
	PinnedSequence uint64   `json:"pinned,omitempty"`
	CopyCursor     []byte   `json:"cursor,omitempty"`
	TailSequence   uint64   `json:"tail,omitempty"`
	FenceSequence  uint64   `json:"fence,omitempty"`
	Epoch          uint64   `json:"epoch,omitempty"`
	VerifiedAt     int64    `json:"verified_at,omitempty"`
	CreatedAt      int64    `json:"created_at"`
	UpdatedAt      int64    `json:"updated_at"`
	Finishing      bool     `json:"finishing,omitempty"`
	Cancelling     bool     `json:"cancelling,omitempty"`
	Progress       Progress `json:"progress"`
}

// whatRecord is what/<id>. Hash ranges are pairs of start and end.
type whatRecord struct {
	V          int         `json:"v"`
	Tenant     string      `json:"tenant,omitempty"`
	Start      string      `json:"start,omitempty"`
	End        string      `json:"end,omitempty"`
	Keys       []string    `json:"keys,omitempty"`
	HashRanges [][2]uint64 `json:"hash_ranges,omitempty"`
}

// drainRecord is drain/<id>.
type drainRecord struct {
	V           int        `json:"v"`
	Incarnation string     `json:"incarnation,omitempty"`
	ID          string     `json:"id"`
	Version     uint64     `json:"version"`
	State       DrainState `json:"state"`
	Reason      string     `json:"reason,omitempty"`
	ForceReason string     `json:"force_reason,omitempty"`
	MovesDone   int        `json:"moves_done,omitempty"`
	MovesTotal  int        `json:"moves_total,omitempty"`
	CreatedAt   int64      `json:"created_at"`
	UpdatedAt   int64      `json:"updated_at"`
}

// wantedRecord is wanted.
type wantedRecord struct {
	V           int              `json:"v"`
	Incarnation string           `json:"incarnation,omitempty"`
	Version     uint64           `json:"version"`
	State       membership.State `json:"state"`
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

// decode reads a record of this version, or an older one.
func decode(b []byte, into any, version *int) error {
	if len(b) > maxRecordBytes {
		return fmt.Errorf("it has %d bytes, at most %d are allowed", len(b), maxRecordBytes)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return err
	}
	switch {
	case *version > recordVersion:
		return fmt.Errorf("%w: %d, this one reads up to %d", errNewer, *version, recordVersion)
	case *version < 1:
		return fmt.Errorf("its version is %d", *version)
	}
	return nil
}

func encodeMove(m *Move, incarnation string) ([]byte, error) {
	return encode(&moveRecord{
		V: recordVersion, Incarnation: incarnation, ID: m.ID, Purpose: m.Purpose, Mode: m.Mode, TargetNodeID: m.Target.NodeID,
		TargetAddr: m.Target.Addr, HandOver: m.HandOver, MaxBytesPerSecond: m.MaxBytesPerSecond, Parent: m.Parent,
		Version: m.Version, State: m.State, ResumeState: m.ResumeState, Reason: m.Reason, PinnedSequence: m.PinnedSequence,
		CopyCursor: m.CopyCursor, TailSequence: m.TailSequence, FenceSequence: m.FenceSequence, Epoch: m.Epoch,
		VerifiedAt: m.VerifiedAt, CreatedAt: m.CreatedAt, UpdatedAt: m.UpdatedAt, Finishing: m.Finishing, Cancelling: m.Cancelling,
		Progress: m.Progress,
	})
}

// decodeMove returns a move without its selection, and the incarnation that wrote it.
func decodeMove(b []byte) (m *Move, incarnation string, err error) {
	var r moveRecord
	if err := decode(b, &r, &r.V); err != nil {
		return nil, "", err
	}
	m = &Move{
		Spec: Spec{
			ID: r.ID, Purpose: r.Purpose, Mode: r.Mode, Target: Target{NodeID: r.TargetNodeID, Addr: r.TargetAddr}, HandOver: r.HandOver,
			MaxBytesPerSecond: r.MaxBytesPerSecond, Parent: r.Parent,
		},
		Version: r.Version, State: r.State, ResumeState: r.ResumeState, Reason: r.Reason, PinnedSequence: r.PinnedSequence,
		CopyCursor: r.CopyCursor, TailSequence: r.TailSequence, FenceSequence: r.FenceSequence, Epoch: r.Epoch,
		VerifiedAt: r.VerifiedAt, CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt, Finishing: r.Finishing, Cancelling: r.Cancelling,
		Progress: r.Progress,
	}
	switch {
	case m.Version == 0:
		err = errors.New("it has version 0")
	case !m.State.known():
		err = fmt.Errorf("its state is %d", m.State)
	case m.State == Failed && (!m.ResumeState.known() || m.ResumeState.Ended() || m.ResumeState == Failed):
		err = fmt.Errorf("it failed in state %d", m.ResumeState)
	case len(m.CopyCursor) > MaxCursorBytes:
		err = fmt.Errorf("its cursor has %d bytes", len(m.CopyCursor))
	case m.Progress.check() != nil:
		err = m.Progress.check()
	}
	return m, r.Incarnation, err
}

func encodeWhat(s *Selection) ([]byte, error) {
	r := &whatRecord{V: recordVersion, Tenant: s.Tenant, Start: s.Start, End: s.End, Keys: s.Keys}
	for _, h := range s.HashRanges {
		r.HashRanges = append(r.HashRanges, [2]uint64{h.Start, h.End})
	}
	return encode(r)
}

func decodeWhat(b []byte) (s Selection, err error) {
	var r whatRecord
	if err := decode(b, &r, &r.V); err != nil {
		return s, err
	}
	s = Selection{Tenant: r.Tenant, Start: r.Start, End: r.End, Keys: r.Keys}
	for _, h := range r.HashRanges {
		s.HashRanges = append(s.HashRanges, ring.HashRange{Start: h[0], End: h[1]})
	}
	return s, s.Validate()
}

func encodeDrain(d *Drain, incarnation string) ([]byte, error) {
	return encode(&drainRecord{
		V: recordVersion, Incarnation: incarnation, ID: d.ID, Version: d.Version, State: d.State, Reason: d.Reason, ForceReason: d.ForceReason,
		MovesDone: d.MovesDone, MovesTotal: d.MovesTotal, CreatedAt: d.CreatedAt, UpdatedAt: d.UpdatedAt,
	})
}

func decodeDrain(b []byte) (d *Drain, incarnation string, err error) {
	var r drainRecord
	if err := decode(b, &r, &r.V); err != nil {
		return nil, "", err
	}
	d = &Drain{
		ID: r.ID, Version: r.Version, State: r.State, Reason: r.Reason, ForceReason: r.ForceReason,
		MovesDone: r.MovesDone, MovesTotal: r.MovesTotal, CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt,
	}
	switch {
	case CheckID(d.ID) != nil:
		err = CheckID(d.ID)
	case d.Version == 0:
		err = errors.New("it has version 0")
	case !d.State.known():
		err = fmt.Errorf("its state is %d", d.State)
	case d.MovesDone < 0 || d.MovesTotal < d.MovesDone:
		err = fmt.Errorf("%d of %d moves are done", d.MovesDone, d.MovesTotal)
	}
	return d, r.Incarnation, err
}

func decodeWanted(b []byte) (r wantedRecord, err error) {
	if err := decode(b, &r, &r.V); err != nil {
		return r, err
	}
	if r.State < membership.Up || r.State > membership.Drained || r.Version == 0 {
		return r, fmt.Errorf("it wants %s at version %d", r.State, r.Version)
	}
	return r, nil
}

// check refuses numbers that are none.
func (p *Progress) check() error {
	for _, n := range []int64{
		p.CopiedRecords, p.CopiedBytes, p.TailedRecords, p.TailedBytes, p.TotalBytes, p.ResentBytes, p.BytesPerSecond,
		p.RemainingSeconds + 1, p.LagRecords, p.LagMS + 1, p.ComparedKeys, p.RepairedKeys, p.Resumes,
	} {
		if n < 0 {
			return fmt.Errorf("a number of the progress is negative: %+v", *p)
		}
	}
	return nil
}
