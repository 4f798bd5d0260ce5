package jobs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
)

// lie is a way of a worker to report something else than an honest merge.
type lie struct {
	name string
	code string // of the rejection
	tell func(a *attempt) Report
}

// edit changes the bytes of an output.
func (a *attempt) edit(index int, change func(b []byte) []byte) {
	a.t.Helper()
	f, err := a.fs.OpenReadWrite(a.path(index))
	require.NoError(a.t, err)
	info, err := f.Stat()
	require.NoError(a.t, err)
	b := make([]byte, info.Size())
	_, err = f.ReadAt(b, 0)
	require.NoError(a.t, err)
	b = change(b)
	require.NoError(a.t, f.Truncate(0))
	_, err = f.WriteAt(b, 0)
	require.NoError(a.t, err)
	require.NoError(a.t, f.Close())
}

// split merges honestly and returns the halves.
func (a *attempt) split() (left, right []entry) {
	entries, in := merged(a.t, a.fs, a.dir, a.l.Job)
	a.in = in
	return entries[:len(entries)/2], entries[len(entries)/2:]
}

func change(f func(r *Report)) func(a *attempt) Report {
	return func(a *attempt) Report {
		r := a.honest(2)
		f(&r)
		return r
	}
}

var lies = []lie{
	{"wrong digest", "DIGEST", change(func(r *Report) { r.Outputs[1].Digest++ })},
	{"wrong size", "SIZE", change(func(r *Report) { r.Outputs[0].Size++ })},
	{"wrong smallest", "BOUNDS", change(func(r *Report) { r.Outputs[0].Smallest = ikey.Make([]byte("k"), 1, ikey.KindSet) })},
	{"wrong largest", "BOUNDS", change(func(r *Report) { r.Outputs[1].Largest.Trailer++ })},
	{"wrong sequences", "SEQUENCE", change(func(r *Report) { r.Outputs[0].MaxSeq++ })},
	{"wrong count", "CONSERVATION", change(func(r *Report) { r.Outputs[0].Entries-- })},
	{"index 0", "COUNT", change(func(r *Report) { r.Outputs[0].Index = 0 })},
	{"index beyond", "COUNT", change(func(r *Report) { r.Outputs[1].Index = 5 })},
	{"negative index", "COUNT", change(func(r *Report) { r.Outputs[0].Index = -1 })},
	{"one index twice", "COUNT", change(func(r *Report) { r.Outputs[1] = r.Outputs[0] })},
	{"swapped outputs", "COUNT", change(func(r *Report) { r.Outputs[0], r.Outputs[1] = r.Outputs[1], r.Outputs[0] })},
	{"too many outputs", "COUNT", change(func(r *Report) { r.Outputs = make([]compact.Output, 65) })},
	{"damage and outputs", "CORRUPT", change(func(r *Report) { r.Corrupt = []compact.CorruptInput{{Num: 1}} })},
	{"an output kept quiet", "FILES", change(func(r *Report) { r.Outputs = r.Outputs[:1] })},
	{"an output that was never written", "SIZE", change(func(r *Report) {
		o := r.Outputs[1]
		o.Index = 3
		r.Outputs = append(r.Outputs, o)
	})},
	{"read more than there is", "CONSERVATION", change(func(r *Report) { r.Stats.EntriesIn++; r.Stats.Shadowed++ })},
	{"read less than there is", "CONSERVATION", change(func(r *Report) { r.Stats.EntriesIn--; r.Stats.Shadowed-- })},
	{"counts that do not add up", "CONSERVATION", change(func(r *Report) { r.Stats.Joined++ })},
	{"counts that overflow", "CONSERVATION", change(func(r *Report) { r.Stats.Joined, r.Stats.Collected = 1<<63, 1<<63 })},
	{"all collected, all written", "CONSERVATION", change(func(r *Report) { r.Stats.Collected, r.Stats.EntriesOut = r.Stats.EntriesOut, 0 })},
	{"drops of a merge", "CONSERVATION", change(func(r *Report) { r.Stats.Dropped, r.Stats.Shadowed = r.Stats.Shadowed, 0 })},
	{"what is left of no drops", "CONSERVATION", change(func(r *Report) { r.Stats.DropLeft = 1 })},
	{"a missing row", "CONSERVATION", func(a *attempt) Report {
		left, right := a.split()
		a.write(1, left)
		a.write(2, right[1:])
		r := a.report()
		r.Stats.EntriesOut++
		r.Stats.Shadowed--
		return r
	}},
	{"an invented row", "CONSERVATION", func(a *attempt) Report {
		left, right := a.split()
		a.write(1, left)
		last := len(right) - 1
		a.write(2, append(right[:last:last], entry{"k038x", 238, "invented"}, right[last]))
		r := a.report()
		r.Stats.EntriesOut--
		r.Stats.Shadowed++
		return r
	}},
	{"a row below the inputs", "BOUNDS", func(a *attempt) Report {
		left, right := a.split()
		a.write(1, append([]entry{{"a", 150, "x"}}, left[1:]...))
		a.write(2, right)
		return a.report()
	}},
	{"a row above the inputs", "BOUNDS", func(a *attempt) Report {
		left, right := a.split()
		a.write(1, left)
		a.write(2, append(right[:len(right)-1], entry{"z", 150, "x"}))
		return a.report()
	}},
	{"a row from the future", "SEQUENCE", func(a *attempt) Report {
		left, right := a.split()
		right[3].seq = 10_000
		a.write(1, left)
		a.write(2, right)
		return a.report()
	}},
	{"a row from the past", "SEQUENCE", func(a *attempt) Report {
		left, right := a.split()
		left[3].seq = 1
		a.write(1, left)
		a.write(2, right)
		return a.report()
	}},
	{"overlapping outputs", "ORDER", func(a *attempt) Report {
		left, right := a.split()
		last := left[len(left)-1]
		last.seq--
		a.write(1, left)
		a.write(2, append([]entry{last}, right[1:]...))
		return a.report()
	}},
	{"outputs in the wrong order", "ORDER", func(a *attempt) Report {
		left, right := a.split()
		a.write(1, right)
		a.write(2, left)
		return a.report()
	}},
	{"a truncated output", "SIZE", func(a *attempt) Report {
		r := a.honest(2)
		a.edit(2, func(b []byte) []byte { return b[:len(b)-1] })
		return r
	}},
	{"a truncated output, honestly reported", "CORRUPT", func(a *attempt) Report {
		r := a.honest(2)
		a.edit(2, func(b []byte) []byte { return b[:len(b)-1] })
		r.Outputs[1].Size--
		return r
	}},
	{"a flipped bit in the data", "CORRUPT", func(a *attempt) Report {
		r := a.honest(2)
		a.edit(1, func(b []byte) []byte { b[40] ^= 4; return b })
		return r
	}},
	{"a flipped bit in the footer", "CORRUPT", func(a *attempt) Report {
		r := a.honest(2)
		a.edit(1, func(b []byte) []byte { b[len(b)-60] ^= 4; return b })
		return r
	}},
	{"zeros", "CORRUPT", func(a *attempt) Report {
		r := a.honest(1)
		a.edit(1, func(b []byte) []byte { return make([]byte, len(b)) })
		return r
	}},
	{"an output still open", "STILL_OPEN", func(a *attempt) Report {
		r := a.honest(2)
		f, err := a.fs.OpenReadWrite(a.path(2))
		require.NoError(a.t, err)
		a.t.Cleanup(func() { _ = f.Close() })
		return r
	}},
	{"an extra file", "FILES", func(a *attempt) Report {
		r := a.honest(2)
		f, err := a.fs.Create(path.Join(path.Dir(a.path(1)), "0099.sst"), 0o660)
		require.NoError(a.t, err)
		require.NoError(a.t, f.Close())
		return r
	}},
	{"a removed file", "FILES", func(a *attempt) Report {
		r := a.honest(2)
		require.NoError(a.t, a.fs.Remove(a.path(4)))
		return r
	}},
	{"a renamed file", "FILES", func(a *attempt) Report {
		r := a.honest(2)
		require.NoError(a.t, a.fs.Rename(a.path(4), a.path(7)))
		return r
	}},
	{"a directory in the place of a file", "FILES", func(a *attempt) Report {
		r := a.honest(2)
		require.NoError(a.t, a.fs.Remove(a.path(4)))
		require.NoError(a.t, a.fs.MkdirAll(a.path(4), 0o770))
		return r
	}},
}

// requireRejected tells the lie in the first attempt, and checks that nothing of it was taken and
// that an honest worker can still do the job.
func requireRejected(f *fixture, l lie) {
	f.Helper()
	id := f.offer(f.e.somePlan("k"))
	before := len(f.e.tables)
	lease := f.lease(someWorker("liar"))
	v := f.complete(lease.Key, l.tell(f.attempt(lease)))
	require.Equal(f, Rejected, v.Outcome, v.Reason)
	require.Contains(f, v.Reason, l.code+": ")
	require.Len(f, f.e.tables, before)
	require.Equal(f, 1, f.job(id).Attempts)
	require.Equal(f, Installed, f.finish(f.lease(someWorker("honest"))).Outcome)
}

func TestLyingWorkersAreRejected(t *testing.T) {
	// Whatever is installed replaces the inputs for ever.
	for _, l := range lies {
		t.Run(l.name, func(t *testing.T) {
			inBubble(t, nil, func(f *fixture) { requireRejected(f, l) })
		})
	}
}

// noLeases is a file system that can't seal files, as some network file systems.
type noLeases struct{ vfs.FS }

func (n noLeases) OpenForeign(name string, seal bool) (vfs.File, error) {
	if seal {
		return nil, vfs.ErrNoLeases
	}
	return n.FS.OpenForeign(name, false)
}

func TestWithoutLeasesOutputsAreCopied(t *testing.T) {
	// Without a lease the worker may keep an output open and change it after the verification.
	inBubble(t, func(o *Options) { o.FS = noLeases{o.FS} }, func(f *fixture) {
		f.offer(f.e.somePlan("k"))
		l := f.lease(someWorker("w"))
		a := f.attempt(l)
		r := a.honest(1)
		held, err := f.fs.OpenReadWrite(a.path(1))
		require.NoError(f, err)
		require.Equal(f, Installed, f.complete(l.Key, r).Outcome)
		_, err = held.WriteAt(make([]byte, 100), 0)
		require.NoError(f, err)
		require.NoError(f, held.Close())
		verifyTree(f.T, f.fs, f.e)
	})
	for _, l := range lies {
		if l.code == "STILL_OPEN" {
			continue
		}
		t.Run(l.name, func(t *testing.T) {
			inBubble(t, func(o *Options) { o.FS = noLeases{o.FS} }, func(f *fixture) { requireRejected(f, l) })
		})
	}
}

// verifyTree reads every table of the engine in full.
func verifyTree(t *testing.T, fs vfs.FS, e *testEngine) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	for num, m := range e.tables {
		f, err := fs.Open(e.path(num))
		require.NoError(t, err)
		r, err := sstable.Open(f, sstable.ReaderOptions{FileNum: num})
		require.NoError(t, err)
		require.Equal(t, m.Digest, r.Meta().Digest)
		require.NoError(t, r.Verify(context.Background(), func(int64) {}))
		require.NoError(t, r.Close())
	}
}

func TestEmptyOutputIsAResult(t *testing.T) {
	// All inputs shadowed or collected: the inputs go, and nothing comes. It is no reason to reject,
	// and no reason to delete anything by itself.
	inBubble(t, nil, func(f *fixture) {
		p := f.e.somePlan("k")
		id := f.offer(p)
		l := f.lease(someWorker("w"))
		v := f.complete(l.Key, Report{Stats: compact.Stats{EntriesIn: p.Entries, Collected: p.Entries}})
		require.Equal(f, Verdict{Outcome: Installed}, v)
		f.requireOver(id, StateInstalled)
		require.Empty(f, f.e.tables)
		_, err := f.fs.Stat(f.e.path(p.Job.Inputs[0].Num))
		require.NoError(f, err, "the board deletes no table")
	})
}

func TestDiskFullWhileCopyingCostsNoAttempt(t *testing.T) {
	inBubble(t, func(o *Options) { o.FS = fullCopies{noLeases{o.FS}} }, func(f *fixture) {
		id := f.offer(f.e.somePlan("k"))
		v := f.finish(f.lease(someWorker("w")))
		require.Equal(f, Rejected, v.Outcome)
		require.Zero(f, f.job(id).Attempts)
		require.Equal(f, StateQueued, f.job(id).State)
	})
}

func TestDiskFullAtTheNodeCostsNoAttempt(t *testing.T) {
	// Cancelling would have the engine offer the same merge again at once, for as long as it lasts.
	inBubble(t, nil, func(f *fixture) {
		f.e.check = func(*Plan) error { return fmt.Errorf("manifest: %w", vfs.ErrNoSpace) }
		id := f.offer(f.e.somePlan("k"))
		require.Equal(f, Rejected, f.finish(f.lease(someWorker("w"))).Outcome)
		require.Zero(f, f.job(id).Attempts)
		f.e.check = nil
		require.Equal(f, Installed, f.finish(f.lease(someWorker("w"))).Outcome)
	})
}

// fullCopies is a disk on which there is no room for copies.
type fullCopies struct{ vfs.FS }

func (c fullCopies) Create(name string, perm fs.FileMode) (vfs.File, error) {
	if perm == copiedPerm {
		return nil, vfs.ErrNoSpace
	}
	return c.FS.Create(name, perm)
}

// corrupt damages a table of the tree.
func (f *fixture) corrupt(num uint64) {
	f.Helper()
	file, err := f.fs.OpenReadWrite(f.e.path(num))
	require.NoError(f, err)
	_, err = file.WriteAt([]byte{0xff, 0xee}, 40)
	require.NoError(f, err)
	require.NoError(f, file.Close())
}

func TestReportedDamageCountsWhenTheNodeSeesIt(t *testing.T) {
	// A worker with bad memory could have healthy tables set aside; a damaged one must not be tried
	// four times.
	inBubble(t, nil, func(f *fixture) {
		p := f.e.somePlan("k")
		id := f.offer(p)
		l := f.lease(someWorker("w"))
		claim := []compact.CorruptInput{{Num: p.Job.Inputs[1].Num, Reason: "says the worker"}, {Num: 999, Reason: "not in the job"}}
		f.b.Abandon(l.Key, AbandonCorruptInput, "bad block", claim)
		for f.job(id).State == StateVerifying {
			time.Sleep(time.Millisecond)
		}
		require.Empty(f, f.e.quarantined)
		require.Equal(f, 1, f.job(id).Attempts)

		f.corrupt(p.Job.Inputs[1].Num)
		l = f.lease(someWorker("w"))
		f.b.Abandon(l.Key, AbandonCorruptInput, "bad block", claim)
		require.Eventually(f, func() bool { _, _, over := f.e.state(id); return over }, time.Minute, time.Millisecond)
		f.requireOver(id, StateQuarantined)
		require.Len(f, f.e.quarantined, 1)
		require.Equal(f, p.Job.Inputs[1].Num, f.e.quarantined[0].Num)
		require.Contains(f, f.e.quarantined[0].Reason, "corrupt")
		require.True(f, f.e.saw(EventCorrupt))
	})
}

// realFixture is a board over the real file system, in real time.
func realFixture(t *testing.T) *fixture {
	t.Helper()
	dir := t.TempDir()
	e := newTestEngine(t, rooted{vfs.OS, dir})
	b, err := NewBoard(testOptions(rooted{vfs.OS, dir}, e))
	require.NoError(t, err)
	f := &fixture{T: t, e: e, b: b}
	t.Cleanup(func() {
		require.NoError(t, b.Close())
		checkClosed(t, b, rooted{vfs.OS, dir})
	})
	return f
}

func (f *fixture) realAttempt(l Lease) *attempt {
	return &attempt{t: f.T, fs: f.e.fs, dir: testDir, l: l}
}

// rooted is a file system below a directory of the real one.
type rooted struct {
	vfs.FS
	dir string
}

func (r rooted) at(name string) string { return filepath.Join(r.dir, name) }

func (r rooted) Create(name string, perm fs.FileMode) (vfs.File, error) {
	return r.FS.Create(r.at(name), perm)
}
func (r rooted) Open(name string) (vfs.File, error)          { return r.FS.Open(r.at(name)) }
func (r rooted) OpenReadWrite(name string) (vfs.File, error) { return r.FS.OpenReadWrite(r.at(name)) }
func (r rooted) OpenForeign(name string, seal bool) (vfs.File, error) {
	return r.FS.OpenForeign(r.at(name), seal)
}
func (r rooted) OpenDir(name string) (vfs.File, error)  { return r.FS.OpenDir(r.at(name)) }
func (r rooted) Remove(name string) error               { return r.FS.Remove(r.at(name)) }
func (r rooted) RemoveAll(name string) error            { return r.FS.RemoveAll(r.at(name)) }
func (r rooted) Rename(a, b string) error               { return r.FS.Rename(r.at(a), r.at(b)) }
func (r rooted) Link(a, b string) error                 { return r.FS.Link(r.at(a), r.at(b)) }
func (r rooted) MkdirAll(n string, p fs.FileMode) error { return r.FS.MkdirAll(r.at(n), p) }
func (r rooted) List(name string) ([]string, error)     { return r.FS.List(r.at(name)) }
func (r rooted) Stat(name string) (fs.FileInfo, error)  { return r.FS.Stat(r.at(name)) }
func (r rooted) Usage(name string) (vfs.Usage, error)   { return r.FS.Usage(r.at(name)) }

// realLies are those that need a real file system.
var realLies = []lie{
	{"a symbolic link to a table", "FILES", func(a *attempt) Report {
		r := a.honest(2)
		real := a.fs.(rooted)
		require.NoError(a.t, os.Rename(real.at(a.path(2)), real.at("elsewhere.sst")))
		require.NoError(a.t, os.Symlink(real.at("elsewhere.sst"), real.at(a.path(2))))
		return r
	}},
	{"a symbolic link in an unused place", "FILES", func(a *attempt) Report {
		r := a.honest(2)
		real := a.fs.(rooted)
		require.NoError(a.t, os.Remove(real.at(a.path(4))))
		require.NoError(a.t, os.Symlink("/dev/null", real.at(a.path(4))))
		return r
	}},
}

func TestLiesOnARealFileSystemAreRejected(t *testing.T) {
	// In memory there are no links, and leases are a counter.
	for _, l := range append(realLies, lies...) {
		t.Run(l.name, func(t *testing.T) {
			f := realFixture(t)
			id := f.offer(f.e.somePlan("k"))
			lease := f.lease(someWorker("liar"))
			v := f.complete(lease.Key, l.tell(f.realAttempt(lease)))
			require.Equal(f, Rejected, v.Outcome, v.Reason)
			if supportsLeases(t) || l.code != "STILL_OPEN" {
				require.Contains(f, v.Reason, l.code+": ")
			}
			lease = f.lease(someWorker("honest"))
			require.Equal(f, Installed, f.complete(lease.Key, f.realAttempt(lease).honest(2)).Outcome)
			f.requireOver(id, StateInstalled)
			verifyTree(t, f.e.fs, f.e)
		})
	}
}

// supportsLeases reports whether the file system of temporary directories has leases.
func supportsLeases(t *testing.T) bool {
	t.Helper()
	name := filepath.Join(t.TempDir(), "probe")
	require.NoError(t, os.WriteFile(name, nil, 0o660))
	f, err := vfs.OS.OpenForeign(name, true)
	if errors.Is(err, vfs.ErrNoLeases) {
		return false
	}
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return true
}

func TestZombieCannotChangeWhatIsInstalled(t *testing.T) {
	// Renaming does not revoke a descriptor: whoever has an output open for writing could change a
	// table of the tree.
	f := realFixture(t)
	if !supportsLeases(t) {
		require.NotEqual(t, "true", os.Getenv("CI"), "CI must run where files have leases")
		t.Skip("the file system of temporary directories has no leases")
	}
	f.offer(f.e.somePlan("k"))
	l := f.lease(someWorker("zombie"))
	a := f.realAttempt(l)
	r := a.honest(1)
	held, err := a.fs.OpenReadWrite(a.path(1))
	require.NoError(t, err)
	v := f.complete(l.Key, r)
	require.Equal(t, Rejected, v.Outcome)
	require.Contains(t, v.Reason, "STILL_OPEN")

	// The attempt was wiped: what the zombie writes goes nowhere, and it can't make the place anew.
	_, err = held.WriteAt([]byte("zombie"), 0)
	require.NoError(t, err)
	require.NoError(t, held.Close())
	_, err = a.fs.OpenReadWrite(a.path(1))
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = a.fs.Create(a.path(1), 0o660)
	require.ErrorIs(t, err, fs.ErrNotExist)

	l = f.lease(someWorker("honest"))
	a = f.realAttempt(l)
	r = a.honest(1)
	require.Equal(t, Installed, f.complete(l.Key, r).Outcome)
	info, err := a.fs.Stat(f.e.path(3))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o440), info.Mode().Perm(), "nobody opens an installed table for writing")
	verifyTree(t, f.e.fs, f.e)
}

func TestAttemptIsWritableForTheGroupButItsDirectoryIsNot(t *testing.T) {
	// A worker of another user that could make names in the directory could bring a wiped attempt
	// back, or put a link in the place of an output.
	f := realFixture(t)
	f.offer(f.e.somePlan("k"))
	a := f.realAttempt(f.lease(someWorker("w")))
	info, err := a.fs.Stat(path.Dir(a.path(1)))
	require.NoError(t, err)
	require.Zero(t, info.Mode().Perm()&0o027, "mode %v", info.Mode())
	info, err = a.fs.Stat(a.path(1))
	require.NoError(t, err)
	require.Zero(t, info.Mode().Perm()&0o007, "mode %v", info.Mode())
}
