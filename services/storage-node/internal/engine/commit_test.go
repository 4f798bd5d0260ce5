package engine

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/errorfs"
)

func TestBatchesBeyondTheLimitsChangeNothing(t *testing.T) {
	// A batch that is refused half-way would be half applied.
	o := smallOptions(vfs.NewMem())
	o.MaxBatchOps, o.MaxBatchBytes = 3, 4<<10
	e := mustOpen(t, o)
	long := bytes.Repeat([]byte("k"), MaxKeyBytes+1)
	for name, c := range map[string]struct {
		fill func(b *Batch)
		want error
	}{
		"empty key":            {func(b *Batch) { b.Set(nil, rec("v")) }, ErrInvalidKey},
		"long key":             {func(b *Batch) { b.Merge(long, rec("v")) }, ErrInvalidKey},
		"long key of a delete": {func(b *Batch) { b.Delete(long) }, ErrInvalidKey},
		"empty range":          {func(b *Batch) { b.DeleteRange([]byte("b"), []byte("b")) }, ErrInvalidKey},
		"range turned round":   {func(b *Batch) { b.DeleteRange([]byte("b"), []byte("a")) }, ErrInvalidKey},
		"too many changes": {func(b *Batch) {
			for i := range 4 {
				b.Set(testKey(i), rec("v"))
			}
		}, ErrBatchTooLarge},
		"too many bytes": {func(b *Batch) { b.Set(testKey(1), make([]byte, 5<<10)) }, ErrBatchTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			before := e.AppliedSeq()
			var b Batch
			b.Set(testKey(0), rec("with it"))
			c.fill(&b)
			require.ErrorIs(t, e.Apply(&b, SyncDefault), c.want)
			require.Equal(t, before, e.AppliedSeq())
			requireValue(t, e, testKey(0), "")
		})
	}
	var b Batch
	require.NoError(t, e.Apply(&b, SyncDefault), "an empty batch is nothing to do")
	p, err := e.Submit(&b)
	require.NoError(t, err)
	require.NoError(t, p.Wait())
	for i := range 3 {
		b.Set(testKey(i), rec("v"))
	}
	require.NoError(t, e.Apply(&b, SyncDefault), "the limit itself is allowed")
	require.NoError(t, e.Close())
	require.ErrorIs(t, e.Apply(&b, SyncDefault), ErrClosed)
}

func TestPressureDelaysThenRefusesPutsAndLetsDeletesThrough(t *testing.T) {
	// What makes room must go on when nothing else does.
	e := mustOpen(t, smallOptions(vfs.NewMem()))
	put(t, e, testKey(1), "v")
	set := func(p Pressure) { e.pressure.now.Store(&p) }
	var b Batch
	b.Set(testKey(2), rec("v"))

	set(Pressure{Delay: time.Millisecond, Reason: "behind"})
	require.NoError(t, e.Apply(&b, SyncDefault))
	require.EqualValues(t, 1, e.Metrics().Delayed)

	set(Pressure{Refuse: true, Reason: "far behind", RetryAfter: time.Second})
	var stalled *StalledError
	require.ErrorAs(t, e.Apply(&b, SyncDefault), &stalled)
	require.Equal(t, time.Second, stalled.RetryAfter)
	require.Contains(t, stalled.Error(), "far behind")

	set(Pressure{Refuse: true, DiskFull: true, Reason: "no space"})
	require.ErrorIs(t, e.Apply(&b, SyncDefault), ErrDiskFull)

	var del Batch
	del.Delete(testKey(1))
	require.NoError(t, e.Apply(&del, SyncDefault))
	requireValue(t, e, testKey(1), "")
	require.NoError(t, e.Close())
}

func TestConditionFailsWhenSomethingNewerIsThere(t *testing.T) {
	// A Set shadows what it has not read only if nobody checks.
	e := mustOpen(t, smallOptions(vfs.NewMem()))
	key := testKey(5)
	try := func(readSeq ikey.Seq) error {
		var b Batch
		b.SetIfUnchanged(key, rec("mine"), readSeq)
		return e.Apply(&b, SyncDefault)
	}
	for name, overtake := range map[string]func(b *Batch){
		"a fragment of the key":  func(b *Batch) { b.Merge(key, rec("theirs")) },
		"a set of the key":       func(b *Batch) { b.Set(key, rec("theirs")) },
		"a delete of the key":    func(b *Batch) { b.Delete(key) },
		"a range delete over it": func(b *Batch) { b.DeleteRange(testKey(0), testKey(9)) },
	} {
		t.Run(name, func(t *testing.T) {
			_, _, readSeq, err := e.GetLatest(key, nil)
			require.NoError(t, err)
			var b Batch
			overtake(&b)
			require.NoError(t, e.Apply(&b, SyncDefault))
			require.ErrorIs(t, try(readSeq), ErrConflict)
			_, _, readSeq, err = e.GetLatest(key, nil)
			require.NoError(t, err)
			require.NoError(t, try(readSeq))
		})
	}
	_, _, readSeq, err := e.GetLatest(key, nil)
	require.NoError(t, err)
	// Another key, and a range beside it, are no conflict.
	var other Batch
	other.Set(testKey(6), rec("theirs"))
	other.DeleteRange(testKey(6), testKey(7))
	require.NoError(t, e.Apply(&other, SyncDefault))
	require.NoError(t, try(readSeq))
	require.Equal(t, uint64(4), e.Metrics().Conflicts)
	require.NoError(t, e.Close())
}

func TestConditionOnAForgottenRangeConflicts(t *testing.T) {
	// The leader remembers the newest ranges only: a read that is older than those must be made again,
	// for nobody knows any more what overtook it.
	e := mustOpen(t, quietOptions(vfs.NewMem())) // a range delete weighs as much as a small memtable
	_, _, readSeq, err := e.GetLatest(testKey(1), nil)
	require.NoError(t, err)
	for i := range maxRangeOps + 1 {
		var b Batch
		b.DeleteRange(testKey(100+i), testKey(101+i))
		require.NoError(t, e.Apply(&b, SyncNever))
	}
	var b Batch
	b.SetIfUnchanged(testKey(1), rec("v"), readSeq)
	require.ErrorIs(t, e.Apply(&b, SyncDefault), ErrConflict)
	require.NoError(t, e.Close())
}

func TestConditionIsCheckedWithinAGroup(t *testing.T) {
	// Two batches of one group have the same applied state behind them: the later must see the
	// earlier, which is not applied yet.
	e := mustOpen(t, smallOptions(vfs.NewMem()))
	for name, first := range map[string]func(b *Batch){
		"a key":   func(b *Batch) { b.Set(testKey(1), rec("first")) },
		"a range": func(b *Batch) { b.DeleteRange(testKey(0), testKey(3)) },
	} {
		t.Run(name, func(t *testing.T) {
			seq := e.AppliedSeq()
			groups, batches := e.Metrics().GroupSizes[1], e.Metrics().GroupedBatches
			var a, b, c Batch
			first(&a)
			b.SetIfUnchanged(testKey(1), rec("second"), seq)
			c.SetIfUnchanged(testKey(7), rec("third"), seq)
			ra, rb, rc := newRequest(), newRequest(), newRequest()
			ra.batch, rb.batch, rc.batch = &a, &b, &c
			require.NoError(t, e.runAlone(func() error {
				e.commitGroup([]*request{ra, rb, rc})
				return nil
			}))
			require.NoError(t, ra.err)
			require.ErrorIs(t, rb.err, ErrConflict)
			require.NoError(t, rc.err)
			require.Equal(t, seq+2, e.AppliedSeq())
			m := e.Metrics()
			require.Equal(t, groups+1, m.GroupSizes[1], "a group of the two that were logged")
			require.Equal(t, batches+2, m.GroupedBatches)
		})
	}
	require.NoError(t, e.Close())
}

func TestSyncModesSayWhenAWriteIsDurable(t *testing.T) {
	for _, mode := range []SyncMode{SyncGroup, SyncInterval, SyncNever} {
		t.Run(mode.String(), func(t *testing.T) {
			parsed, err := ParseSyncMode(mode.String())
			require.NoError(t, err)
			require.Equal(t, mode, parsed)
			o := smallOptions(vfs.NewMem())
			o.Sync, o.SyncInterval = mode, time.Hour
			e := mustOpen(t, o)
			put(t, e, testKey(1), "v")
			requireValue(t, e, testKey(1), "v")
			syncs := e.Metrics().Syncs
			require.Equal(t, mode == SyncGroup, syncs > 0, "%d syncs", syncs)
			var b Batch
			b.Set(testKey(2), rec("v"))
			p, err := e.Submit(&b)
			require.NoError(t, err)
			require.NoError(t, p.Wait(), "who waits gets durability in every mode")
			require.Greater(t, e.Metrics().Syncs, syncs)
			require.NoError(t, e.Close())
		})
	}
	_, err := ParseSyncMode("sometimes")
	require.ErrorIs(t, err, ErrInvalidOptions)
}

func TestFailedSyncOfTheLogPoisons(t *testing.T) {
	// After a failed fsync nothing is known: to try again and believe is how data is lost.
	mem := vfs.NewMem()
	j := errorfs.None()
	o := smallOptions(errorfs.Wrap(mem, j))
	e := mustOpen(t, o)
	put(t, e, testKey(1), "before")
	j.FailAll(errorfs.Syncs, errors.New("input/output error"))
	var b Batch
	b.Set(testKey(2), rec("lost"))
	require.ErrorIs(t, e.Apply(&b, SyncDefault), ErrPoisoned)
	j.FailAll(errorfs.Syncs, nil)
	require.ErrorIs(t, e.Apply(&b, SyncDefault), ErrPoisoned, "it stays")
	requireValue(t, e, testKey(1), "before")
	requireValue(t, e, testKey(2), "")
	require.ErrorIs(t, e.Flush(context.Background()), ErrPoisoned)
	require.Error(t, e.Close())
}

func FuzzChanges(f *testing.F) {
	var b Batch
	b.Set(testKey(1), rec("v"))
	b.Merge(testKey(2), rec("w"))
	b.Delete(testKey(3))
	b.DeleteRange(testKey(4), testKey(5))
	f.Add(b.ops)
	f.Add([]byte{0})
	f.Fuzz(func(t *testing.T, ops []byte) {
		var again Batch
		for n := 0; len(ops) > 0; n++ {
			require.LessOrEqual(t, n, 1<<20)
			c, rest, err := nextChange(ops)
			if err != nil {
				require.ErrorIs(t, err, ErrCorrupt)
				return
			}
			require.Less(t, len(rest), len(ops), "every change takes something")
			again.Reset()
			switch c.kind {
			case ikey.KindSet:
				again.Set(c.key, c.value)
			case ikey.KindMerge:
				again.Merge(c.key, c.value)
			case ikey.KindDelete:
				again.Delete(c.key)
			}
			if again.Len() == 1 {
				same, _, err := nextChange(again.ops)
				require.NoError(t, err)
				require.Equal(t, c.kind, same.kind)
				require.Equal(t, c.key, same.key)
			}
			ops = rest
		}
	})
}
