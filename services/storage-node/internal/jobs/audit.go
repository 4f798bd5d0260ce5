package jobs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/vfs"
)

// codeContent is the code of a result that no merge of the inputs gives.
const codeContent = "CONTENT"

// auditTable has equal entries become equal bytes, whatever options the worker wrote with and wherever it cut:
// one table, not packed, without a filter.
var auditTable = compact.TableOptions{TargetBytes: math.MaxInt64, BlockBytes: 64 << 10}

// audited decides by Options.AuditProbability, and by what workers of this session have done: after one that
// was caught every merge is done again.
func (b *Board) audited(j *job) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !j.worker.local && (b.caught || b.o.Rand.Float64() < b.o.AuditProbability)
}

// audit does the merge of a plan once more, into nowhere, and compares what it gives with what the outputs
// hold: no count and no checksum tells a value from another one that a worker has made up. files are the
// sealed outputs.
func (b *Board) audit(ctx context.Context, p *Plan, claimed compact.Stats, outs []compact.Output, files []string) error {
	again := p.Job
	again.Table, again.MaxOutputs = auditTable, 1
	want, stats, err := intoNowhere(ctx, again, func(in compact.Input) (vfs.File, error) { return b.o.FS.Open(b.tablePath(in.Num)) })
	if err != nil {
		return fmt.Errorf("merge again: %w", err)
	}
	// The outputs are merged too, by themselves: nothing is left in them that shadows or may be collected.
	taken := compact.Job{ID: p.Job.ID, Kind: compact.Merge, OutputLevel: p.Job.OutputLevel, Snapshots: p.Job.Snapshots, Table: auditTable, MaxOutputs: 1}
	names := map[uint64]string{}
	for i, o := range outs {
		names[uint64(o.Index)] = files[i]
		taken.Inputs = append(taken.Inputs, compact.Input{Num: uint64(o.Index), Level: p.Job.OutputLevel, Size: int64(o.Size), Digest: o.Digest,
			Smallest: o.Smallest, Largest: o.Largest})
	}
	got, _, err := intoNowhere(ctx, taken, func(in compact.Input) (vfs.File, error) {
		f, err := b.o.FS.Open(names[in.Num])
		return warm{f}, err
	})
	if errors.Is(err, compact.ErrInvalidJob) {
		return nil // together they are larger than a job may be: nothing is known against them
	}
	if err != nil {
		return reject(codeContent, "the outputs can't be merged: %v", err)
	}
	switch {
	case want.Entries != got.Entries:
		return reject(codeContent, "%d entries, the node gets %d", got.Entries, want.Entries)
	case (want.RangeDeletes == 0) != (got.RangeDeletes == 0):
		return reject(codeContent, "%d range deletes, the node gets %d", got.RangeDeletes, want.RangeDeletes)
	// A range delete is in two pieces where the outputs are cut, and the bytes are others.
	case want.RangeDeletes == 0 && want.Digest != got.Digest:
		return reject(codeContent, "entries with other keys, values or clocks than the node gets")
	case stats.Shadowed != claimed.Shadowed || stats.Joined != claimed.Joined || stats.Collected != claimed.Collected || stats.Dropped != claimed.Dropped:
		return reject(codeContent, "counts %+v, the node gets %+v", claimed, stats)
	}
	return nil
}

// intoNowhere runs a merge whose output is only summed up; the zero Meta is that of no output.
func intoNowhere(ctx context.Context, j compact.Job, open func(compact.Input) (vfs.File, error)) (compact.Output, compact.Stats, error) {
	if len(j.Inputs) == 0 {
		return compact.Output{}, compact.Stats{}, nil
	}
	outs, stats, _, err := compact.Run(ctx, j, compact.Env{
		OpenInput:  open,
		OpenOutput: func(int) (vfs.File, error) { return &nowhere{}, nil },
	})
	if err != nil || len(outs) == 0 {
		return compact.Output{}, stats, err
	}
	return outs[0], stats, nil
}

// nowhere is a file that forgets. It has what a writer of tables calls; the rest of the interface is nil.
type nowhere struct {
	vfs.File
	size int64
}

func (n *nowhere) WriteAt(p []byte, off int64) (int, error) {
	n.size = max(n.size, off+int64(len(p)))
	return len(p), nil
}

func (n *nowhere) Stat() (fs.FileInfo, error) { return sized{size: n.size}, nil }

func (n *nowhere) Truncate(size int64) error { n.size = size; return nil }

func (n *nowhere) Sync() error { return nil }

func (n *nowhere) Close() error { return nil }

// sized knows its size only.
type sized struct {
	fs.FileInfo
	size int64
}

func (s sized) Size() int64 { return s.size }
