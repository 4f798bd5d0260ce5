package jobs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
)

const testDir = "data"

// entry is one version of a key.
type entry struct {
	key   string
	seq   ikey.Seq
	value string
}

// testEngine is an Installer that keeps a set of tables: what was installed, released, quarantined.
type testEngine struct {
	t  *testing.T
	fs vfs.FS

	mu          sync.Mutex
	next        uint64
	tables      map[uint64]sstable.Meta
	released    map[uint64]State
	reasons     map[uint64]string
	quarantined []compact.CorruptInput
	events      []Event
	check       func(*Plan) error
	beforeMove  func(*Plan) error // called by Install before anything happens
}

func (e *testEngine) Check(p *Plan) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.check != nil {
		return e.check(p)
	}
	return nil
}

func (e *testEngine) Install(p *Plan, outs []compact.Output, files []string, _ Origin) error {
	e.mu.Lock()
	before := e.beforeMove
	e.mu.Unlock()
	if before != nil {
		if err := before(p); err != nil {
			return err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	require.Len(e.t, files, len(outs))
	for _, in := range p.Job.Inputs {
		_, ok := e.tables[in.Num]
		require.True(e.t, ok, "input %d of job %d is not in the tree", in.Num, p.Job.ID)
	}
	for i, o := range outs {
		e.next++
		if err := e.fs.Rename(files[i], e.path(e.next)); err != nil {
			return err
		}
		e.tables[e.next] = o.Meta
	}
	for _, in := range p.Job.Inputs {
		delete(e.tables, in.Num)
	}
	return nil
}

func (e *testEngine) Quarantine(_ *Plan, corrupt []compact.CorruptInput) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.quarantined = append(e.quarantined, corrupt...)
}

func (e *testEngine) Release(p *Plan, s State, reason string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, twice := e.released[p.Job.ID]
	require.False(e.t, twice, "job %d released twice", p.Job.ID)
	require.True(e.t, s.Terminal())
	e.released[p.Job.ID], e.reasons[p.Job.ID] = s, reason
}

func (e *testEngine) event(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.events = append(e.events, ev)
}

func (e *testEngine) state(id uint64) (State, string, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s, ok := e.released[id]
	return s, e.reasons[id], ok
}

// saw reports whether there was an event of this kind.
func (e *testEngine) saw(kind EventKind) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.ContainsFunc(e.events, func(ev Event) bool { return ev.Kind == kind })
}

func (e *testEngine) path(num uint64) string {
	return path.Join(testDir, compact.TableDir, compact.TableName(num))
}

// table writes an input of the tree.
func (e *testEngine) table(entries ...entry) compact.Input {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.next++
	f, err := e.fs.Create(e.path(e.next), 0o660)
	require.NoError(e.t, err)
	m := writeTable(e.t, f, entries)
	e.tables[e.next] = m
	return compact.Input{Num: e.next, Size: int64(m.Size), Digest: m.Digest, Smallest: m.Smallest, Largest: m.Largest}
}

// plan makes a plan of tables.
func (e *testEngine) plan(inputs ...compact.Input) *Plan {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := &Plan{MinSeq: ikey.MaxSeq, Reason: "test"}
	for _, in := range inputs {
		m := e.tables[in.Num]
		p.Entries += m.Entries
		p.MinSeq, p.MaxSeq = min(p.MinSeq, m.MinSeq), max(p.MaxSeq, m.MaxSeq)
	}
	p.Job = compact.Job{
		Kind: compact.Merge, Inputs: inputs, OutputLevel: 1, MaxOutputs: 4,
		Table: compact.TableOptions{Format: 1, TargetBytes: 1 << 20},
	}
	return p
}

// somePlan is a plan of two overlapping tables of its own, whose keys begin with prefix.
func (e *testEngine) somePlan(prefix string) *Plan {
	var a, b []entry
	for i := range 40 {
		key := fmt.Sprintf("%s%03d", prefix, i)
		a = append(a, entry{key, ikey.Seq(100 + i), "old"})
		if i%2 == 0 {
			b = append(b, entry{key, ikey.Seq(200 + i), "new"})
		}
	}
	return e.plan(e.table(a...), e.table(b...))
}

func writeTable(t *testing.T, f vfs.File, entries []entry) sstable.Meta {
	t.Helper()
	w := sstable.NewWriter(f, sstable.WriterOptions{})
	for _, e := range entries {
		require.NoError(t, w.Add(ikey.Make([]byte(e.key), e.seq, ikey.KindSet), []byte(e.value)))
	}
	m, err := w.Finish()
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
	return m
}

func testOptions(fs vfs.FS, e *testEngine) Options {
	return Options{
		FS: fs, Dir: testDir, Now: time.Now, After: time.After, Rand: rand.New(rand.NewPCG(1, 2)),
		Installer: e, Events: e.event, VerifyProbability: 1, Mode: ModeNever,
	}
}

func newTestEngine(t *testing.T, fs vfs.FS) *testEngine {
	t.Helper()
	require.NoError(t, fs.MkdirAll(path.Join(testDir, compact.TableDir), 0o770))
	return &testEngine{
		t: t, fs: fs, tables: map[uint64]sstable.Meta{}, released: map[uint64]State{}, reasons: map[uint64]string{},
	}
}

// fixture is a board in virtual time over a file system in memory.
type fixture struct {
	*testing.T
	fs *vfs.MemFS
	e  *testEngine
	b  *Board
}

// inBubble runs a test in virtual time. At its end the board is closed, and everything that a
// board must give back is checked.
func inBubble(t *testing.T, change func(*Options), run func(f *fixture)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		f := &fixture{T: t, fs: fs, e: newTestEngine(t, fs)}
		o := testOptions(fs, f.e)
		if change != nil {
			change(&o)
		}
		var err error
		f.b, err = NewBoard(o)
		require.NoError(t, err)
		defer f.b.Close() //nolint:errcheck // a failed test must not leave goroutines in the bubble
		run(f)
		require.NoError(t, f.b.Close())
		checkClosed(t, f.b, fs)
	})
}

// checkClosed checks that a closed board holds nothing.
func checkClosed(t *testing.T, b *Board, fs vfs.FS) {
	t.Helper()
	s := b.Status()
	require.Empty(t, s.Jobs)
	require.Zero(t, s.ReservedBytes)
	for _, w := range s.Workers {
		require.Zero(t, w.Leases, "leases of %s", w.Name)
		require.False(t, w.Polling, "poll of %s", w.Name)
	}
	names, err := fs.List(path.Join(b.o.Dir, compact.StagingDir))
	require.NoError(t, err)
	require.Empty(t, names, "attempts are left in staging")
	require.Empty(t, b.inputs)
}

var ctxb = context.Background()

func someWorker(name string) Worker {
	return Worker{Name: name, FreeSlots: 1, TotalSlots: 1, Formats: []uint32{1}}
}

// offer queues a plan.
func (f *fixture) offer(p *Plan) uint64 {
	f.Helper()
	id, err := f.b.Offer(p)
	require.NoError(f, err)
	return id
}

// lease takes the one job that must be there.
func (f *fixture) lease(w Worker) Lease {
	f.Helper()
	ls, err := f.b.Lease(ctxb, w)
	require.NoError(f, err)
	require.Len(f, ls, 1)
	return ls[0]
}

// complete reports and returns the verdict.
func (f *fixture) complete(k Key, r Report) Verdict {
	f.Helper()
	v, err := f.b.Complete(ctxb, k, r)
	require.NoError(f, err)
	return v
}

// job returns the status of a job that is not terminal.
func (f *fixture) job(id uint64) JobStatus {
	f.Helper()
	for _, j := range f.b.Status().Jobs {
		if j.Key.ID == id {
			return j
		}
	}
	require.FailNow(f, "no such job", "%d", id)
	return JobStatus{}
}

// requireOver checks that a job ended in a state.
func (f *fixture) requireOver(id uint64, want State) {
	f.Helper()
	s, reason, ok := f.e.state(id)
	require.True(f, ok, "job %d is not over", id)
	require.Equal(f, want, s, reason)
}

// merged reads the inputs of a job and merges them, newest version of each key, without the code
// under test.
func merged(t *testing.T, fs vfs.FS, dir string, job compact.Job) (entries []entry, in uint64) {
	t.Helper()
	for _, input := range job.Inputs {
		f, err := fs.Open(path.Join(dir, compact.TableDir, compact.TableName(input.Num)))
		require.NoError(t, err)
		r, err := sstable.Open(f, sstable.ReaderOptions{FileNum: input.Num})
		require.NoError(t, err)
		it := r.NewIter()
		for ok := it.First(); ok; ok = it.Next() {
			entries = append(entries, entry{string(it.Key().User), it.Key().Seq(), string(it.Value())})
		}
		require.NoError(t, it.Close())
		require.NoError(t, r.Close())
	}
	in = uint64(len(entries))
	slices.SortFunc(entries, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(b.seq, a.seq))
	})
	return slices.CompactFunc(entries, func(a, b entry) bool { return a.key == b.key }), in
}

// attempt is a lease in the hands of a test's worker.
type attempt struct {
	t    *testing.T
	fs   vfs.FS
	dir  string
	l    Lease
	outs []compact.Output
	in   uint64
	n    int // entries written
}

func (f *fixture) attempt(l Lease) *attempt {
	return &attempt{t: f.T, fs: f.fs, dir: testDir, l: l}
}

func (a *attempt) path(index int) string {
	return path.Join(a.dir, compact.StagingDir, compact.AttemptName(a.l.Key.ID, a.l.Key.Epoch), compact.OutputName(index))
}

// write fills one output.
func (a *attempt) write(index int, entries []entry) {
	a.t.Helper()
	f, err := a.fs.OpenReadWrite(a.path(index))
	require.NoError(a.t, err)
	a.outs = append(a.outs, compact.Output{Index: index, Meta: writeTable(a.t, f, entries)})
	a.n += len(entries)
}

// honest does the job as it should be done, into parts outputs, and returns the report.
func (a *attempt) honest(parts int) Report {
	a.t.Helper()
	entries, in := merged(a.t, a.fs, a.dir, a.l.Job)
	a.in = in
	for i := range parts {
		lo, hi := i*len(entries)/parts, (i+1)*len(entries)/parts
		a.write(i+1, entries[lo:hi])
	}
	return a.report()
}

func (a *attempt) report() Report {
	return Report{Outputs: a.outs, Stats: compact.Stats{
		EntriesIn: a.in, EntriesOut: uint64(a.n), Shadowed: a.in - uint64(a.n),
	}}
}

// finish does a job honestly and reports it.
func (f *fixture) finish(l Lease) Verdict {
	f.Helper()
	return f.complete(l.Key, f.attempt(l).honest(1))
}

var errTest = errors.New("test says no")
