package picker

import (
	"fmt"
	"slices"
	"time"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

const lastLevel = manifest.NumLevels - 1

// Options are the shape of the tree. Zero values mean the defaults.
type Options struct {
	// L0Trigger is 4 tables in level 0 that are worth a merge, if they have at least three quarters
	// of the bytes of the base level that would be rewritten for them; a quarter if nobody writes.
	L0Trigger int
	// L0Lazy is three times L0Trigger: so many tables are merged whatever they weigh. A filter
	// spares a point read most of them, and a merge of twelve writes a third of what three merges
	// of four do.
	L0Lazy int
	// BaseBytes is 1 GiB, the target of the base level: about twice what level 0 brings at once, and
	// a job of it and level 0 stays within MaxInputBytes. More than half of that is taken as half.
	BaseBytes uint64
	// LevelMultiplier is 10, at most, between neighbouring levels.
	LevelMultiplier int
	// TableBytes is 64 MiB, the size at which outputs are cut.
	TableBytes uint64
	// MaxInputBytes is 2 GiB and MaxOutputs 64 for a job. What MaxOutputs tables of TableBytes can't
	// hold with a quarter to spare is too much input as well.
	MaxInputBytes uint64
	MaxOutputs    int
	// CollectDelay is 24 h: how much older than the cut the oldest tombstone of a table must be
	// before the table is rewritten for it alone, so that a table is not rewritten for each of its
	// tombstones; a 24th of it for tables where every fourth entry is one. Negative: none.
	CollectDelay time.Duration
	// IntraL0 allows merges inside of level 0 when it can't be merged down.
	IntraL0 bool
}

func (o Options) withDefaults() Options {
	def := func(v *uint64, d uint64) {
		if *v == 0 {
			*v = d
		}
	}
	def(&o.BaseBytes, 1<<30)
	def(&o.TableBytes, 64<<20)
	def(&o.MaxInputBytes, 2<<30)
	if o.L0Trigger == 0 {
		o.L0Trigger = 4
	}
	if o.L0Lazy == 0 {
		o.L0Lazy = 3 * o.L0Trigger
	}
	o.L0Lazy = max(o.L0Lazy, o.L0Trigger)
	if o.LevelMultiplier < 2 {
		o.LevelMultiplier = 10
	}
	if o.MaxOutputs == 0 {
		o.MaxOutputs = 64
	}
	if o.CollectDelay == 0 {
		o.CollectDelay = 24 * time.Hour
	}
	o.MaxInputBytes = max(min(o.MaxInputBytes, o.TableBytes*uint64(o.MaxOutputs)*3/4), 1)
	o.BaseBytes = max(min(o.BaseBytes, o.MaxInputBytes/2), 1)
	return o
}

// Facts are what the version does not tell.
type Facts struct {
	// MemMerges are the spans of the fragments in memtables.
	MemMerges []manifest.Span
	// OldestSnapshot and NewestSnapshot are the live snapshots, 0 for none.
	OldestSnapshot, NewestSnapshot ikey.Seq
	// GCBefore is the cut of collection, a hybrid-logical timestamp.
	GCBefore uint64
	// CutsVersion changes whenever the cuts of hash ranges do (compact.Job.Cuts), by which more than age
	// decides what is collected; 0 as long as they are not in force.
	CutsVersion uint64
	// Kept says of tables, by number, that a merge which could have collected something in them did not:
	// its cuts held it back. May be nil.
	Kept map[uint64]Kept
	// Cleaned are the tables at the last level from which a cleanup that is under way has taken what is to
	// go; of Manual.Cleanup. May be nil.
	Cleaned map[uint64]bool
	// RangeDeletes that are durable and visible: tables that one of them covers are dropped
	// unread. May be nil.
	RangeDeletes []ikey.RangeDelete
	// Quiet says that nothing was written lately: there is time for what would not pay otherwise.
	Quiet bool
	// Cursors say for each level where the last pick ended; see Plan.Cursor.
	Cursors [manifest.NumLevels][]byte
}

// Kept is what a merge that left collectable things behind went by.
type Kept struct {
	// CutsVersion and GCBefore are as in its Facts.
	CutsVersion, GCBefore uint64
}

// Kind is what is to be done.
type Kind uint8

const (
	// Merge reads the inputs and writes their union to OutputLevel.
	Merge Kind = 1
	// Move puts the inputs at OutputLevel as they are: an edit, no job.
	Move Kind = 2
	// Drop takes the inputs out of the version: a range delete covers all they have.
	Drop Kind = 3
)

// String returns the name that status prints.
func (k Kind) String() string {
	switch k {
	case Merge:
		return "merge"
	case Move:
		return "move"
	case Drop:
		return "drop"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Inputs are the tables of one level, in the order of the level.
type Inputs struct {
	Level  int
	Tables []*manifest.Table
}

// Plan is a decision.
type Plan struct {
	Kind        Kind
	Inputs      []Inputs // ascending levels
	OutputLevel int
	// TargetBytes is where outputs are cut, Options.TableBytes unless the plan splits a table.
	TargetBytes uint64
	// Span holds all inputs, and so all outputs.
	Span manifest.Span
	// Bottommost are the ranges of a merge where nothing older, and no fragment, is outside of it.
	Bottommost []compact.Range
	// Score orders plans: the more urgent, the higher; from 1 on the tree is out of shape.
	Score  float64
	Reason string
	// Cursor is what Facts.Cursors[Inputs[0].Level] should be once the plan was taken.
	Cursor []byte
}

// Bytes returns the size of all inputs.
func (p *Plan) Bytes() (n uint64) {
	for _, in := range p.Inputs {
		n += sizes(in.Tables)
	}
	return n
}

// Tables returns all inputs.
func (p *Plan) Tables() []*manifest.Table {
	var all []*manifest.Table
	for _, in := range p.Inputs {
		all = append(all, in.Tables...)
	}
	return all
}

// Bottom reports whether nothing outside of a merge has anything older in all of its span, so that all
// that may be collected is.
func (p *Plan) Bottom() bool { return p.Kind == Merge && covers(p.Bottommost, p.Span) }

// Edit returns the edit of a Move or Drop; for a merge it deletes the inputs, and the caller adds the
// outputs at OutputLevel.
func (p *Plan) Edit() manifest.Edit {
	var e manifest.Edit
	for _, in := range p.Inputs {
		for _, t := range in.Tables {
			e.Deleted = append(e.Deleted, manifest.Deleted{Level: in.Level, Num: t.Num})
			if p.Kind == Move {
				e.Added = append(e.Added, manifest.Added{Level: p.OutputLevel, Table: t})
			}
		}
	}
	return e
}

// Busy is what running jobs hold. The zero value is nothing. It is for one goroutine at a time.
type Busy struct {
	tables map[uint64]bool
	claims []*Plan
}

// Add makes the tables of p busy, and claims its span at the output level.
func (b *Busy) Add(p *Plan) {
	if b.tables == nil {
		b.tables = make(map[uint64]bool)
	}
	for _, t := range p.Tables() {
		b.tables[t.Num] = true
	}
	b.claims = append(b.claims, p)
}

// Remove ends what Add began.
func (b *Busy) Remove(p *Plan) {
	i := slices.Index(b.claims, p)
	if i < 0 {
		return
	}
	b.claims = slices.Delete(b.claims, i, i+1)
	for _, t := range p.Tables() {
		delete(b.tables, t.Num)
	}
}

// Table reports whether a table is in a job.
func (b *Busy) Table(num uint64) bool { return b.tables[num] }

// Jobs returns how many plans run.
func (b *Busy) Jobs() int { return len(b.claims) }

// claimed reports whether a running job may write to s at level.
func (b *Busy) claimed(level int, s manifest.Span) bool {
	return slices.ContainsFunc(b.claims, func(p *Plan) bool {
		return p.Kind != Drop && p.OutputLevel == level && p.Span.Overlaps(s)
	})
}

// view is the arguments of a pick, with what is derived from them.
type view struct {
	v       *manifest.Version
	busy    *Busy
	o       Options
	f       Facts
	targets Targets
}

func newView(v *manifest.Version, busy *Busy, o Options, f Facts) *view {
	if busy == nil {
		busy = &Busy{}
	}
	o = o.withDefaults()
	return &view{v: v, busy: busy, o: o, f: f, targets: targets(v, o)}
}

// Pick returns the most urgent plan that can run beside what is busy.
func Pick(v *manifest.Version, busy *Busy, o Options, f Facts) (Plan, bool) {
	w := newView(v, busy, o, f)
	if p, ok := w.pickDrop(); ok {
		return p, true
	}
	scores := w.scores()
	order := make([]int, 0, lastLevel)
	for level := range lastLevel {
		if scores[level] >= 1 {
			order = append(order, level)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case scores[a] > scores[b]:
			return -1
		case scores[a] < scores[b]:
			return 1
		}
		return 0
	})
	for _, level := range order {
		var p Plan
		var ok bool
		if level == 0 {
			p, ok = w.pickL0()
		} else {
			p, ok = w.pickLevel(level)
		}
		if ok {
			return w.finish(p, scores[level]), true
		}
	}
	return w.pickCleanup()
}

// finish fills in what follows from the inputs.
func (w *view) finish(p Plan, score float64) Plan {
	p.Score = score
	p.Inputs = slices.DeleteFunc(p.Inputs, func(in Inputs) bool { return len(in.Tables) == 0 })
	if p.TargetBytes == 0 {
		p.TargetBytes = w.o.TableBytes
	}
	all := p.Tables()
	p.Span = spanOf(all)
	if p.Kind == Merge {
		p.Bottommost = Bottommost(w.v, all, p.OutputLevel, w.f.MemMerges)
	}
	if in := p.Inputs[0]; in.Level > 0 {
		p.Cursor = slices.Clone(in.Tables[len(in.Tables)-1].Largest.User)
	}
	return p
}

// free reports whether all tables may be part of a job.
func (w *view) free(tables []*manifest.Table) bool {
	return !slices.ContainsFunc(tables, func(t *manifest.Table) bool { return t.Quarantined || w.busy.tables[t.Num] })
}

func spanOf(tables []*manifest.Table) manifest.Span {
	s := tables[0].Span()
	for _, t := range tables[1:] {
		s = s.Union(t.Span())
	}
	return s
}

func sizes(tables []*manifest.Table) (n uint64) {
	for _, t := range tables {
		n += t.Size
	}
	return n
}
