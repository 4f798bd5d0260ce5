package compact

import (
	"bytes"
	"fmt"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
)

// splitter writes entries into outputs and cuts them at their target size.
type splitter struct {
	run  *run
	kept []ikey.RangeDelete // those that the outputs must have

	w    *sstable.Writer // nil: no output is open
	file vfs.File
	// lo is where the open output, or the next one, begins: the cut before it. nil for the first.
	lo []byte
}

// write writes the versions of a key, newest first.
func (s *splitter) write(user []byte, versions []version) error {
	if len(versions) == 0 {
		return nil
	}
	target := s.run.job.Table.TargetBytes
	if target == 0 {
		target = defaultTargetBytes
	}
	if s.w != nil && s.w.EstimatedBytes() >= uint64(target) && len(s.run.outputs)+1 < s.run.job.MaxOutputs {
		if err := s.cut(bytes.Clone(user)); err != nil {
			return err
		}
	}
	if err := s.open(); err != nil {
		return err
	}
	for _, v := range versions {
		if v.trailer.Kind() == ikey.KindDelete {
			v.value = nil
		}
		k := ikey.Key{User: user, Trailer: v.trailer}
		var err error
		if v.isStored {
			err = s.w.AddStored(k, v.stored)
		} else {
			err = s.w.Add(k, v.value)
		}
		if err != nil {
			return s.wrap(err)
		}
		s.run.stats.EntriesOut++
	}
	return nil
}

// open makes sure that an output is open.
func (s *splitter) open() error {
	if s.w != nil {
		return nil
	}
	f, err := s.run.env.OpenOutput(len(s.run.outputs) + 1)
	if err != nil {
		return s.wrap(err)
	}
	s.file = f
	s.w = sstable.NewWriter(sink{f, s.run}, s.run.job.writerOptions())
	return nil
}

// writerOptions say how outputs are written.
func (j *Job) writerOptions() sstable.WriterOptions {
	t := j.Table
	return sstable.WriterOptions{BlockBytes: t.BlockBytes, Compression: t.Compression, ValueBlockBytes: t.ValueBlockBytes,
		FilterBitsPerKey: t.FilterBits, Inspect: causal.Inspect}
}

// cut ends the open output before the key hi, nil for the last one.
func (s *splitter) cut(hi []byte) error {
	for _, d := range clip(s.kept, s.lo, hi) {
		if err := s.w.AddRangeDelete(d); err != nil {
			return s.wrap(err)
		}
	}
	meta, err := s.w.Finish()
	if err != nil {
		return s.wrap(err)
	}
	// The worker's report says that these bytes are durable.
	if err := s.file.Sync(); err != nil {
		return s.wrap(err)
	}
	f := s.file
	s.w, s.file = nil, nil
	if err := f.Close(); err != nil {
		return s.wrap(err)
	}
	s.run.outputs = append(s.run.outputs, Output{Index: len(s.run.outputs) + 1, Meta: meta})
	s.lo = hi
	return nil
}

// end ends the last output. Range deletes that lie behind all entries go with it, or make one.
func (s *splitter) end() error {
	if s.w == nil && len(clip(s.kept, s.lo, nil)) == 0 {
		return nil
	}
	if err := s.open(); err != nil {
		return err
	}
	return s.cut(nil)
}

// abort closes the output of a job that failed.
func (s *splitter) abort() error {
	if s.file == nil {
		return nil
	}
	f := s.file
	s.w, s.file = nil, nil
	return f.Close()
}

func (s *splitter) wrap(err error) error {
	return fmt.Errorf("output %s: %w", OutputName(len(s.run.outputs)+1), err)
}
