package picker

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// tree is a store of which only keys and sequences exist: every entry is one byte, merges keep all.
type tree struct {
	t       *rapid.T
	rng     *rand.Rand
	o       Options
	content map[uint64][]ikey.Key
	v       *manifest.Version
	busy    Busy
	running []*Plan
	next    uint64
	seq     ikey.Seq
	cursors [manifest.NumLevels][]byte
	// tombstones: entries with a sequence that 3 divides are collectable, and collected up to cut.
	tombstones bool
	cut        ikey.Seq
	facts      Facts
}

func (w *tree) isTombstone(k ikey.Key) bool { return w.tombstones && k.Seq()%3 == 0 }

func (w *tree) table(keys []ikey.Key) *manifest.Table {
	slices.SortFunc(keys, ikey.Compare)
	w.next++
	t := &manifest.Table{Num: w.next, Origin: manifest.OriginFlush}
	t.Size, t.Entries, t.Digest = uint64(len(keys)), uint64(len(keys)), w.next
	t.Smallest, t.Largest = keys[0], keys[len(keys)-1]
	t.MinSeq, t.MaxSeq = keys[0].Seq(), keys[0].Seq()
	for _, k := range keys {
		t.MinSeq, t.MaxSeq = min(t.MinSeq, k.Seq()), max(t.MaxSeq, k.Seq())
		if w.isTombstone(k) {
			t.Tombstones, t.OldestCollectible = t.Tombstones+1, 1
		}
	}
	w.content[t.Num] = keys
	return t
}

// replace makes a version without the tables of p and with more, checks it, and makes it current.
func (w *tree) replace(gone []*manifest.Table, add []manifest.Added) {
	var levels [manifest.NumLevels][]*manifest.Table
	for level, tables := range w.v.Levels {
		for _, t := range tables {
			if !slices.Contains(gone, t) {
				levels[level] = append(levels[level], t)
			}
		}
	}
	for _, a := range add {
		levels[a.Level] = append(levels[a.Level], a.Table)
	}
	w.v = manifest.NewVersion(levels)
	require.NoError(w.t, manifest.CheckInvariants(w.v))
	w.checkOrder()
}

// checkOrder looks at every key: what a read meets first must be newest.
func (w *tree) checkOrder() {
	seen := map[string]ikey.Seq{}
	visit := func(level int, t *manifest.Table) {
		for _, k := range w.content[t.Num] {
			if s, ok := seen[string(k.User)]; ok {
				require.Less(w.t, k.Seq(), s, "key %q in table %06d at level %d", k.User, t.Num, level)
			}
			seen[string(k.User)] = k.Seq()
		}
	}
	for _, t := range slices.Backward(w.v.Levels[0]) {
		visit(0, t)
	}
	for level := 1; level < manifest.NumLevels; level++ {
		for _, t := range w.v.Levels[level] {
			visit(level, t)
		}
	}
}

func (w *tree) key() []byte { return fmt.Appendf(nil, "%03d", w.rng.IntN(300)) }

func (w *tree) flush() {
	var keys []ikey.Key
	base := w.key()
	narrow := w.rng.IntN(3) == 0
	for range 1 + w.rng.IntN(20) {
		w.seq++
		user := w.key()
		if narrow {
			user = append(slices.Clone(base), byte('a'+w.rng.IntN(20)))
		}
		keys = append(keys, ikey.Make(user, w.seq, ikey.KindSet))
	}
	w.replace(nil, []manifest.Added{{Level: 0, Table: w.table(keys)}})
}

// start picks and, unless it is done at once, lets it run.
func (w *tree) start() bool {
	f := w.facts
	f.Cursors = w.cursors
	p, ok := Pick(w.v, &w.busy, w.o, f)
	if !ok {
		return false
	}
	w.take(&p)
	return true
}

func (w *tree) take(p *Plan) {
	o := w.o.withDefaults()
	for _, t := range p.Tables() {
		require.False(w.t, t.Quarantined)
		require.False(w.t, w.busy.Table(t.Num), "table %06d is in two jobs", t.Num)
		found, _ := w.v.Find(t.Num)
		require.Same(w.t, t, found)
	}
	w.cursors[p.Inputs[0].Level] = p.Cursor
	if p.Kind == Move {
		w.replace(p.Tables(), p.Edit().Added)
		return
	}
	require.LessOrEqual(w.t, p.Bytes(), o.MaxInputBytes)
	w.busy.Add(p)
	w.running = append(w.running, p)
}

// finish ends a running job: the union of the inputs, cut between keys.
func (w *tree) finish(i int) {
	p := w.running[i]
	w.running = slices.Delete(w.running, i, i+1)
	w.busy.Remove(p)
	if w.rng.IntN(10) == 0 {
		return // it was abandoned
	}
	var all []ikey.Key
	for _, t := range p.Tables() {
		all = append(all, w.content[t.Num]...)
	}
	slices.SortFunc(all, ikey.Compare)
	if p.Bottom() {
		all = slices.DeleteFunc(all, func(k ikey.Key) bool { return w.isTombstone(k) && k.Seq() <= w.cut })
	}
	var add []manifest.Added
	for len(all) > 0 {
		n := min(int(p.TargetBytes), len(all))
		for n < len(all) && string(all[n].User) == string(all[n-1].User) {
			n++
		}
		add = append(add, manifest.Added{Level: p.OutputLevel, Table: w.table(slices.Clone(all[:n]))})
		all = all[n:]
	}
	w.replace(p.Tables(), add)
	for _, a := range add {
		if p.Bottom() && a.Table.Tombstones > 0 {
			w.facts.Kept[a.Table.Num] = Kept{w.facts.CutsVersion, w.facts.GCBefore}
		}
	}
}

func (w *tree) quarantine() {
	var all []*manifest.Table
	for _, tables := range w.v.Levels {
		all = append(all, tables...)
	}
	if len(all) == 0 {
		return
	}
	t := all[w.rng.IntN(len(all))]
	if w.busy.Table(t.Num) {
		return
	}
	_, level := w.v.Find(t.Num)
	q := *t
	q.Quarantined = !t.Quarantined
	w.replace([]*manifest.Table{t}, []manifest.Added{{Level: level, Table: &q}})
}

// The danger: any sequence of flushes, picks, failures and quarantines, with jobs side by side, that
// ends in an overlap, an older version above a newer one, a table in two jobs, or a tree that is
// never in shape.
func TestPlansKeepEveryOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &tree{t: t, content: map[uint64][]ikey.Key{}, v: manifest.NewVersion([manifest.NumLevels][]*manifest.Table{})}
		w.o = Options{TableBytes: 16, BaseBytes: uint64(rapid.SampledFrom([]int{40, 2000}).Draw(t, "base")), LevelMultiplier: 3,
			MaxOutputs: rapid.SampledFrom([]int{8, 64}).Draw(t, "outputs"), L0Lazy: rapid.SampledFrom([]int{4, 8}).Draw(t, "lazy"),
			MaxInputBytes: uint64(rapid.SampledFrom([]int{200, 1000}).Draw(t, "max")), IntraL0: rapid.Bool().Draw(t, "intra")}
		w.rng = rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		damage := rapid.Bool().Draw(t, "damage")
		for range 150 {
			switch n := w.rng.IntN(20); {
			case n < 7:
				w.flush()
			case n < 13:
				w.start()
			case n < 19 && len(w.running) > 0:
				w.finish(w.rng.IntN(len(w.running)))
			case n == 19 && damage:
				w.quarantine()
			}
		}
		w.settle()
		if !damage {
			_, levels := Status(w.v, nil, w.o)
			for level, l := range levels[:lastLevel] {
				require.Less(t, l.Score, 1.0, "level %d\n%s", level, w.v)
			}
			w.compactAll()
		}
	})
}

// The danger: tables are rewritten without an end for tombstones that a replica which is away holds back;
// or those that may go at last never do.
func TestWhatCutsHoldBackIsTriedOnceADay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &tree{t: t, content: map[uint64][]ikey.Key{}, v: manifest.NewVersion([manifest.NumLevels][]*manifest.Table{}), tombstones: true}
		w.o = Options{TableBytes: 16, BaseBytes: 40, LevelMultiplier: 3, MaxInputBytes: 1000, L0Lazy: 4}
		w.rng = rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		const day = uint64(24*60*60*1000) << 16
		w.facts = Facts{GCBefore: 100 * day, CutsVersion: 1, Kept: map[uint64]Kept{}}
		w.cut = ikey.Seq(rapid.IntRange(0, 300).Draw(t, "cut"))
		for range 60 {
			w.flush()
			for w.rng.IntN(3) > 0 && w.start() {
			}
			if len(w.running) > 0 && w.rng.IntN(2) == 0 {
				w.finish(w.rng.IntN(len(w.running)))
			}
		}
		w.settle() // ends
		require.False(t, w.start())

		// Every hour something else was compared: that alone is no reason.
		w.facts.CutsVersion++
		w.facts.GCBefore += day / 24
		w.settle()
		tables := w.v.Count()
		written := w.next
		for range 22 {
			w.facts.CutsVersion++
			w.facts.GCBefore += day / 24
			w.settle()
		}
		require.Equal(t, tables, w.v.Count())
		require.Equal(t, written, w.next, "nothing was written")

		// A day later everything may go. Only tables that level 0 keeps, where nothing is cleaned, have any left.
		w.cut = w.seq
		w.facts.CutsVersion++
		w.facts.GCBefore += 2 * day
		w.settle()
		for level, tables := range w.v.Levels {
			for _, table := range tables {
				require.True(t, level == 0 || table.Tombstones == 0, "table %06d at level %d", table.Num, level)
			}
		}
	})
}

// settle runs everything that there is to run; that must end.
func (w *tree) settle() {
	for steps := 0; w.start() || len(w.running) > 0; steps++ {
		require.Less(w.t, steps, 5000)
		if len(w.running) > 0 {
			w.finish(0)
		}
	}
}

// compactAll is a manual compaction of everything: all ends up at the last level.
func (w *tree) compactAll() {
	m := Manual{Before: w.next + 1, Seq: w.seq}
	for steps := 0; ; steps++ {
		require.Less(w.t, steps, 5000)
		p, next, outcome := PickManual(w.v, &w.busy, w.o, Facts{}, m)
		require.NotEqual(w.t, Blocked, outcome)
		m = next
		if outcome == Done {
			break
		}
		require.NotEqual(w.t, Impossible, outcome, "%s", w.v)
		w.take(&p)
		for len(w.running) > 0 {
			before := w.v
			w.finish(0)
			if w.v == before { // abandoned
				m = Manual{Before: w.next + 1, Seq: w.seq}
			}
		}
	}
	require.Equal(w.t, w.v.Count(), len(w.v.Levels[lastLevel]), "%s", w.v)
}

// The danger: a tombstone is collected where something older, or a fragment, is outside of the job.
func TestBottommostLeavesOutWhatIsOutside(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		span := func(name string) (low, high byte) {
			a, b := rapid.ByteRange('a', 'z').Draw(t, name), rapid.ByteRange('a', 'z').Draw(t, name)
			return min(a, b), max(a, b)
		}
		var levels [manifest.NumLevels][]*manifest.Table
		table := func(num uint64, low, high byte, seq ikey.Seq) *manifest.Table {
			tab := &manifest.Table{Num: num, Origin: manifest.OriginFlush}
			tab.Smallest, tab.Largest = ikey.Make([]byte{low}, seq, 1), ikey.Make([]byte{high}, seq, 1)
			tab.MinSeq, tab.MaxSeq, tab.Size = seq, seq, 1
			return tab
		}
		for i := range rapid.IntRange(1, 8).Draw(t, "tables") {
			low, high := span("bounds")
			tab := table(uint64(i+1), low, high, ikey.Seq(rapid.IntRange(1, 9).Draw(t, "seq")))
			tab.Merges = uint64(rapid.IntRange(0, 1).Draw(t, "merges"))
			tab.Quarantined = rapid.IntRange(0, 5).Draw(t, "quarantined") == 0
			level := rapid.SampledFrom([]int{0, 0, 4, 5, 6}).Draw(t, "level")
			levels[level] = append(levels[level], tab)
		}
		low, high := span("job")
		job := table(100, low, high, 5)
		output := rapid.SampledFrom([]int{0, 5, 6}).Draw(t, "output")
		levels[output] = append(levels[output], job)
		memLow, memHigh := span("memtable")
		mem := []manifest.Span{{Start: []byte{memLow}, End: []byte{memHigh}}}
		got := Bottommost(manifest.NewVersion(levels), []*manifest.Table{job}, output, mem)
		for k := byte('a'); k <= 'z'; k++ {
			want := low <= k && k <= high && (k < memLow || k > memHigh)
			for level, tables := range levels {
				for _, o := range tables {
					if o != job && o.Smallest.User[0] <= k && k <= o.Largest.User[0] &&
						(level > output || level == 0 && o.MinSeq <= 5 || o.Merges > 0 || o.Quarantined) {
						want = false
					}
				}
			}
			in := 0
			for _, r := range got {
				if cmp.Compare(string(r.Start), string(k)) <= 0 && (len(r.End) == 0 || string(k) < string(r.End)) {
					in++
				}
			}
			require.Equal(t, map[bool]int{true: 1}[want], in, "key %c in %q", k, got)
		}
	})
}
