package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"runtime/debug"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs/crashfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
)

// ledger is the changes of a workload in their order. State i is the content after the first i.
type ledger struct {
	mu      sync.Mutex
	changes [][]op
	acked   int // durable, as the engine said
}

func (h *ledger) begin(ops []op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.changes = append(h.changes, ops)
}

// ack says that everything that was begun is durable.
func (h *ledger) ack() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.acked = len(h.changes)
}

func (h *ledger) durable() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.acked
}

func (h *ledger) begun() [][]op {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changes[:len(h.changes):len(h.changes)]
}

// find returns which state in [from, len(changes)] the content is, or -1.
func find(content map[string]string, changes [][]op, from int) int {
	m := newModel()
	for i := 0; ; i++ {
		if i >= from && sameContent(content, m) {
			return i
		}
		if i == len(changes) {
			return -1
		}
		m.apply(changes[i], ikey.Seq(i+1))
	}
}

func sameContent(content map[string]string, m *model) bool {
	n := 0
	for _, k := range m.sorted {
		want := m.get(k, ikey.MaxSeq)
		if want == nil {
			continue
		}
		n++
		if got, ok := content[k]; !ok || got != string(want) {
			return false
		}
	}
	return n == len(content)
}

func contentOf(e *Engine) (map[string]string, error) {
	it, err := e.NewIter(IterOptions{})
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for ok := it.First(); ok; ok = it.Next() {
		out[string(it.Key())] = string(it.Value())
	}
	return out, it.Close()
}

// crashTest cuts the power at operations of a workload and recovers from what may be left.
type crashTest struct {
	t    *testing.T
	disk *crashfs.FS
	h    ledger

	mu          sync.Mutex
	rng         *rand.Rand
	every       int // one in so many operations
	points      int
	recoveries  int
	nested      int
	failed      bool
	checkpoints map[string]int // finished checkpoints, with the state they hold at least
}

func crashOptions(fs *crashfs.FS, rng *rand.Rand) Options {
	o := smallOptions(fs)
	o.Rand = rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64()))
	o.LogSegmentBytes, o.MemtableBytes, o.TableBytes = 8<<10, 4<<10, 4<<10
	o.BlockCacheBytes, o.RowCacheBytes = -1, 16<<10
	o.L0Trigger, o.L0Slow, o.L0Stop = 2, 50, 100
	return o
}

// checkOptions are for engines that only look at an image.
func checkOptions(fs *crashfs.FS, rng *rand.Rand) Options {
	o := crashOptions(fs, rng)
	o.NoAutoCompaction, o.KeepMemtablesAtClose, o.RowCacheBytes = true, true, -1
	o.Jobs.Mode = jobs.ModeNever
	return o
}

// hook is called before each mutating operation, from whatever goroutine does it.
func (c *crashTest) hook(op crashfs.Op) {
	c.mu.Lock()
	defer c.mu.Unlock()
	every := c.every
	if !strings.Contains(op.Name, "/log/") {
		every = max(every/8, 1) // most operations are writes and syncs of the log
	}
	if c.rng.IntN(every) == 0 {
		c.cutLocked(fmt.Sprintf("before %s of %s (operation %d)", op.Kind, op.Name, op.Index))
	}
}

// cut cuts the power at a moment that the workload chooses.
func (c *crashTest) cut(when string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cutLocked(when)
}

func (c *crashTest) cutLocked(when string) {
	if c.failed {
		return
	}
	c.points++
	var all []*recovery
	for _, mode := range crashfs.Modes() {
		r := &recovery{crashTest: c, mode: mode, rng: rand.New(rand.NewPCG(c.rng.Uint64(), 9))}
		r.durable = c.h.durable() // before the image: an acknowledgement may come any time
		r.image = c.disk.CrashImage(mode, c.rng)
		all = append(all, r)
	}
	var running sync.WaitGroup
	for worker := range 2 {
		running.Go(func() {
			for i := worker; i < len(all); i += 2 {
				all[i].err = all[i].run()
			}
		})
	}
	running.Wait()
	for _, r := range all {
		c.recoveries++
		if r.second != nil {
			c.nested++
		}
		if r.err != nil && !c.failed {
			c.failed = true
			c.t.Errorf("power cut %s, %v: %v", when, r.mode, r.err)
		}
	}
}

// recovery is the recovery from one image of one power cut.
type recovery struct {
	*crashTest
	mode    crashfs.Mode
	rng     *rand.Rand
	image   *crashfs.FS
	durable int
	second  *crashfs.FS // what a power cut in the recovery left
	err     error
}

// run opens the image and checks it; some recoveries are cut as well.
func (c *recovery) run() error {
	image, durable := c.image, c.durable
	untouched := image.CrashImage(crashfs.KeepAll, c.rng)
	again := -1
	if c.rng.IntN(4) == 0 {
		again = c.rng.IntN(12)
	}
	var mu sync.Mutex
	var second *crashfs.FS // a background goroutine may be the one that takes it
	rng := rand.New(rand.NewPCG(c.rng.Uint64(), 10))
	image.SetHook(func(op crashfs.Op) {
		if op.Index == again {
			mu.Lock()
			defer mu.Unlock()
			modes := crashfs.Modes()
			second = image.CrashImage(modes[rng.IntN(len(modes))], rng)
		}
	})
	content, err := c.openAndRead(image)
	image.SetHook(nil)
	mu.Lock()
	c.second = second
	mu.Unlock()
	if err != nil {
		return err
	}
	changes := c.h.begun()
	state := find(content, changes, durable)
	if state < 0 {
		return c.explain(content, changes, durable)
	}
	if c.second != nil {
		content, err := c.openAndRead(c.second)
		if err != nil {
			return fmt.Errorf("power cut in the recovery: %w", err)
		}
		if find(content, changes, durable) < 0 {
			return fmt.Errorf("power cut in the recovery: %w", c.explain(content, changes, durable))
		}
	}
	// What a recovery has shown to readers must not vanish with the next power cut.
	content, err = c.openAndRead(image.CrashImage(crashfs.DropUnsynced, c.rng))
	if err != nil {
		return fmt.Errorf("power cut after the recovery: %w", err)
	}
	if find(content, changes, state) != state {
		return fmt.Errorf("power cut after the recovery: %w", c.explain(content, changes, state))
	}
	if c.rng.IntN(4) == 0 {
		if err := c.goOn(untouched, changes, state); err != nil {
			return fmt.Errorf("writes after the recovery: %w", err)
		}
	}
	return c.openCheckpoints(image)
}

// goOn opens an image and writes until every log file that the cut left is used again; then the power
// is cut once more. Nothing may be lost, old or new.
func (c *recovery) goOn(image *crashfs.FS, changes [][]op, state int) error {
	o := crashOptions(image, c.rng)
	o.MemtableBytes = 1 << 20 // what is written is in the log only
	if c.rng.IntN(2) == 0 {
		o.LogPrewrite = commitlog.PrewriteAlways
	}
	e, err := Open(testDir, o)
	if err != nil {
		return fmt.Errorf("the store does not open: %w", err)
	}
	value := rec(string(randomValue(c.rng, 3<<10)))
	key := func(i int) string { return fmt.Sprintf("u\x00new%02d", i) }
	const writes = 16 // a few in a segment
	for i := range writes {
		var b Batch
		b.Set([]byte(key(i)), value)
		if err := e.Apply(&b, SyncDefault); err != nil {
			return errors.Join(err, e.Close())
		}
	}
	image = image.CrashImage(crashfs.DropUnsynced, c.rng)
	if err := e.Close(); err != nil {
		return err
	}
	content, err := c.openAndRead(image)
	if err != nil {
		return err
	}
	for i := range writes {
		if content[key(i)] != string(value) {
			return fmt.Errorf("%q is lost", key(i))
		}
		delete(content, key(i))
	}
	if find(content, changes[:state], state) != state {
		return c.explain(content, changes, state)
	}
	return nil
}

// openAndRead opens an image, reads everything, and closes.
func (c *recovery) openAndRead(image *crashfs.FS) (map[string]string, error) {
	e, err := Open(testDir, checkOptions(image, c.rng))
	if err != nil {
		return nil, fmt.Errorf("the store does not open: %w", err)
	}
	_, pinned := e.manifest.NodeMeta()[metaPin+"all"]
	content, err := contentOf(e)
	if err == nil && pinned {
		err = c.checkFeed(e, content)
	}
	if c.rng.IntN(8) == 0 && err == nil {
		findings, cerr := e.Check(context.Background(), CheckOptions{})
		for _, f := range findings {
			if !f.Harmless {
				cerr = errors.Join(cerr, fmt.Errorf("check: %+v", f))
			}
		}
		err = cerr
	}
	return content, errors.Join(err, e.Close())
}

// checkFeed replays the change feed, which is pinned from the first change on, and compares.
func (c *crashTest) checkFeed(e *Engine, content map[string]string) error {
	tail, err := e.Tail(1)
	if err != nil {
		return fmt.Errorf("feed: %w", err)
	}
	m, last := newModel(), ikey.Seq(0)
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // Next does not wait
	for err == nil {
		var ch Change
		if ch, err = tail.Next(ctx); err != nil {
			break
		}
		if ch.Seq < last {
			err = fmt.Errorf("sequence %d after %d", ch.Seq, last)
		}
		last = ch.Seq
		o := op{kind: ch.Kind, key: string(ch.Key), record: bytes.Clone(ch.Value)}
		if ch.Kind == ikey.KindRangeDelete {
			o.end, o.record = string(ch.Value), nil
		}
		m.apply([]op{o}, last)
	}
	if cerr := tail.Close(); !errors.Is(err, context.Canceled) || cerr != nil {
		return fmt.Errorf("feed: %w", errors.Join(err, cerr))
	}
	if !sameContent(content, m) {
		return fmt.Errorf("feed: its changes do not lead to the content: %s", difference(content, m))
	}
	return nil
}

func (c *crashTest) explain(content map[string]string, changes [][]op, durable int) error {
	m := newModel()
	for i, ops := range changes[:durable] {
		m.apply(ops, ikey.Seq(i+1))
	}
	return fmt.Errorf("the content is none of the states %d to %d: %s", durable, len(changes), difference(content, m))
}

// difference says how the content differs from a model.
func difference(content map[string]string, m *model) (text string) {
	for _, k := range m.sorted {
		want := m.get(k, ikey.MaxSeq)
		if got, ok := content[k]; ok != (want != nil) || got != string(want) {
			text += fmt.Sprintf(" %q is %.60q, not %.60q;", k, got, want)
		}
	}
	for k := range content {
		if m.get(k, ikey.MaxSeq) == nil {
			text += fmt.Sprintf(" %q is there;", k)
		}
	}
	return text[:min(len(text), 1500)]
}

// openCheckpoints opens what checkpoints the image has: a name means a whole one.
func (c *recovery) openCheckpoints(image *crashfs.FS) error {
	for dir, state := range c.checkpoints {
		if _, err := image.Stat(dir); errors.Is(err, fs.ErrNotExist) && state < 0 {
			continue
		}
		e, err := Open(dir, checkOptions(image, c.rng))
		if err != nil {
			return fmt.Errorf("checkpoint %s does not open: %w", dir, err)
		}
		content, err := contentOf(e)
		if err = errors.Join(err, e.Close()); err != nil {
			return err
		}
		if find(content, c.h.begun(), max(state, 0)) < 0 {
			return fmt.Errorf("checkpoint %s: %w", dir, c.explain(content, c.h.begun(), max(state, 0)))
		}
	}
	return nil
}

// workload does steps that cover what the engine does to a disk.
type workload struct {
	c    *crashTest
	e    *Engine
	rng  *rand.Rand
	opts func() Options
	n    int
}

func (w *workload) open() {
	e, err := Open(testDir, w.opts())
	require.NoError(w.c.t, err)
	w.e = e
}

func (w *workload) key() string { return fmt.Sprintf("t\x00k%02d", w.rng.IntN(60)) }

func (w *workload) value() []byte {
	size := w.rng.IntN(200)
	if w.rng.IntN(30) == 0 {
		size = 6 << 10 // larger than a memtable
	}
	return randomRecord(w.rng, size)
}

func (w *workload) ops() []op {
	var ops []op
	for range 1 + w.rng.IntN(4) {
		o := op{kind: ikey.KindSet, key: w.key(), record: w.value()}
		switch w.rng.IntN(10) {
		case 0, 1:
			o.kind = ikey.KindMerge
		case 2:
			o.kind, o.record = ikey.KindDelete, nil
		case 3:
			if w.rng.IntN(3) == 0 {
				o = op{kind: ikey.KindRangeDelete, key: o.key, end: o.key + "5"}
			}
		}
		ops = append(ops, o)
	}
	return ops
}

func (w *workload) write(wait bool) {
	ops := w.ops()
	var b Batch
	for _, o := range ops {
		addTo(&b, o)
	}
	w.c.h.begin(ops)
	p, err := w.e.Submit(&b)
	require.NoError(w.c.t, err)
	if wait {
		require.NoError(w.c.t, p.Wait())
		w.c.h.ack()
	}
}

func (w *workload) step() {
	t, ctx := w.c.t, context.Background()
	w.n++
	switch r := w.rng.IntN(100); {
	case r < 70:
		w.write(true)
	case r < 80:
		w.write(false)
	case r < 86:
		require.NoError(t, w.e.Flush(ctx))
		w.c.h.ack()
	case r < 89:
		require.NoError(t, w.e.Compact(ctx, nil, nil, nil))
		w.c.h.ack()
	case r < 92:
		w.ingest()
	case r < 94:
		w.checkpoint()
	case r < 96:
		s := w.e.NewSnapshot()
		w.write(true)
		require.NoError(t, w.e.Flush(ctx))
		require.NoError(t, s.Close())
	case r < 98:
		require.NoError(t, w.e.SetNodeMeta(map[string]string{"n": fmt.Sprint(w.n)}))
	default:
		require.NoError(t, w.e.Close())
		w.c.h.ack()
		requireNothingPinned(t, w.e)
		w.open()
	}
}

func (w *workload) ingest() {
	t := w.c.t
	byKey := map[string]op{}
	for range 1 + w.rng.IntN(10) {
		k := w.key()
		byKey[k] = op{kind: ikey.KindMerge, key: k, record: w.value()}
	}
	keys := make([]string, 0, len(byKey))
	for k := range byKey {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	name := fmt.Sprintf("incoming%d.sst", w.n)
	f, err := w.c.disk.Create(name, 0o660)
	require.NoError(t, err)
	table := sstable.NewWriter(f, sstable.WriterOptions{})
	var ops []op
	for _, k := range keys {
		ops = append(ops, byKey[k])
		require.NoError(t, table.Add(ikey.Make([]byte(k), 1, ikey.KindMerge), byKey[k].record))
	}
	_, err = table.Finish()
	require.NoError(t, err)
	require.NoError(t, f.Close())
	w.c.h.begin(ops)
	_, err = w.e.Ingest(context.Background(), []string{name})
	require.NoError(t, err)
	w.c.h.ack()
	w.c.cut("after an ingest")
	require.NoError(t, w.c.disk.Remove(name))
}

func (w *workload) checkpoint() {
	dir := path.Join("checkpoints", fmt.Sprint(w.n))
	w.c.mu.Lock()
	if len(w.c.checkpoints) > 1 {
		w.c.mu.Unlock()
		return
	}
	w.c.checkpoints[dir] = -1
	w.c.mu.Unlock()
	require.NoError(w.c.t, w.e.Checkpoint(context.Background(), dir))
	w.c.mu.Lock()
	w.c.checkpoints[dir] = len(w.c.h.begun())
	w.c.mu.Unlock()
	w.c.h.ack()
	w.c.cut("after a checkpoint")
}

func runCrashTest(t *testing.T, seed uint64, steps, every int) *crashTest {
	rng := rand.New(rand.NewPCG(seed, 7))
	c := &crashTest{t: t, disk: crashfs.New(), rng: rand.New(rand.NewPCG(seed, 8)), every: every, checkpoints: map[string]int{}}
	require.NoError(t, c.disk.MkdirAll("checkpoints", 0o770))
	c.disk.SetHook(c.hook)
	w := &workload{c: c, rng: rng}
	w.opts = func() Options { return crashOptions(c.disk, rng) }
	w.open()
	if seed%2 == 0 {
		require.NoError(t, w.e.PinTail("all", 1))
	} // else: segments are trimmed and used again
	for range steps {
		w.step()
		c.mu.Lock()
		failed := c.failed
		c.mu.Unlock()
		if failed {
			break
		}
	}
	require.NoError(t, w.e.Close())
	c.h.ack()
	return c
}

func TestPowerCutLosesNothingAndResurrectsNothing(t *testing.T) {
	// The promise that everything else is for: a power cut at any operation, whatever the disk kept of
	// what was not synced, loses no acknowledged write, shows no half of a batch, brings nothing back,
	// and the store opens; also when the recovery itself is cut.
	defer debug.SetGCPercent(debug.SetGCPercent(800)) // thousands of small stores: garbage is all there is
	seeds, steps, every := 6, 60, 4
	if os.Getenv("PAIRDB_LONG") != "" {
		seeds, steps, every = 12, 120, 1
	}
	var points, recoveries, nested, operations int
	for seed := range seeds {
		c := runCrashTest(t, uint64(seed), steps, every)
		points, recoveries, nested = points+c.points, recoveries+c.recoveries, nested+c.nested
		operations += c.disk.Operations()
		if t.Failed() {
			t.Logf("seed %d", seed)
			break
		}
	}
	t.Logf("%d operations, %d crash points × %d images, %d recoveries, %d of them cut again", operations, points, len(crashfs.Modes()), recoveries, nested)
}
