package compact

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
)

// bulk returns a table with n sets of some bytes each.
func bulk(level, n int, prefix string) table {
	tab := table{level: level}
	for i := range n {
		tab.entries = append(tab.entries, parseEntry(fmt.Sprintf("%s%06d#%d SET n1:%d=value%d", prefix, i, i+1, i+1, i)))
	}
	return tab
}

// damageFile changes one byte of a file.
func (w *world) damageFile(t *testing.T, name string, at int64) {
	f, err := w.fs.OpenReadWrite(name)
	require.NoError(t, err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	require.NoError(t, err)
	b[0] ^= 0x40
	_, err = f.WriteAt(b, at)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// A job beyond its limits costs the node disk, memory or lease time that it has not reserved.
func TestRunRefusesJobsBeyondLimits(t *testing.T) {
	ok := Job{Kind: Merge, MaxOutputs: 64}
	_, _, _, err := Run(context.Background(), ok, Env{})
	require.NoError(t, err)
	for name, change := range map[string]func(j *Job){
		"kind":      func(j *Job) { j.Kind = 9 },
		"outputs":   func(j *Job) { j.MaxOutputs = 65 },
		"no output": func(j *Job) { j.MaxOutputs = 0 },
		"inputs":    func(j *Job) { j.Inputs = make([]Input, MaxInputs+1) },
		"bytes":     func(j *Job) { j.Inputs = []Input{{Size: 1 << 30}, {Size: 1<<30 + 1}} },
		"negative":  func(j *Job) { j.Inputs = []Input{{Size: -1}} },
		"snapshots": func(j *Job) { j.Snapshots = []ikey.Seq{2, 1} },
		"ranges":    func(j *Job) { j.Bottommost = []Range{{[]byte("b"), []byte("c")}, {[]byte("a"), []byte("b")}} },
		"open end":  func(j *Job) { j.Bottommost = []Range{{}, {[]byte("a"), []byte("b")}} },
		"packing":   func(j *Job) { j.Table.Compression = 9 },
	} {
		job := ok
		change(&job)
		_, _, _, err := Run(context.Background(), job, Env{})
		require.ErrorIs(t, err, ErrInvalidJob, name)
	}
	ok.Table.Format = sstable.FormatVersion + 1
	_, _, _, err = Run(context.Background(), ok, Env{})
	require.ErrorIs(t, err, sstable.ErrNewerFormat)
}

// A damaged input must be named, so that the node quarantines that one, and nothing be reported.
func TestMergeNamesTheDamagedInput(t *testing.T) {
	for _, at := range []int64{10, 40, 3000, -1, -130} {
		w := newWorld()
		job := Job{Kind: Merge, MaxOutputs: 4, Inputs: []Input{w.input(t, 1, bulk(0, 300, "a")), w.input(t, 2, bulk(1, 300, "b")), w.input(t, 3, bulk(1, 300, "c"))}}
		if at < 0 {
			at += job.Inputs[2].Size
		}
		w.damageFile(t, TableName(3), at)
		outs, _, corrupt, err := Run(context.Background(), job, w.env)
		require.ErrorIs(t, err, sstable.ErrCorrupt)
		require.Empty(t, outs)
		require.Len(t, corrupt, 1)
		require.EqualValues(t, 3, corrupt[0].Num)
	}
}

// A table of another name's content is as wrong as a damaged one.
func TestMergeRefusesAnotherTable(t *testing.T) {
	w := newWorld()
	in := w.input(t, 1, bulk(0, 3, "a"))
	in.Digest++
	_, _, corrupt, err := Run(context.Background(), Job{Kind: Merge, MaxOutputs: 1, Inputs: []Input{in}}, w.env)
	require.ErrorIs(t, err, sstable.ErrCorrupt)
	require.Len(t, corrupt, 1)
}

// A disk that fails to read is not a damaged table: quarantine would take a good one away.
func TestReadErrorIsNotCorruption(t *testing.T) {
	w := newWorld()
	in := w.input(t, 1, bulk(0, 3, "a"))
	boom := errors.New("boom")
	w.env.OpenInput = func(Input) (vfs.File, error) { return nil, boom }
	_, _, corrupt, err := Run(context.Background(), Job{Kind: Merge, MaxOutputs: 1, Inputs: []Input{in}}, w.env)
	require.ErrorIs(t, err, boom)
	require.Empty(t, corrupt)
}

// A worker that does not stop when its lease ends competes with the next one.
func TestRunStopsWhenCancelled(t *testing.T) {
	w := newWorld()
	job := Job{Kind: Merge, MaxOutputs: 4, Inputs: []Input{w.input(t, 1, bulk(0, 3000, "a"))}}
	ctx, cancel := context.WithCancelCause(context.Background())
	lost := errors.New("lease lost")
	w.env.Progress = func(int64) { cancel(lost) }
	for _, kind := range []Kind{Merge, Scrub} {
		job.Kind = kind
		_, _, _, err := Run(ctx, job, w.env)
		require.ErrorIs(t, err, lost)
	}
}

// Every file that Run opened must be closed, whatever fails: an open output is refused by the node.
func TestRunClosesWhatItOpened(t *testing.T) {
	for fail := range 40 {
		w := newWorld()
		job := Job{Kind: Merge, MaxOutputs: 8, Table: TableOptions{TargetBytes: 4000},
			Inputs: []Input{w.input(t, 1, bulk(0, 400, "a")), w.input(t, 2, bulk(1, 400, "b"))}}
		open, calls := 0, 0
		boom := errors.New("boom")
		track := func(f vfs.File, err error) (vfs.File, error) {
			if err != nil {
				return nil, err
			}
			open++
			return &trackedFile{File: f, open: &open, fail: func() error {
				if calls++; calls == fail {
					return boom
				}
				return nil
			}}, nil
		}
		plain := w.env
		w.env.OpenInput = func(in Input) (vfs.File, error) { return track(plain.OpenInput(in)) }
		w.env.OpenOutput = func(i int) (vfs.File, error) { return track(plain.OpenOutput(i)) }
		_, _, _, err := Run(context.Background(), job, w.env)
		if fail > 0 && calls >= fail {
			require.ErrorIs(t, err, boom)
		} else {
			require.NoError(t, err)
		}
		require.Zero(t, open)
	}
}

// trackedFile counts open files and fails a call.
type trackedFile struct {
	vfs.File
	open *int
	fail func() error
}

func (f *trackedFile) ReadAt(b []byte, off int64) (int, error) {
	if err := f.fail(); err != nil {
		return 0, err
	}
	return f.File.ReadAt(b, off)
}

func (f *trackedFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.fail(); err != nil {
		return 0, err
	}
	return f.File.WriteAt(b, off)
}

func (f *trackedFile) Sync() error {
	if err := f.fail(); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *trackedFile) Close() error {
	*f.open--
	return errors.Join(f.fail(), f.File.Close())
}

// A scrub that stops at the first damaged table hides the second.
func TestScrubReportsEveryDamagedInput(t *testing.T) {
	w := newWorld()
	job := Job{Kind: Scrub}
	for i := range 4 {
		job.Inputs = append(job.Inputs, w.input(t, uint64(i+1), bulk(0, 300, "a")))
	}
	w.damageFile(t, TableName(2), 100)
	w.damageFile(t, TableName(4), job.Inputs[3].Size-1)
	outs, stats, corrupt, err := Run(context.Background(), job, w.env)
	require.NoError(t, err)
	require.Empty(t, outs)
	require.Len(t, corrupt, 2)
	require.EqualValues(t, 2, corrupt[0].Num)
	require.EqualValues(t, 4, corrupt[1].Num)
	require.EqualValues(t, 600, stats.EntriesIn)
	require.GreaterOrEqual(t, stats.BytesRead, uint64(job.Inputs[0].Size+job.Inputs[2].Size))
	require.EqualValues(t, stats.BytesRead, w.done)
}

// The lease's stall rule looks at progress: it must move, and end where the inputs end.
func TestProgressCountsInputBytes(t *testing.T) {
	w := newWorld()
	job := Job{Kind: Merge, MaxOutputs: 1, Inputs: []Input{w.input(t, 1, bulk(0, 3000, "a")), w.input(t, 2, bulk(0, 3000, "b"))}}
	throttled := 0
	w.env.Throttle = func(_ context.Context, n int) error { throttled += n; return nil }
	_, stats, _, err := Run(context.Background(), job, w.env)
	require.NoError(t, err)
	total := job.Inputs[0].Size + job.Inputs[1].Size
	require.LessOrEqual(t, w.done, total)
	require.Greater(t, w.done, total*8/10)
	require.EqualValues(t, stats.BytesRead+stats.BytesWritten, throttled)
}

func BenchmarkMerge(b *testing.B) {
	w := newWorld()
	var inputs []Input
	total := int64(0)
	for i := range 4 {
		tab := table{level: 0}
		for j := range 5000 {
			e := parseEntry(fmt.Sprintf("tenant%08d#%d SET n1:%d=%0900d", j*4+i, j+1, j+1, j*7919))
			tab.entries = append(tab.entries, e)
		}
		in := w.input(b, uint64(i+1), tab)
		inputs = append(inputs, in)
		for _, e := range tab.entries {
			total += int64(len(e.k.User) + len(e.value))
		}
	}
	job := Job{Kind: Merge, MaxOutputs: 4, Inputs: inputs, Table: TableOptions{FilterBits: 10, Compression: sstable.S2}}
	b.SetBytes(total)
	b.ReportAllocs()
	for b.Loop() {
		_, _, _, err := Run(context.Background(), job, w.env)
		require.NoError(b, err)
	}
}
