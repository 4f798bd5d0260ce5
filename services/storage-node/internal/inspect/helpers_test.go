package inspect

import (
	"bytes"
	"context"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
)

var update = flag.Bool("update", false, "rewrite golden files")

const dataDir = "data"

// stopped is a clock that stands still: what it writes is the same every time.
type stopped struct{}

func (stopped) Now() time.Time                       { return time.Unix(1_700_000_000, 0) }
func (stopped) After(time.Duration) <-chan time.Time { return nil }

func openEngine(t *testing.T, fs vfs.FS) *engine.Engine {
	t.Helper()
	e, err := engine.Open(dataDir, engine.Options{
		FS: fs, Clock: stopped{}, Rand: rand.New(rand.NewPCG(1, 2)), LogSegmentBytes: 16 << 10, LogOnDemand: true, LogRecycled: -1,
		MemtableBytes: 64 << 10, Compression: []sstable.Compression{sstable.None}, KeepMemtablesAtClose: true, NoAutoCompaction: true,
		ReserveBytes: -1, DeleteBytesPerSecond: -1, Jobs: jobs.Options{Mode: jobs.ModeNever},
	})
	require.NoError(t, err)
	return e
}

func engineKey(user string) []byte { return ikey.AppendEngineKey(nil, "acme", user) }

func encoded(t *testing.T, siblings ...causal.Sibling) []byte {
	t.Helper()
	r, err := causal.NewRecord(siblings)
	require.NoError(t, err)
	return r.Encode(nil)
}

// stamp is a timestamp some seconds after the clock's start.
func stamp(seconds, counter uint64) uint64 { return (1_700_000_000_123+seconds*1000)<<16 | counter }

// newDirectory makes a small data directory with something of everything: a table with range delete,
// an ingested one, and changes that are in the log only.
func newDirectory(t *testing.T) *vfs.MemFS {
	t.Helper()
	fs := vfs.NewMem()
	e := openEngine(t, fs)
	apply := func(change func(*engine.Batch)) {
		var b engine.Batch
		change(&b)
		require.NoError(t, e.Apply(&b, engine.SyncDefault))
	}
	apply(func(b *engine.Batch) {
		b.Set(engineKey("apple"), encoded(t, causal.Sibling{Dot: causal.Dot{Node: "n/1", Counter: 1}, Value: []byte("red"), Timestamp: stamp(0, 7)}))
		b.Set(engineKey("both"), encoded(t,
			causal.Sibling{Dot: causal.Dot{Node: "n/1", Counter: 2}, Clock: causal.Clock{{Node: "m", Counter: 3, Raised: 1_699_999_999}}, Value: []byte("one"), Timestamp: stamp(1, 0)},
			causal.Sibling{Clock: causal.Clock{{Node: "m", Counter: 4}}, Value: []byte{0xff, 0x00}, Timestamp: stamp(2, 0), ExpiresAt: 1_800_000_000}))
	})
	apply(func(b *engine.Batch) {
		b.Set(engineKey("gone"), encoded(t, causal.Sibling{Dot: causal.Dot{Node: "n/1", Counter: 3}, Timestamp: stamp(3, 0), Tombstone: true}))
	})
	apply(func(b *engine.Batch) { b.DeleteRange(ikey.TenantBounds("zoo")) })
	require.NoError(t, e.Flush(context.Background()))
	ingest(t, fs, e)
	apply(func(b *engine.Batch) {
		b.Merge(engineKey("apple"), encoded(t, causal.Sibling{Dot: causal.Dot{Node: "o", Counter: 1}, Value: []byte("green"), Timestamp: stamp(4, 0)}))
		b.Delete(engineKey("gone"))
	})
	require.NoError(t, e.Close())
	return fs
}

func ingest(t *testing.T, fs vfs.FS, e *engine.Engine) {
	t.Helper()
	f, err := fs.Create("bulk.sst", 0o660)
	require.NoError(t, err)
	w := sstable.NewWriter(f, sstable.WriterOptions{})
	v := encoded(t, causal.Sibling{Dot: causal.Dot{Node: "bulk", Counter: 1}, Value: []byte("loaded"), Timestamp: stamp(5, 0)})
	require.NoError(t, w.Add(ikey.Make(engineKey("ingested"), 1, ikey.KindMerge), v))
	_, err = w.Finish()
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
	_, err = e.Ingest(context.Background(), []string{"bulk.sst"})
	require.NoError(t, err)
}

// run runs a subcommand as the binary does.
func run(t *testing.T, fs vfs.FS, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	p := &service.Program{Name: "storage-node", Commands: Commands(fs), Stdout: &out, Stderr: &errs}
	return p.Main(context.Background(), args), out.String(), errs.String()
}

// golden compares with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(got), 0o660))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), got)
}

func read(t *testing.T, fs vfs.FS, name string) []byte {
	t.Helper()
	f, err := fs.Open(name)
	require.NoError(t, err)
	b, err := io.ReadAll(f)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return b
}

func write(t *testing.T, fs vfs.FS, name string, b []byte) {
	t.Helper()
	_ = fs.Remove(name) // tables are read-only
	f, err := fs.Create(name, 0o660)
	require.NoError(t, err)
	_, err = f.Write(b)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// find returns the first file in a subdirectory of the data directory whose name begins with prefix.
func find(t *testing.T, fs vfs.FS, sub, prefix string) string {
	t.Helper()
	names, err := fs.List(path.Join(dataDir, sub))
	require.NoError(t, err)
	for _, name := range names {
		if strings.HasPrefix(name, prefix) {
			return path.Join(sub, name)
		}
	}
	require.FailNow(t, "no such file", "%s in %v", prefix, names)
	return ""
}

// image is every file, to see that nothing changed.
func image(t *testing.T, fs vfs.FS, dir string, into map[string]string) map[string]string {
	t.Helper()
	names, err := fs.List(dir)
	require.NoError(t, err)
	for _, name := range names {
		name = path.Join(dir, name)
		info, err := fs.Stat(name)
		require.NoError(t, err)
		if info.IsDir() {
			image(t, fs, name, into)
		} else {
			into[name] = string(read(t, fs, name))
		}
	}
	return into
}
