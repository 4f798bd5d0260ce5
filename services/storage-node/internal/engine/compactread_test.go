package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
	"github.com/stretchr/testify/require"
)

// After the first compaction 11,941 of 12,000 keys could not be read once: the output had no
// bounds. Whatever levels are merged, point reads and walks must be the same before and after, at
// every snapshot and now, and stay so when all is merged to the bottom.
func TestReadsAreTheSameAfterCompaction(t *testing.T) {
	for round := range 40 {
		rng := rand.New(rand.NewPCG(11, uint64(round)))
		s := newShelf(t, 64<<10, 8)
		h := randomHistory(rng, 20+rng.IntN(150), 3+rng.IntN(25))
		s.spread(rng, h)
		last := ikey.Seq(len(h.entries))
		var snaps []ikey.Seq
		for range rng.IntN(4) {
			snaps = append(snaps, ikey.Seq(rng.IntN(int(last))+1))
		}
		slices.Sort(snaps)
		snaps = slices.Compact(snaps)
		for range 3 {
			s.compact(rng, snaps, rng.IntN(manifest.NumLevels))
			for _, at := range append(snaps, last) {
				s.compare(h.m, at, rng)
			}
		}
		s.compact(rng, nil, manifest.NumLevels-1)
		s.compare(h.m, last, rng)
		s.close()
	}
}

// compact merges level 0 to level to into one run at a level that holds it.
func (s *shelf) compact(rng *rand.Rand, snaps []ikey.Seq, to int) {
	job := compact.Job{ID: 1, Kind: compact.Merge, Snapshots: snaps, MaxOutputs: 64, OutputLevel: max(to, 1),
		Table: compact.TableOptions{Format: sstable.FormatVersion, TargetBytes: int64(300 + rng.IntN(2_000)), BlockBytes: 256, FilterBits: 10}}
	var inputs [manifest.NumLevels][]*manifest.Table
	for level := 0; level <= job.OutputLevel; level++ {
		inputs[level] = s.levels[level]
		s.levels[level] = nil
	}
	older := false
	for _, tables := range s.levels {
		older = older || len(tables) > 0
	}
	if !older {
		job.Bottommost = []compact.Range{{}}
	}
	for level, tables := range manifest.NewVersion(inputs).Levels {
		if level == 0 {
			tables = slices.Clone(tables)
			slices.Reverse(tables)
		}
		for _, in := range tables {
			job.Inputs = append(job.Inputs, compact.Input{Num: in.Num, Level: level, Size: int64(in.Size), Digest: in.Digest, Smallest: in.Smallest, Largest: in.Largest})
		}
	}
	if len(job.Inputs) == 0 {
		return
	}
	first := s.next
	s.next += uint64(job.MaxOutputs)
	outs, _, corrupt, err := compact.Run(context.Background(), job, compact.Env{
		OpenInput: func(in compact.Input) (vfs.File, error) { return s.fs.Open("sst/" + compact.TableName(in.Num)) },
		OpenOutput: func(i int) (vfs.File, error) {
			return s.fs.Create(fmt.Sprintf("sst/%s", compact.TableName(first+uint64(i))), 0o660)
		},
	})
	require.NoError(s.t, err)
	require.Empty(s.t, corrupt)
	for _, o := range outs {
		s.levels[job.OutputLevel] = append(s.levels[job.OutputLevel], &manifest.Table{Num: first + uint64(o.Index), Meta: o.Meta, Origin: manifest.OriginLocal})
	}
	s.publish(ikey.Seq(s.e.visible.Load()))
	for _, in := range job.Inputs {
		s.e.tables.evict(in.Num)
		require.NoError(s.t, s.fs.Remove("sst/"+compact.TableName(in.Num)))
	}
}
