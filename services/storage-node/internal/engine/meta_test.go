package engine

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs/crashfs"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

var (
	metaSeed = flag.Uint64("meta.seed", 0, "replay the metamorphic test with this seed; 0: from the clock")
	metaOps  = flag.Int("meta.ops", 0, "operations per option set; 0: the short form, or PAIRDB_LONG")
	metaSet  = flag.Int("meta.set", -1, "run this option set only")
)

// metaSets is how many option sets one run covers: the fixed corner cases, then random ones.
const metaSets = 28

// metaBudget returns the operations per option set: 7,500 in the short form, which makes 210,000;
// PAIRDB_LONG is either a number of operations per set or anything else for 750,000 (21 million).
func metaBudget(t *testing.T) int {
	if *metaOps > 0 {
		return *metaOps
	}
	switch long := os.Getenv("PAIRDB_LONG"); {
	case long != "":
		if n, err := strconv.Atoi(long); err == nil && n > 1 {
			return n
		}
		return 750_000
	case testing.Short():
		return 500
	}
	t.Log("short form; PAIRDB_LONG=1 runs the long one")
	return 7_500
}

// The engine must answer as a map does, whatever its options are, whoever compacts, and wherever
// it crashes.
func TestEngineEqualsModel(t *testing.T) {
	seed := *metaSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	budget := metaBudget(t)
	t.Logf("replay with -meta.seed=%d -meta.ops=%d", seed, budget)
	total := metaCounts{}
	for i := range metaSets {
		if *metaSet >= 0 && i != *metaSet {
			continue
		}
		o := metaOptions(i, rand.New(rand.NewPCG(seed, uint64(i))))
		ok := t.Run(fmt.Sprintf("set=%d", i), func(t *testing.T) {
			t.Logf("-meta.seed=%d -meta.set=%d: %s", seed, i, o)
			before := goleak.IgnoreCurrent()
			w := newWorld(t, o, rand.New(rand.NewPCG(seed, uint64(1000+i))))
			w.run(budget)
			goleak.VerifyNone(t, before)
			total.add(w.counts)
		})
		if !ok {
			t.Fatalf("replay with -meta.seed=%d -meta.ops=%d -meta.set=%d", seed, budget, i)
		}
	}
	t.Logf("seed %d: %s", seed, total)
}

// metaCounts says what was done.
type metaCounts map[string]int

func (c metaCounts) add(o metaCounts) {
	for k, n := range o {
		c[k] += n
	}
}

func (c metaCounts) String() string {
	var b bytes.Buffer
	sum := 0
	names := make([]string, 0, len(c))
	for k := range c {
		names = append(names, k)
	}
	slices.Sort(names)
	for _, k := range names {
		fmt.Fprintf(&b, " %s=%d", k, c[k])
		if k[0] != '~' {
			sum += c[k]
		}
	}
	return fmt.Sprintf("%d operations:%s", sum, b.String())
}

// world is an engine, what it should hold, and what a test has open.
type world struct {
	t      *testing.T
	o      metaOption
	rng    *rand.Rand
	disk   *crashfs.FS
	fs     *countFS // over disk
	e      *Engine
	worker *externalWorker
	m      *model

	// durable is the newest change that no crash may take.
	durable ikey.Seq
	snaps   []openSnapshot
	iters   []openIter
	counts  metaCounts
	batch   Batch
	buf     []byte
	serial  int // makes names
}

type openSnapshot struct {
	s  *Snapshot
	at ikey.Seq
}

type openIter struct {
	it           *Iter
	at           ikey.Seq
	lower, upper string
	keys         []string
	pos          int // index in keys, -1 when it stands nowhere
}

const metaDir = "db"

func newWorld(t *testing.T, o metaOption, rng *rand.Rand) *world {
	w := &world{t: t, o: o, rng: rng, m: newModel(), counts: metaCounts{}}
	w.mount(crashfs.New())
	return w
}

func (w *world) mount(disk *crashfs.FS) {
	w.disk, w.fs = disk, &countFS{FS: disk}
}

func (w *world) open() {
	opts := w.o.options(w.fs, w.rng)
	e, err := Open(metaDir, opts)
	require.NoError(w.t, err)
	w.e = e
	if w.o.external {
		w.worker = startExternalWorker(e, w.fs, metaDir)
	}
}

// close lets go of everything and ends the engine; nothing may stay pinned.
func (w *world) close() {
	for _, s := range w.snaps {
		require.NoError(w.t, s.s.Close())
	}
	for _, it := range w.iters {
		require.NoError(w.t, it.it.Close())
	}
	w.snaps, w.iters = nil, nil
	if w.worker != nil {
		w.worker.stop()
		w.worker = nil
	}
	require.NoError(w.t, w.e.Close())
	requireNothingPinned(w.t, w.e)
	require.Zero(w.t, w.fs.open.Load(), "files that were left open")
}

// run does n operations and looks at everything at the end.
func (w *world) run(n int) {
	w.open()
	for i := 0; i < n && !w.t.Failed(); i++ {
		w.step()
	}
	w.compareAll()
	w.check()
	w.close()
	findings, err := CheckDir(context.Background(), metaDir, w.fs, CheckOptions{})
	require.NoError(w.t, err)
	require.Empty(w.t, findings)
}

// step does one operation. The weights are of 1,000.
func (w *world) step() {
	switch r := w.rng.IntN(1000); {
	case r < 230:
		w.write("set", w.randomOp(ikey.KindSet))
	case r < 330:
		w.write("merge", w.randomOp(ikey.KindMerge))
	case r < 390:
		w.write("delete", w.randomOp(ikey.KindDelete))
	case r < 400:
		w.write("range delete", w.randomRange())
	case r < 440:
		w.writeBatch()
	case r < 460:
		w.writeAtOnce()
	case r < 500:
		w.conditional()
	case r < 760:
		w.get()
	case r < 800:
		w.getLatest()
	case r < 890:
		w.iterate()
	case r < 950:
		w.moveOpenIter()
	case r < 975:
		w.snapshotRead()
	case r < 987:
		w.toggleSnapshot()
	case r < 991:
		w.flush()
	case r < 993:
		w.compact()
	case r < 996:
		w.ingest()
	case r < 997:
		w.checkpoint()
	case r < 998:
		w.reopen()
	case r < 999:
		w.crash()
	default:
		w.check()
	}
}

func (w *world) count(name string) { w.counts[name]++ }

// trimModel keeps the model small: what neither a crash nor a snapshot can ask for again is dropped.
func (w *world) trimModel() {
	var keep []ikey.Seq
	for _, s := range w.snaps {
		keep = append(keep, s.at)
	}
	for _, it := range w.iters {
		keep = append(keep, it.at)
	}
	w.m.trim(keep, w.durable)
}

func (w *world) equal(key string, want, got []byte, found bool) {
	if found != (want != nil) || found && !bytes.Equal(want, got) {
		w.t.Fatalf("key %q: found=%v %x, want present=%v %x; states %v; tables:\n%s", key, found, got, want != nil, want, w.m.keys[key], w.tables())
	}
}

func (w *world) tables() string {
	tables, err := w.e.Tables()
	if err != nil {
		return err.Error()
	}
	var b bytes.Buffer
	for _, t := range tables {
		fmt.Fprintf(&b, "L%d %06d [%s-%s] seq %d-%d ranges %d\n", t.Level, t.Num, t.Smallest, t.Largest, t.MinSeq, t.MaxSeq, t.RangeDeletes)
	}
	return b.String()
}

func (w *world) get() {
	w.count("get")
	key := w.key()
	value, found, err := w.e.Get([]byte(key), w.buf)
	require.NoError(w.t, err)
	w.equal(key, w.m.get(key, ikey.MaxSeq), value, found)
	if found {
		w.buf = value
	}
}

func (w *world) getLatest() {
	w.count("get latest")
	key := w.key()
	value, found, at, err := w.e.GetLatest([]byte(key), w.buf)
	require.NoError(w.t, err)
	require.GreaterOrEqual(w.t, at, w.m.last())
	w.equal(key, w.m.get(key, ikey.MaxSeq), value, found)
	if found {
		w.buf = value
	}
}

func (w *world) ctx() context.Context { return context.Background() }

func (w *world) flush() {
	w.count("flush")
	require.NoError(w.t, w.e.Flush(w.ctx()))
	w.durable = w.m.last()
}

func (w *world) compact() {
	w.count("compact")
	var start, end []byte
	if w.rng.IntN(2) == 0 {
		r := w.randomRange()
		start, end = []byte(r.key), []byte(r.end)
	}
	require.NoError(w.t, w.e.Compact(w.ctx(), start, end, nil))
}

// reopen closes and opens the engine: nothing may be lost, whatever the sync mode.
func (w *world) reopen() {
	w.count("reopen")
	w.close()
	w.open()
	w.durable = w.m.last()
	w.compareAll()
}

// crash cuts the power and opens what is left. All that was acknowledged as durable must be there,
// and the rest must be a prefix of what was written: no hole, no half batch.
func (w *world) crash() {
	w.count("crash")
	modes := crashfs.Modes()
	mode := modes[w.rng.IntN(len(modes))]
	image := w.disk.CrashImage(mode, w.rng)
	w.close()
	w.mount(image)
	w.open()
	w.settle(mode)
	w.durable = w.m.last()
	w.compareAll()
}

// settle finds the write up to which the engine recovered, and cuts the model there.
func (w *world) settle(mode crashfs.Mode) {
	got := w.contents(w.e)
	for i := len(w.m.marks) - 1; i >= 0 && w.m.marks[i] >= w.durable; i-- {
		if w.m.marks[i] > w.e.AppliedSeq() {
			continue // a change that made no difference is lost all the same
		}
		if w.matches(got, w.m.marks[i]) {
			if w.m.marks[i] < w.m.last() {
				w.count("~crashes with loss of unsynced writes")
			}
			w.m.cut(w.m.marks[i])
			return
		}
	}
	for _, k := range w.m.sorted {
		if want := w.m.get(k, w.m.last()); got[k] != string(want) {
			w.t.Logf("key %q is %x, at the end it was %x; states %v", k, got[k], want, w.m.keys[k])
		}
	}
	w.t.Fatalf("crash (%v): the content is that of no moment since the last durable write %d (last %d); recovered to %d\n%s",
		mode, w.durable, w.m.last(), w.e.AppliedSeq(), w.tables())
}

func (w *world) contents(e *Engine) map[string]string {
	it, err := e.NewIter(IterOptions{})
	require.NoError(w.t, err)
	out := make(map[string]string)
	for ok := it.First(); ok; ok = it.Next() {
		out[string(it.Key())] = string(it.Value())
	}
	require.NoError(w.t, it.Close())
	return out
}

func (w *world) matches(got map[string]string, at ikey.Seq) bool {
	n := 0
	for _, k := range w.m.sorted {
		if want := w.m.get(k, at); want != nil {
			if v, ok := got[k]; !ok || v != string(want) {
				return false
			}
			n++
		}
	}
	return n == len(got)
}

// checkpoint opens a checkpoint beside the engine and compares it.
func (w *world) checkpoint() {
	w.count("checkpoint")
	w.serial++
	dir := path.Join("checkpoints", strconv.Itoa(w.serial))
	require.NoError(w.t, w.fs.MkdirAll("checkpoints", 0o770))
	require.NoError(w.t, w.e.Checkpoint(w.ctx(), dir))
	c, err := Open(dir, w.o.options(w.fs, w.rng))
	require.NoError(w.t, err)
	require.True(w.t, w.matches(w.contents(c), w.m.last()), "checkpoint differs")
	require.NoError(w.t, c.Close())
	requireNothingPinned(w.t, c)
	require.NoError(w.t, w.fs.RemoveAll(dir))
}

func (w *world) check() {
	w.count("check")
	findings, err := w.e.Check(w.ctx(), CheckOptions{})
	require.NoError(w.t, err)
	require.Empty(w.t, findings)
}
