package jobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
)

// rejection is why a report is not believed. Its code is for tests, metrics and people who search.
type rejection struct{ code, detail string }

func (r *rejection) Error() string { return r.code + ": " + r.detail }

func reject(code, format string, args ...any) error {
	return &rejection{code, fmt.Sprintf(format, args...)}
}

// verify checks the outputs of an attempt and returns what the node itself read of them, with the
// names of the sealed files.
func (b *Board) verify(ctx context.Context, p *Plan, k Key, r Report) ([]compact.Output, []string, error) {
	if err := checkReport(p, r); err != nil {
		return nil, nil, err
	}
	if err := b.checkDir(p, k, r.Outputs); err != nil {
		return nil, nil, err
	}
	full := b.reread()
	outs := make([]compact.Output, 0, len(r.Outputs))
	files := make([]string, 0, len(r.Outputs))
	for _, claim := range r.Outputs {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		meta, name, err := b.checkOutput(ctx, k, claim, full)
		if err != nil {
			return nil, nil, err
		}
		outs = append(outs, compact.Output{Index: claim.Index, Meta: meta})
		files = append(files, name)
	}
	return outs, files, checkOutputs(p, outs, r.Stats)
}

// reread decides by Options.VerifyProbability.
func (b *Board) reread() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.o.Rand.Float64() < b.o.VerifyProbability
}

// checkReport checks what needs no file.
func checkReport(p *Plan, r Report) error {
	if len(r.Outputs) > p.Job.MaxOutputs {
		return reject("COUNT", "%d outputs, at most %d", len(r.Outputs), p.Job.MaxOutputs)
	}
	last := 0
	for _, o := range r.Outputs {
		if o.Index <= last || o.Index > p.Job.MaxOutputs {
			return reject("COUNT", "output %d after %d, at most %d", o.Index, last, p.Job.MaxOutputs)
		}
		last = o.Index
	}
	if len(r.Corrupt) > 0 {
		return reject("CORRUPT", "%d damaged inputs and a complete merge", len(r.Corrupt))
	}
	s := r.Stats
	if s.EntriesIn != p.Entries {
		return reject("CONSERVATION", "%d entries read, the inputs have %d", s.EntriesIn, p.Entries)
	}
	if len(p.Job.Drop) == 0 && s.Dropped+s.DropLeft != 0 {
		return reject("CONSERVATION", "%d entries dropped, %d left of such, and the job drops none", s.Dropped, s.DropLeft)
	}
	if s.DropLeft > s.EntriesOut {
		return reject("CONSERVATION", "%d entries to be dropped are left among %d", s.DropLeft, s.EntriesOut)
	}
	for _, n := range []uint64{s.EntriesOut, s.Shadowed, s.Joined, s.Collected, s.Dropped} {
		if n > s.EntriesIn {
			return reject("CONSERVATION", "a count of %d with %d entries read", n, s.EntriesIn)
		}
	}
	if s.EntriesIn != s.Accounted() {
		return reject("CONSERVATION", "%d entries in, %d out, %d shadowed, %d joined, %d collected, %d dropped",
			s.EntriesIn, s.EntriesOut, s.Shadowed, s.Joined, s.Collected, s.Dropped)
	}
	return nil
}

// checkDir refuses names that the node did not make, missing ones, and content that the report
// does not mention.
func (b *Board) checkDir(p *Plan, k Key, outs []compact.Output) error {
	dir := b.attemptDir(k)
	names, err := b.o.FS.List(dir)
	if err != nil {
		return fmt.Errorf("list attempt: %w", err)
	}
	if len(names) != p.Job.MaxOutputs {
		return reject("FILES", "%d files in the attempt, %d were made", len(names), p.Job.MaxOutputs)
	}
	reported := make(map[int]bool, len(outs))
	for _, o := range outs {
		reported[o.Index] = true
	}
	for i := 1; i <= p.Job.MaxOutputs; i++ {
		info, err := b.o.FS.Stat(path.Join(dir, compact.OutputName(i)))
		if errors.Is(err, fs.ErrNotExist) {
			return reject("FILES", "output %d is not there", i)
		}
		if err != nil {
			return fmt.Errorf("stat output %d: %w", i, err)
		}
		if !info.Mode().IsRegular() {
			return reject("FILES", "output %d is not a regular file", i)
		}
		if !reported[i] && info.Size() != 0 {
			return reject("FILES", "output %d has %d bytes and is not reported", i, info.Size())
		}
	}
	return nil
}

// checkOutput seals one output, reads it, and compares it with the claim.
func (b *Board) checkOutput(ctx context.Context, k Key, claim compact.Output, full bool) (_ sstable.Meta, _ string, err error) {
	name, f, err := b.seal(k, claim.Index)
	if err != nil {
		return sstable.Meta{}, "", err
	}
	info, err := f.Stat()
	if err == nil && (info.Size() <= 0 || uint64(info.Size()) != claim.Size) {
		err = reject("SIZE", "output %d has %d bytes, %d reported", claim.Index, info.Size(), claim.Size)
	}
	if err == nil {
		// The worker says that it synced; the edit that makes the table count is ours.
		err = f.Sync()
	}
	if err != nil {
		return sstable.Meta{}, "", errors.Join(err, f.Close())
	}
	table, err := sstable.Open(warm{f}, sstable.ReaderOptions{Name: compact.OutputName(claim.Index)})
	if err != nil {
		return sstable.Meta{}, "", reject("CORRUPT", "output %d: %v", claim.Index, err)
	}
	defer func() { err = errors.Join(err, table.Close()) }()
	meta := table.Meta()
	if err := compareMeta(claim, meta); err != nil {
		return sstable.Meta{}, "", err
	}
	if full {
		if err := table.Verify(ctx, func(int64) {}); err != nil {
			if ctx.Err() != nil {
				return sstable.Meta{}, "", ctx.Err()
			}
			return sstable.Meta{}, "", reject("CORRUPT", "output %d: %v", claim.Index, err)
		}
	}
	return meta, name, nil
}

// warm is a file whose pages stay: reads will want them once it is installed.
type warm struct{ vfs.File }

func (warm) DontNeed(int64, int64) {}

// compareMeta compares what a worker says of an output with what the file says.
func compareMeta(claim compact.Output, m sstable.Meta) error {
	switch {
	case claim.Digest != m.Digest:
		return reject("DIGEST", "output %d has digest %016x, %016x reported", claim.Index, m.Digest, claim.Digest)
	case ikey.Compare(claim.Smallest, m.Smallest) != 0 || ikey.Compare(claim.Largest, m.Largest) != 0:
		return reject("BOUNDS", "output %d has other bounds than reported", claim.Index)
	case claim.MinSeq != m.MinSeq || claim.MaxSeq != m.MaxSeq:
		return reject("SEQUENCE", "output %d has other sequences than reported", claim.Index)
	case claim.Entries != m.Entries:
		return reject("CONSERVATION", "output %d has %d entries, %d reported", claim.Index, m.Entries, claim.Entries)
	}
	return nil
}

// checkOutputs checks the outputs against the plan and each other, by the node's own reading.
func checkOutputs(p *Plan, outs []compact.Output, s compact.Stats) error {
	lo, hi := hull(p.Job.Inputs)
	var entries uint64
	for i, o := range outs {
		entries += o.Entries
		switch {
		case o.Entries == 0 && o.RangeDeletes == 0:
			return reject("COUNT", "output %d is a table without entries", o.Index)
		case bytes.Compare(o.Smallest.User, lo.User) < 0 || endsAfter(o.Largest, hi):
			return reject("BOUNDS", "output %d from %v to %v is outside of the inputs, %v to %v", o.Index, o.Smallest, o.Largest, lo, hi)
		case ikey.Compare(o.Smallest, o.Largest) > 0:
			return reject("BOUNDS", "output %d from %v to %v", o.Index, o.Smallest, o.Largest)
		case o.MinSeq < p.MinSeq || o.MaxSeq > p.MaxSeq:
			return reject("SEQUENCE", "output %d has sequences %d to %d, the inputs %d to %d", o.Index, o.MinSeq, o.MaxSeq, p.MinSeq, p.MaxSeq)
		case i > 0 && !endsBefore(outs[i-1].Largest, o.Smallest.User):
			return reject("ORDER", "output %d begins at %v, the one before ends at %v", o.Index, o.Smallest, outs[i-1].Largest)
		}
	}
	if entries != s.EntriesOut {
		return reject("CONSERVATION", "%d entries in the outputs, %d reported", entries, s.EntriesOut)
	}
	return nil
}

// hull returns the smallest and largest key of all inputs.
func hull(inputs []compact.Input) (lo, hi ikey.Key) {
	lo, hi = inputs[0].Smallest, inputs[0].Largest
	for _, in := range inputs[1:] {
		if ikey.Compare(in.Smallest, lo) < 0 {
			lo = in.Smallest
		}
		if endsAfter(in.Largest, hi) {
			hi = in.Largest
		}
	}
	return lo, hi
}

// endsAfter reports whether a table that ends at a reaches beyond one that ends at b.
func endsAfter(a, b ikey.Key) bool {
	if c := bytes.Compare(a.User, b.User); c != 0 {
		return c > 0
	}
	return sstable.IsExclusive(b) && !sstable.IsExclusive(a)
}

// endsBefore reports whether a table that ends at largest holds nothing of user or beyond.
func endsBefore(largest ikey.Key, user []byte) bool {
	c := bytes.Compare(largest.User, user)
	return c < 0 || c == 0 && sstable.IsExclusive(largest)
}

// confirm returns those of the claimed inputs whose damage the node sees itself.
func (b *Board) confirm(ctx context.Context, p *Plan, claimed []compact.CorruptInput) []compact.CorruptInput {
	var seen []compact.CorruptInput
	for _, in := range p.Job.Inputs {
		for _, c := range claimed {
			if c.Num != in.Num {
				continue
			}
			if err := b.damage(ctx, in); err != nil {
				seen = append(seen, compact.CorruptInput{Num: in.Num, Reason: err.Error()})
			}
			break
		}
	}
	return seen
}

// damage reads an input in full and returns what is wrong with it, if that is damage and not a
// failure of reading.
func (b *Board) damage(ctx context.Context, in compact.Input) error {
	f, err := b.o.FS.Open(b.tablePath(in.Num))
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("the file is missing")
	}
	if err != nil {
		return nil
	}
	info, err := f.Stat()
	if err == nil && info.Size() != in.Size {
		return errors.Join(fmt.Errorf("%d bytes, %d expected", info.Size(), in.Size), f.Close())
	}
	table, err := sstable.Open(f, sstable.ReaderOptions{FileNum: in.Num, Name: compact.TableName(in.Num)})
	if err == nil {
		defer func() { _ = table.Close() }() // read only
		if table.Meta().Digest != in.Digest {
			return errors.New("digest differs")
		}
		err = table.Verify(ctx, func(int64) {})
	}
	if errors.Is(err, sstable.ErrCorrupt) && !errors.Is(err, sstable.ErrNewerFormat) {
		return err
	}
	return nil
}
