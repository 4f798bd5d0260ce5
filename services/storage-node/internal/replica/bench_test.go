package replica

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
)

// benchNode is a node on the disk of the machine with the sizes of production.
func benchNode(b *testing.B) *node {
	b.Chdir(b.TempDir())
	n := openNode(b, "n", vfs.OS, func(o *engine.Options) {
		o.MemtableBytes, o.LogSegmentBytes, o.TableBytes = 0, 0, 0
		o.Jobs = jobs.Options{Mode: jobs.ModeAlways}
	})
	b.Cleanup(func() { require.NoError(b, n.engine.Close()) })
	return n
}

// benchRecords are sorted, with values that pack as text does.
func benchRecords(count, valueBytes int) []Record {
	rng := rand.New(rand.NewPCG(1, 1))
	value := make([]byte, valueBytes)
	out := make([]Record, count)
	for i := range out {
		for k := range value {
			value[k] = "abcdefgh"[rng.IntN(8)]
		}
		rec := causal.Record{Siblings: []causal.Sibling{{
			Dot: causal.Dot{Node: "other", Counter: uint64(i + 1)}, Value: value, Timestamp: causal.Timestamp(time.Now()),
		}}}
		out[i] = Record{Key: ikey.AppendEngineKey(nil, "t", fmt.Sprintf("key-%010d", i)), Value: rec.Encode(nil)}
	}
	return out
}

// writers write into the range until stop is called.
func (n *node) writers(b *testing.B, keys int) (stop func() int) {
	ctx, cancel := context.WithCancel(bg)
	var wg sync.WaitGroup
	var mu sync.Mutex
	total := 0
	for w := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			for ctx.Err() == nil {
				n.put(b, "t", fmt.Sprintf("key-%010d", rng.IntN(keys)), "from a client")
				mu.Lock()
				total++
				mu.Unlock()
			}
		})
	}
	return func() int {
		cancel()
		wg.Wait()
		return total
	}
}

// BenchmarkIngest brings 64 MiB in: as batches of fragments, and as tables of 32 MiB; into a range that
// nobody, or four clients, write to. One iteration is all of it.
func BenchmarkIngest(b *testing.B) {
	const valueBytes, total = 1000, 64 << 20
	records := benchRecords(total/valueBytes, valueBytes)
	for _, written := range []bool{false, true} {
		for _, way := range []struct {
			name string
			f    func(*testing.B, *node, []Record)
		}{{"batches", ingestBatches}, {"tables", ingestTables}} {
			b.Run(fmt.Sprintf("%s/written=%v", way.name, written), func(b *testing.B) {
				clients, took := 0, time.Duration(0)
				for b.Loop() {
					b.StopTimer()
					n := benchNode(b)
					stop := func() int { return 0 }
					if written {
						stop = n.writers(b, len(records))
					}
					b.StartTimer()
					began := time.Now()
					way.f(b, n, records)
					took += time.Since(began)
					b.StopTimer()
					clients += stop()
					b.StartTimer()
				}
				b.SetBytes(total)
				if written {
					b.ReportMetric(float64(clients)/took.Seconds(), "client-writes/s")
				}
			})
		}
	}
}

func ingestBatches(b *testing.B, n *node, records []Record) {
	s := ingestStart()
	s.Sorted = true
	in, err := n.Ingest(bg, s, func(uint64) error { return nil })
	require.NoError(b, err)
	defer in.Close()
	number := uint64(0)
	for from := 0; from < len(records); from += 46 {
		number++
		require.NoError(b, in.Add(number, records[from:min(from+46, len(records))]))
	}
	require.NoError(b, in.Finish())
}

func ingestTables(b *testing.B, n *node, records []Record) {
	const perTable = 32 << 10
	for from := 0; from < len(records); from += perTable {
		name := filepath.Join(b.TempDir(), fmt.Sprint(from))
		f, err := vfs.OS.Create(name, 0o660)
		require.NoError(b, err)
		w := sstable.NewWriter(f, sstable.WriterOptions{})
		for _, r := range records[from:min(from+perTable, len(records))] {
			require.NoError(b, w.Add(ikey.Make(r.Key, 1, ikey.KindMerge), r.Value))
		}
		_, err = w.Finish()
		require.NoError(b, err)
		require.NoError(b, f.Close())
		_, err = n.engine.Ingest(bg, []string{name})
		require.NoError(b, err)
	}
}

// BenchmarkExport sends 64 MiB to nobody.
func BenchmarkExport(b *testing.B) {
	const valueBytes, total = 1000, 64 << 20
	n := benchNode(b)
	ingestBatches(b, n, benchRecords(total/valueBytes, valueBytes))
	require.NoError(b, n.engine.Flush(bg))
	b.SetBytes(total)
	for b.Loop() {
		require.NoError(b, n.Export(bg, ExportRequest{}, func(Chunk) error { return nil }))
	}
}

// BenchmarkDigest compares what is said of 64 MiB, after other changes.
func BenchmarkDigest(b *testing.B) {
	const valueBytes, total = 1000, 64 << 20
	n := benchNode(b)
	ingestBatches(b, n, benchRecords(total/valueBytes, valueBytes))
	require.NoError(b, n.engine.Flush(bg))
	defer n.Close()
	for name, next := range map[string]func(){
		"everything": n.ForgetStanding, "one key has changed": func() { n.put(b, "t", "k", "v") }, "nothing has changed": func() {},
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(total)
			_, err := n.Digest(bg, DigestRequest{LeavesPerRange: 1024, Renew: true})
			require.NoError(b, err)
			for b.Loop() {
				next()
				_, err := n.Digest(bg, DigestRequest{LeavesPerRange: 1024, Renew: true})
				require.NoError(b, err)
			}
		})
	}
}
