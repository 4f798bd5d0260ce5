package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
)

func isConflict(err error) bool { return errors.Is(err, ErrConflict) }

// valueOf returns the value of a record that rec made.
func valueOf(record []byte) string {
	r, err := causal.Decode(record)
	if err != nil || len(r.Siblings) == 0 {
		return ""
	}
	return string(r.Siblings[0].Value)
}

// fragment of another actor than rec's, so that both are siblings.
func sibling(actor, value string) []byte {
	r, err := causal.NewRecord([]causal.Sibling{{Dot: causal.Dot{Node: actor, Counter: 1}, Value: []byte(value), Timestamp: 2 << 16}})
	if err != nil {
		panic(err)
	}
	return r.Encode(nil)
}

// tombstone returns the record of a deletion at a time.
func tombstone(at uint64) []byte {
	r, err := causal.NewRecord([]causal.Sibling{{Dot: causal.Dot{Node: "n", Counter: 2}, Tombstone: true, Timestamp: at}})
	if err != nil {
		panic(err)
	}
	return r.Encode(nil)
}

// tableFile writes a table to ingest.
func tableFile(t testing.TB, fs vfs.FS, name string, fill func(w *sstable.Writer)) string {
	t.Helper()
	f, err := fs.Create(name, 0o660)
	require.NoError(t, err)
	w := sstable.NewWriter(f, sstable.WriterOptions{})
	fill(w)
	_, err = w.Finish()
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return name
}

// ingestKeys ingests a fragment for each key.
func ingestKeys(t testing.TB, e *Engine, keys ...string) ikey.Seq {
	t.Helper()
	slices.Sort(keys)
	name := tableFile(t, e.fs, "incoming.sst", func(w *sstable.Writer) {
		for _, k := range keys {
			require.NoError(t, w.Add(ikey.Make([]byte(k), 1, ikey.KindMerge), sibling("ingested", k)))
		}
	})
	seq, err := e.Ingest(context.Background(), []string{name})
	require.NoError(t, err)
	return seq
}

// actors returns whose siblings a key has.
func actors(t testing.TB, e *Engine, key []byte) (names []string) {
	t.Helper()
	value, found, err := e.Get(key, nil)
	require.NoError(t, err)
	if !found {
		return nil
	}
	r, err := causal.Decode(value)
	require.NoError(t, err)
	for _, s := range r.Siblings {
		names = append(names, s.Dot.Node)
	}
	slices.Sort(names)
	return names
}

func TestIngestJoinsWithWhatIsThere(t *testing.T) {
	// Wherever the older state is (row cache, memtable, table), an ingested fragment must be joined
	// with it, and must not be hidden by it.
	for name, prepare := range map[string]func(*testing.T, *Engine){
		"memtable":  func(*testing.T, *Engine) {},
		"table":     func(t *testing.T, e *Engine) { require.NoError(t, e.Flush(context.Background())) },
		"row cache": func(t *testing.T, e *Engine) { requireValue(t, e, testKey(5), "v") },
		"last level": func(t *testing.T, e *Engine) {
			require.NoError(t, e.Compact(context.Background(), nil, nil, nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewMem()
			o := smallOptions(fs)
			e := mustOpen(t, o)
			for i := range 10 {
				put(t, e, testKey(i), "v")
			}
			prepare(t, e)
			s := e.NewSnapshot()
			seq := ingestKeys(t, e, string(testKey(5)), string(testKey(50)))
			check := func() {
				require.Equal(t, []string{"ingested", "n"}, actors(t, e, testKey(5)))
				require.Equal(t, []string{"ingested"}, actors(t, e, testKey(50)))
				require.Equal(t, []string{"n"}, actors(t, e, testKey(6)))
			}
			check()
			old, found, err := s.Get(testKey(5), nil)
			require.NoError(t, err)
			require.True(t, found)
			require.Equal(t, rec("v"), old, "a snapshot does not change")
			require.NoError(t, s.Close())
			require.Equal(t, seq, e.VisibleSeq())
			m := e.Metrics()
			require.Equal(t, uint64(1), m.Ingests)
			require.Positive(t, m.IngestedTables)
			require.Positive(t, m.IngestedBytes)
			put(t, e, testKey(50), "newer")
			require.Equal(t, []string{"n"}, actors(t, e, testKey(50)), "a later Set replaces it")
			require.NoError(t, e.Compact(context.Background(), nil, nil, nil))
			require.Equal(t, []string{"ingested", "n"}, actors(t, e, testKey(5)))
			require.NoError(t, e.Close())
			e = mustOpen(t, o)
			require.Equal(t, []string{"ingested", "n"}, actors(t, e, testKey(5)))
			require.Equal(t, []string{"n"}, actors(t, e, testKey(50)))
			require.NoError(t, e.Close())
			requireNothingPinned(t, e)
		})
	}
}

func TestIngestJoinsEntriesOfOneKey(t *testing.T) {
	// Files that overlap bring several fragments of a key; they have one sequence in the tree, so they
	// must become one entry.
	e := mustOpen(t, quietOptions(vfs.NewMem()))
	a := tableFile(t, e.fs, "a.sst", func(w *sstable.Writer) {
		require.NoError(t, w.Add(ikey.Make(testKey(1), 9, ikey.KindMerge), sibling("a", "1")))
		require.NoError(t, w.Add(ikey.Make(testKey(1), 3, ikey.KindSet), sibling("b", "2")))
	})
	b := tableFile(t, e.fs, "b.sst", func(w *sstable.Writer) {
		require.NoError(t, w.Add(ikey.Make(testKey(1), 7, ikey.KindMerge), sibling("c", "3")))
		require.NoError(t, w.Add(ikey.Make(testKey(2), 7, ikey.KindMerge), sibling("c", "4")))
	})
	_, err := e.Ingest(context.Background(), []string{a, b})
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b", "c"}, actors(t, e, testKey(1)))
	require.Equal(t, []string{"c"}, actors(t, e, testKey(2)))
	require.NoError(t, e.Close())
}

func TestIngestRefusesWhatIsNotAFragment(t *testing.T) {
	// Foreign files are input: deletes, nonsense and damage must change nothing.
	fs := vfs.NewMem()
	e := mustOpen(t, quietOptions(fs))
	put(t, e, testKey(1), "v")
	before := e.AppliedSeq()
	damaged := tableFile(t, fs, "damaged.sst", func(w *sstable.Writer) {
		require.NoError(t, w.Add(ikey.Make(testKey(1), 1, ikey.KindMerge), sibling("a", "1")))
	})
	f, err := fs.OpenReadWrite(damaged)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{0xee}, 40)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	for name, tc := range map[string]struct {
		file string
		want error
	}{
		"delete": {tableFile(t, fs, "1.sst", func(w *sstable.Writer) {
			require.NoError(t, w.Add(ikey.Make(testKey(1), 1, ikey.KindDelete), nil))
		}), ErrInvalidTable},
		"range delete": {tableFile(t, fs, "2.sst", func(w *sstable.Writer) {
			require.NoError(t, w.AddRangeDelete(ikey.RangeDelete{Start: []byte("a"), End: []byte("b"), Seq: 1}))
		}), ErrInvalidTable},
		"no record": {tableFile(t, fs, "3.sst", func(w *sstable.Writer) {
			require.NoError(t, w.Add(ikey.Make(testKey(1), 1, ikey.KindMerge), []byte("junk")))
		}), ErrInvalidTable},
		"long key": {tableFile(t, fs, "4.sst", func(w *sstable.Writer) {
			require.NoError(t, w.Add(ikey.Make(make([]byte, MaxKeyBytes+1), 1, ikey.KindMerge), sibling("a", "1")))
		}), ErrInvalidTable},
		"damaged": {damaged, ErrCorrupt},
	} {
		_, err := e.Ingest(context.Background(), []string{tc.file})
		require.ErrorIs(t, err, tc.want, name)
	}
	_, err = e.Ingest(context.Background(), []string{"missing.sst"})
	require.Error(t, err)
	_, err = e.Ingest(context.Background(), make([]string, maxIngestFiles+1))
	require.ErrorIs(t, err, ErrInvalidTable)
	seq, err := e.Ingest(context.Background(), nil)
	require.NoError(t, err, "nothing to ingest")
	require.Equal(t, before, seq)
	requireValue(t, e, testKey(1), "v")
	names, err := fs.List("data/sst")
	require.NoError(t, err)
	require.Empty(t, names, "what was written for a refused ingest is gone")
	require.NoError(t, e.Close())
}

func TestIngestBeginsAgainWhenWritesOvertakeIt(t *testing.T) {
	// The sequence of an ingest is chosen ahead; if writes pass it, publishing would put new data below
	// old.
	e := mustOpen(t, quietOptions(vfs.NewMem()))
	put(t, e, testKey(1), "v")
	name := tableFile(t, e.fs, "a.sst", func(w *sstable.Writer) {
		require.NoError(t, w.Add(ikey.Make(testKey(1), 9, ikey.KindMerge), sibling("a", "1")))
	})
	in := &ingest{e: e, seq: e.AppliedSeq() + 1}
	require.NoError(t, in.write(context.Background(), []string{name}))
	put(t, e, testKey(2), "overtakes")
	_, err := in.publish(context.Background())
	require.ErrorIs(t, err, errOvertaken)
	in.drop()
	_, err = e.Ingest(context.Background(), []string{name})
	require.NoError(t, err)
	require.Equal(t, []string{"a", "n"}, actors(t, e, testKey(1)))
	require.NoError(t, e.Close())
}

func TestIngestGoesOnWhileWritersKeepTheRangeBusy(t *testing.T) {
	// An ingest waits for memtables that overlap it to be flushed; writers in that range must not keep
	// it waiting for ever.
	e := mustOpen(t, smallOptions(vfs.NewMem()))
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			var b Batch
			b.Set(testKey(i%20), rec("w"))
			if err := e.Apply(&b, SyncDefault); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for i := range 5 {
		ingestKeys(t, e, string(testKey(i)), string(testKey(100+i)))
	}
	close(stop)
	<-done
	for i := range 5 {
		require.Contains(t, actors(t, e, testKey(100+i)), "ingested")
	}
	require.NoError(t, e.Close())
}

func TestTailExpandsIngestsEvenAfterTheirTablesWereCompactedAway(t *testing.T) {
	// A follower that never hears of an ingest has other data than we, for ever. The tables that the
	// marker names must outlive compactions and restarts.
	fs := vfs.NewMem()
	o := smallOptions(fs)
	e := mustOpen(t, o)
	require.NoError(t, e.PinTail("follower", 1))
	put(t, e, testKey(1), "before")
	seq := ingestKeys(t, e, string(testKey(1)), string(testKey(2)))
	put(t, e, testKey(3), "after")
	require.NoError(t, e.Compact(context.Background(), nil, nil, nil))
	for i := range 200 {
		put(t, e, testKey(500+i), fmt.Sprintf("%0100d", i))
	}
	require.NoError(t, e.Flush(context.Background()))
	require.NoError(t, e.Close())
	e = mustOpen(t, o)
	feed := readFeed(t, e, 1)
	require.Equal(t, ikey.KindSet, feed[0].Kind)
	require.Equal(t, testKey(1), feed[0].Key)
	for i, key := range [][]byte{testKey(1), testKey(2)} {
		c := feed[1+i]
		require.Equal(t, ikey.KindMerge, c.Kind)
		require.Equal(t, seq, c.Seq)
		require.Equal(t, key, c.Key)
		require.Equal(t, sibling("ingested", string(key)), c.Value)
	}
	require.Equal(t, testKey(3), feed[3].Key)
	require.Len(t, feed, 4+200)

	require.NoError(t, e.UnpinTail("follower"))
	for i := range 300 {
		put(t, e, testKey(500+i), fmt.Sprintf("%0100d", i))
	}
	require.NoError(t, e.Flush(context.Background()))
	_, err := e.Tail(1)
	require.ErrorIs(t, err, ErrOutOfRange)
	require.Empty(t, keptForTail(e.manifest.NodeMeta()), "nothing is kept any more")
	require.NoError(t, e.Close())
	findings, err := CheckDir(context.Background(), testDir, fs, CheckOptions{})
	require.NoError(t, err)
	require.Empty(t, findings)
}

// readFeed returns the changes from from on that readers see.
func readFeed(t testing.TB, e *Engine, from ikey.Seq) (out []Change) {
	t.Helper()
	tail, err := e.Tail(from)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for {
		c, err := tail.Next(ctx)
		if errors.Is(err, context.Canceled) {
			break
		}
		require.NoError(t, err)
		c.Key, c.Value = slices.Clone(c.Key), slices.Clone(c.Value)
		out = append(out, c)
	}
	require.NoError(t, tail.Close())
	return out
}
