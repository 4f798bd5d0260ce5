package engine

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pairdb/pairdb/libs/vfs"
)

// writeBenchKeys is how many different keys the benchmarks write.
const writeBenchKeys = 1 << 20

var benchPacked = flag.Bool("packed", false, "benchmarks of writes pack the log")

func benchOptions() Options {
	o := Options{FS: vfs.OS, Clock: systemClock{}, Rand: rand.New(rand.NewPCG(1, 2)), ReserveBytes: -1}
	o.Jobs.LocalRate = -1
	o.NoLogCompression = !*benchPacked
	return o
}

// benchValues are values of 1 KiB that compress to about 55 %.
func benchValues(rng *rand.Rand) [][]byte {
	values := make([][]byte, 64)
	for i := range values {
		raw := make([]byte, 1000)
		for j := range raw {
			raw[j] = 'x'
			if j%20 < 11 {
				raw[j] = byte(rng.Uint32())
			}
		}
		values[i] = rec(string(raw))
	}
	return values
}

// writeBenchKey writes key number i of 24 bytes; neighbouring numbers are far apart.
func writeBenchKey(key []byte, i uint64) []byte {
	key = append(key[:0], "tenant\x00................\x00"...)
	binary.BigEndian.PutUint64(key[7:], (i%writeBenchKeys)*0x9e3779b97f4a7c15|1)
	return key
}

// benchWrites writes b.N values with so many writers. Overwriting draws keys at random, filling takes
// each one once.
func benchWrites(b *testing.B, e *Engine, writers int, overwrite bool) {
	var next atomic.Uint64
	times := make([][]int32, writers)
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 3))
			values := benchValues(rng)
			var key []byte
			var batch Batch
			l := make([]int32, 0, b.N/writers+1)
			for {
				i := next.Add(1) - 1
				if i >= uint64(b.N) {
					break
				}
				k := i
				if overwrite {
					k = rng.Uint64N(writeBenchKeys)
				}
				key = writeBenchKey(key, k)
				began := time.Now()
				batch.Reset()
				batch.Set(key, values[i%64])
				if err := e.Apply(&batch, SyncDefault); err != nil {
					b.Error(err)
					return
				}
				l = append(l, int32(time.Since(began)/time.Microsecond))
			}
			times[w] = l
		})
	}
	wg.Wait()
	b.StopTimer()
	all := slices.Concat(times...)
	slices.Sort(all)
	m := e.Metrics()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "puts/s")
	b.ReportMetric(float64(m.Batches)/float64(max(m.Syncs, 1)), "writes/sync")
	b.ReportMetric(float64(all[len(all)*999/1000]), "p99.9-us")
	b.ReportMetric(float64(all[len(all)-1]), "max-us")
	b.ReportMetric(float64(m.StallTime.Milliseconds()), "stall-ms")
}

func benchOpen(b *testing.B, dir string, o Options) *Engine {
	e, err := Open(dir, o)
	if err != nil {
		b.Fatal(err)
	}
	return e
}

// BenchmarkWrite writes values of 1 KiB under keys of 24 bytes to the real disk. The log's amplification
// is log-B/B.
func BenchmarkWrite(b *testing.B) {
	for _, c := range []struct {
		name      string
		mode      SyncMode
		writers   int
		overwrite bool
	}{
		{"durable", SyncGroup, 1, false}, {"durable", SyncGroup, 16, false}, {"durable", SyncGroup, 64, false},
		{"fill", SyncNever, 1, false}, {"fill", SyncNever, 4, false}, {"overwrite", SyncNever, 4, true},
	} {
		b.Run(fmt.Sprintf("%s/writers=%d", c.name, c.writers), func(b *testing.B) {
			o := benchOptions()
			o.Sync = c.mode
			e := benchOpen(b, b.TempDir(), o)
			benchWrites(b, e, c.writers, c.overwrite)
			b.ReportMetric(float64(e.log.Metrics().WrittenBytes)/float64(e.Metrics().BatchBytes), "log-B/B")
			if err := e.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkRecovery opens what a killed process leaves that had 57 MB in its log.
func BenchmarkRecovery(b *testing.B) {
	for _, mode := range []SyncMode{SyncGroup, SyncNever} {
		b.Run(mode.String(), func(b *testing.B) {
			dir := b.TempDir()
			o := benchOptions()
			o.Sync = SyncNever
			e := benchOpen(b, filepath.Join(dir, "live"), o)
			values := benchValues(rand.New(rand.NewPCG(1, 3)))
			var batch Batch
			var key []byte
			for i := range uint64(57_000_000 / 1060) {
				key = writeBenchKey(key, i)
				batch.Reset()
				batch.Set(key, values[i%64])
				sync := SyncNever
				if i%1000 == 0 {
					sync = mode
				}
				if err := e.Apply(&batch, sync); err != nil {
					b.Fatal(err)
				}
			}
			if err := os.CopyFS(filepath.Join(dir, "killed"), os.DirFS(filepath.Join(dir, "live"))); err != nil {
				b.Fatal(err)
			}
			if err := e.Close(); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				again := filepath.Join(dir, strconv.Itoa(i))
				if err := os.CopyFS(again, os.DirFS(filepath.Join(dir, "killed"))); err != nil {
					b.Fatal(err)
				}
				o.Rand = rand.New(rand.NewPCG(1, 2))
				b.StartTimer()
				e := benchOpen(b, again, o)
				b.StopTimer()
				if _, found, err := e.Get(writeBenchKey(key, 1), nil); err != nil || !found {
					b.Fatal(found, err)
				}
				if err := errors.Join(e.Close(), os.RemoveAll(again)); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
