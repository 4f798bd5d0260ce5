package compact

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/iterator"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
)

const (
	// MaxInputs bounds the inputs of a job: each is an open file.
	MaxInputs = 1024
	// MaxInputBytes bounds the size of all inputs of a merge: lost work, time of a lease, headroom.
	MaxInputBytes = 2 << 30
	// MaxOutputs bounds the outputs of a job.
	MaxOutputs = 64

	defaultTargetBytes = 64 << 20
)

// ErrInvalidJob says that a job contradicts itself or a limit; running it again cannot help.
var ErrInvalidJob = errors.New("invalid job")

// InputError says which input a failure is about.
type InputError struct {
	Num uint64
	Err error
}

// Error names the input.
func (e *InputError) Error() string { return fmt.Sprintf("input %s: %v", TableName(e.Num), e.Err) }

// Unwrap returns the failure.
func (e *InputError) Unwrap() error { return e.Err }

// Run does a job. A Merge that succeeds has written and synced its outputs; no outputs are a
// result. A Merge that meets a damaged input fails, and corrupt names it; a Scrub reads on, returns
// all damaged inputs and no error. An output file of a failed job may hold anything.
func Run(ctx context.Context, job Job, env Env) (outputs []Output, stats Stats, corrupt []CorruptInput, err error) {
	if err := check(job); err != nil {
		return nil, Stats{}, nil, fmt.Errorf("job %d: %w", job.ID, err)
	}
	r := &run{ctx: ctx, job: job, env: env}
	if job.Kind == Scrub {
		err = r.scrub()
	} else {
		err = r.merge()
	}
	if err != nil {
		if c, ok := damage(err); ok {
			r.corrupt = append(r.corrupt, c)
		}
		return nil, r.stats, r.corrupt, fmt.Errorf("job %d: %w", job.ID, err)
	}
	return r.outputs, r.stats, r.corrupt, nil
}

// check refuses a job that breaks a limit.
func check(job Job) error {
	invalid := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrInvalidJob, fmt.Sprintf(format, args...))
	}
	if job.Kind != Merge && job.Kind != Scrub {
		return invalid("unknown kind %d", job.Kind)
	}
	if len(job.Inputs) > MaxInputs {
		return invalid("%d inputs, at most %d", len(job.Inputs), MaxInputs)
	}
	if job.Kind == Scrub {
		return nil
	}
	total := int64(0)
	for _, in := range job.Inputs {
		if in.Size < 0 || in.Size > MaxInputBytes-total {
			return invalid("inputs of more than %d bytes", MaxInputBytes)
		}
		total += in.Size
	}
	if job.MaxOutputs < 1 || job.MaxOutputs > MaxOutputs {
		return invalid("%d outputs, 1 to %d possible", job.MaxOutputs, MaxOutputs)
	}
	if f := job.Table.Format; f != 0 && f != sstable.FormatVersion {
		return fmt.Errorf("%w: asked to write version %d, this program writes %d", sstable.ErrNewerFormat, f, sstable.FormatVersion)
	}
	if job.Table.Compression > sstable.Zstd || job.Table.TargetBytes < 0 || job.Table.BlockBytes < 0 || job.Table.FilterBits < 0 ||
		job.Table.ValueBlockBytes < 0 {
		return invalid("table options %+v", job.Table)
	}
	if !slices.IsSorted(job.Snapshots) {
		return invalid("snapshots do not ascend")
	}
	if err := CheckCuts(job.Cuts); err != nil {
		return invalid("cuts: %v", err)
	}
	if err := CheckCuts(job.Drop); err != nil {
		return invalid("drops: %v", err)
	}
	for i, b := range job.Bottommost {
		if len(b.End) > 0 && bytes.Compare(b.Start, b.End) >= 0 {
			return invalid("bottommost range [%s, %s) is empty", ikey.Hash(b.Start), ikey.Hash(b.End))
		}
		if i > 0 && (len(job.Bottommost[i-1].End) == 0 || bytes.Compare(job.Bottommost[i-1].End, b.Start) > 0) {
			return invalid("bottommost ranges are not ascending and disjoint")
		}
	}
	return nil
}

// damage returns the input that err says is damaged. A newer format is not damage.
func damage(err error) (CorruptInput, bool) {
	var in *InputError
	if errors.As(err, &in) && errors.Is(err, sstable.ErrCorrupt) && !errors.Is(err, sstable.ErrNewerFormat) {
		return CorruptInput{Num: in.Num, Reason: in.Err.Error()}, true
	}
	return CorruptInput{}, false
}

// run is one job being done.
type run struct {
	ctx context.Context
	job Job
	env Env

	readers []*sstable.Reader // in the order of job.Inputs
	outputs []Output
	stats   Stats
	corrupt []CorruptInput
}

// read accounts for n bytes of an input that are about to be read.
func (r *run) read(n int) error {
	if err := r.throttle(n); err != nil {
		return err
	}
	r.stats.BytesRead += uint64(n)
	if r.env.Progress != nil {
		r.env.Progress(int64(r.stats.BytesRead))
	}
	return nil
}

func (r *run) throttle(n int) error {
	if err := r.ctx.Err(); err != nil {
		return context.Cause(r.ctx)
	}
	if r.env.Throttle == nil {
		return nil
	}
	return r.env.Throttle(r.ctx, n)
}

// merge does a job of kind Merge.
func (r *run) merge() (err error) {
	defer func() { err = errors.Join(err, r.closeInputs()) }()
	var deletes []ikey.RangeDelete
	for _, in := range r.job.Inputs {
		t, err := r.openInput(in)
		if err != nil {
			return err
		}
		r.readers = append(r.readers, t)
		deletes = append(deletes, t.RangeDeletes()...)
	}
	frags := fragment(deletes, r.job.Snapshots)
	g := group{job: &r.job, stats: &r.stats, frags: frags, takes: r.job.writerOptions().Takes}
	out := splitter{run: r, kept: survivors(frags, r.job.Snapshots, r.job.Bottommost)}
	defer func() { err = errors.Join(err, out.abort()) }()

	it := iterator.Merge(r.walks()...)
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; {
		g.begin(it.Key().User)
		for ok && bytes.Equal(it.Key().User, g.user) {
			if err := g.add(it); err != nil {
				return err
			}
			ok = it.Next()
		}
		versions, err := g.finish()
		if err != nil {
			return err
		}
		if err := out.write(g.user, versions); err != nil {
			return err
		}
	}
	if err := it.Err(); err != nil {
		return err
	}
	if err := out.end(); err != nil {
		return err
	}
	s := r.stats
	if s.EntriesIn != s.Accounted() {
		return fmt.Errorf("accounts do not balance: %+v", s) // a bug: better no output than a wrong one
	}
	return nil
}

// openInput opens an input and checks that it is the table that the job means.
func (r *run) openInput(in Input) (*sstable.Reader, error) {
	wrap := func(err error) error { return &InputError{in.Num, err} }
	f, err := r.env.OpenInput(in)
	if err != nil {
		return nil, wrap(err)
	}
	t, err := sstable.Open(f, sstable.ReaderOptions{FileNum: in.Num, Name: TableName(in.Num)})
	if err != nil {
		return nil, wrap(err)
	}
	if m := t.Meta(); m.Size != uint64(in.Size) || m.Digest != in.Digest {
		what := fmt.Sprintf("another table: size %d and digest %016x, the job says %d and %016x", m.Size, m.Digest, in.Size, in.Digest)
		return nil, errors.Join(wrap(&sstable.CorruptionError{File: TableName(in.Num), What: what}), t.Close())
	}
	return t, nil
}

func (r *run) closeInputs() error {
	var err error
	for _, t := range r.readers {
		err = errors.Join(err, t.Close())
	}
	r.readers = nil
	return err
}

// scrub does a job of kind Scrub.
func (r *run) scrub() error {
	for _, in := range r.job.Inputs {
		err := r.scrubInput(in)
		if c, ok := damage(err); ok {
			r.corrupt = append(r.corrupt, c)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// scrubInput verifies one table; it waits for the throttle between its blocks.
func (r *run) scrubInput(in Input) (err error) {
	if err := r.throttle(0); err != nil {
		return err
	}
	t, err := r.openInput(in)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(r.ctx)
	defer cancel(nil)
	pending := 0
	err = t.Verify(ctx, func(n int64) {
		const step = 256 << 10 // asking the throttle for each block would cost more than the block
		if pending += int(n); pending >= step {
			if err := r.read(pending); err != nil {
				cancel(err)
			}
			pending = 0
		}
	})
	if err == nil {
		err = r.read(pending)
		r.stats.EntriesIn += t.Meta().Entries
		r.stats.EntriesOut += t.Meta().Entries
	} else if cause := context.Cause(ctx); cause != nil {
		err = cause
	} else {
		err = &InputError{in.Num, err}
	}
	return errors.Join(err, t.Close())
}

// sink is an output file that accounts for what is written.
type sink struct {
	vfs.File
	run *run
}

func (s sink) WriteAt(b []byte, off int64) (int, error) {
	if err := s.run.throttle(len(b)); err != nil {
		return 0, err
	}
	n, err := s.File.WriteAt(b, off)
	s.run.stats.BytesWritten += uint64(n)
	return n, err
}
