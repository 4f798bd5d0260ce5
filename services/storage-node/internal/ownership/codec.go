package ownership

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ring"
)

// format is the version of both kinds of records.
const format = 1

// rangesKey is the key of the ground, movePrefix stands before the id of a move in the key of its fact.
const (
	rangesKey  = "ranges"
	movePrefix = "move/"
)

// span is a hash range in a record: start and end.
type span [2]uint64

func spansOf(ranges []ring.HashRange) []span {
	out := make([]span, len(ranges))
	for i, r := range ranges {
		out[i] = span{r.Start, r.End}
	}
	return out
}

func rangesOf(spans []span) []ring.HashRange {
	out := make([]ring.HashRange, len(spans))
	for i, s := range spans {
		out[i] = ring.HashRange{Start: s[0], End: s[1]}
	}
	return ring.Normal(out)
}

// MarshalText and UnmarshalText are the words for stages in records.
func (s stage) MarshalText() ([]byte, error) {
	if s < fenced || s > declined {
		return nil, fmt.Errorf("stage %d is unknown", s)
	}
	return []byte(stageNames[s]), nil
}

func (s *stage) UnmarshalText(text []byte) error {
	i := slices.Index(stageNames[:], string(text))
	if i < int(fenced) {
		return fmt.Errorf("stage %.20q is unknown", text)
	}
	*s = stage(i)
	return nil
}

// factRecord is a fact as it is stored.
type factRecord struct {
	Format   int    `json:"format"`
	Revision uint64 `json:"revision"`
	Stage    stage  `json:"stage"`
	Ranges   []span `json:"ranges"`
	// Sequence is that of the fence; 0: Fence has not come so far.
	Sequence uint64 `json:"sequence,omitempty"`
	// KnownEpoch is what Fence and Prepare answered.
	KnownEpoch uint64 `json:"known_epoch,omitempty"`
	Epoch      uint64 `json:"epoch,omitempty"`
	Peer       *Owner `json:"peer,omitempty"`
	AtMillis   int64  `json:"at_ms"`
}

func (f *fact) encode(revision uint64) ([]byte, error) {
	r := factRecord{
		Format: format, Revision: revision, Stage: f.stage, Ranges: spansOf(f.ranges), Sequence: f.sequence,
		KnownEpoch: f.knownEpoch, Epoch: f.epoch, AtMillis: f.at.UnixMilli(),
	}
	if f.peer != (Owner{}) {
		r.Peer = &f.peer
	}
	return json.Marshal(r)
}

func decodeFact(b []byte) (f fact, revision uint64, err error) {
	var r factRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return fact{}, 0, err
	}
	switch {
	case r.Format != format:
		return fact{}, 0, fmt.Errorf("it has format %d, not %d", r.Format, format)
	case r.Stage == 0 || len(r.Ranges) == 0:
		return fact{}, 0, errors.New("it has no stage or no ranges")
	}
	f = fact{
		stage: r.Stage, ranges: rangesOf(r.Ranges), sequence: r.Sequence, knownEpoch: r.KnownEpoch, epoch: r.Epoch,
		at: time.UnixMilli(r.AtMillis),
	}
	if r.Peer != nil {
		f.peer = *r.Peer
	}
	return f, r.Revision, nil
}

// groundRecord is the ground as it is stored.
type groundRecord struct {
	Format      int             `json:"format"`
	Revision    uint64          `json:"revision"`
	Incarnation string          `json:"incarnation"`
	Known       bool            `json:"known,omitempty"`
	Declared    []span          `json:"declared,omitempty"`
	Given       []partRecord    `json:"given,omitempty"`
	Explicit    []span          `json:"explicit,omitempty"`
	Taken       []partRecord    `json:"taken,omitempty"`
	Epochs      []epochRecord   `json:"epochs,omitempty"`
	Residue     []residueRecord `json:"residue,omitempty"`
}

type partRecord struct {
	Ranges []span `json:"ranges"`
	Node   Owner  `json:"node"`
}

type epochRecord struct {
	Ranges []span `json:"ranges"`
	Epoch  uint64 `json:"epoch"`
}

type residueRecord struct {
	Ranges      []span `json:"ranges"`
	Sequence    uint64 `json:"sequence"`
	SinceMillis int64  `json:"since_ms"`
	Dropping    bool   `json:"dropping,omitempty"`
}

func (g *ground) encode(revision uint64) ([]byte, error) {
	r := groundRecord{Format: format, Revision: revision, Incarnation: g.incarnation, Known: g.known, Declared: spansOf(g.declared), Explicit: spansOf(g.explicit)}
	for _, p := range g.given {
		r.Given = append(r.Given, partRecord{spansOf(p.ranges), p.node})
	}
	for _, p := range g.taken {
		r.Taken = append(r.Taken, partRecord{spansOf(p.ranges), p.node})
	}
	for _, epoch := range slices.Sorted(maps.Keys(g.epochs)) {
		r.Epochs = append(r.Epochs, epochRecord{spansOf(g.epochs[epoch]), epoch})
	}
	for _, p := range g.residue {
		r.Residue = append(r.Residue, residueRecord{spansOf(p.Ranges), p.Sequence, p.Since.UnixMilli(), p.dropping})
	}
	return json.Marshal(r)
}

func decodeGround(b []byte) (g ground, revision uint64, err error) {
	var r groundRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return ground{}, 0, err
	}
	if r.Format != format {
		return ground{}, 0, fmt.Errorf("it has format %d, not %d", r.Format, format)
	}
	g = ground{incarnation: r.Incarnation, known: r.Known, declared: rangesOf(r.Declared), explicit: rangesOf(r.Explicit), epochs: map[uint64][]ring.HashRange{}}
	for _, p := range r.Given {
		g.given = withPart(g.given, rangesOf(p.Ranges), p.Node)
	}
	for _, p := range r.Taken {
		g.taken = withPart(g.taken, rangesOf(p.Ranges), p.Node)
	}
	for _, e := range r.Epochs {
		g.raise(rangesOf(e.Ranges), e.Epoch)
	}
	for _, p := range r.Residue {
		g.addResidue(residue{Residue{rangesOf(p.Ranges), p.Sequence, time.UnixMilli(p.SinceMillis)}, p.Dropping})
	}
	return g, r.Revision, nil
}

// newest returns what decode makes of the newest sibling of a record, with its revision; ok is false
// when it was deleted.
func newest[T any](rec causal.Record, decode func([]byte) (T, uint64, error)) (value T, revision uint64, ok bool, err error) {
	for i := range rec.Siblings {
		if rec.Siblings[i].Tombstone {
			continue
		}
		v, rev, err := decode(rec.Siblings[i].Value)
		if err != nil {
			return value, 0, false, err
		}
		if !ok || rev > revision {
			value, revision, ok = v, rev, true
		}
	}
	return value, revision, ok, nil
}

// moveOf returns the id of the move in the key of a fact.
func moveOf(key string) (string, bool) { return strings.CutPrefix(key, movePrefix) }

// maxEpoch leaves room for one above it.
const maxEpoch = math.MaxUint64 - 1
