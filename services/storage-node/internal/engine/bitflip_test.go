package engine

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/stretchr/testify/require"
)

func flipOptions(fs vfs.FS) Options {
	return Options{FS: fs, Clock: systemClock{}, Rand: rand.New(rand.NewPCG(1, 1)), LogSegmentBytes: 4 << 10, LogRecycled: -1,
		MemtableBytes: 64 << 10, BlockBytes: 512, BlockCacheBytes: -1, RowCacheBytes: -1, NoAutoCompaction: true,
		KeepMemtablesAtClose: true, ReserveBytes: -1, DeleteBytesPerSecond: -1,
		Jobs: jobs.Options{Mode: jobs.ModeNever}}
}

// image is the files of a directory tree.
type image map[string][]byte

func takeImage(t testing.TB, fs vfs.FS, dir string, img image) {
	names, err := fs.List(dir)
	require.NoError(t, err)
	for _, name := range names {
		p := path.Join(dir, name)
		info, err := fs.Stat(p)
		require.NoError(t, err)
		if info.IsDir() {
			takeImage(t, fs, p, img)
		} else {
			img[p] = readAll(t, fs, p)
		}
	}
}

func (img image) restore(t testing.TB) *vfs.MemFS {
	fs := vfs.NewMem()
	for _, p := range slices.Sorted(maps.Keys(img)) {
		require.NoError(t, fs.MkdirAll(path.Dir(p), 0o770))
		f, err := fs.Create(p, 0o660)
		require.NoError(t, err)
		_, err = f.WriteAt(img[p], 0)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
	return fs
}

// flipKind names the kind of file, "" for those without content that counts.
func flipKind(p string) string {
	switch {
	case strings.HasSuffix(p, ".sst"):
		return "table"
	case strings.Contains(p, "/manifest/MANIFEST-"):
		return "manifest"
	case strings.Contains(p, "/manifest/"):
		return "marker"
	case strings.Contains(p, "/log/"):
		return "log"
	case strings.HasSuffix(p, "/FORMAT"):
		return "FORMAT"
	}
	return ""
}

// Any byte of any file may rot. With each byte of one small file of each kind flipped, the engine
// must notice (refuse to open, fail the read, or report it when checked), or the byte must make no
// difference. A wrong or missing record is the worst that a store can do. Only the newest group of
// the log, behind the last synced offset, may be taken for a torn tail.
func TestEveryFlippedByteIsFoundOrHarmless(t *testing.T) {
	fs := vfs.NewMem()
	e, err := Open("db", flipOptions(fs))
	require.NoError(t, err)
	rng := rand.New(rand.NewPCG(5, 5))
	m := newModel()
	write := func(n int) {
		for i := range n {
			o := op{kind: ikey.KindSet, key: fmt.Sprintf("t\x00k%02d", rng.IntN(20)), record: randomRecord(rng, 20)}
			switch i % 6 {
			case 3:
				o.kind = ikey.KindMerge
			case 5:
				o = op{kind: ikey.KindRangeDelete, key: o.key, end: o.key + "0"}
			}
			var b Batch
			addTo(&b, o)
			require.NoError(t, e.Apply(&b, SyncGroup))
			m.apply([]op{o}, e.AppliedSeq())
		}
	}
	write(25)
	require.NoError(t, e.Flush(context.Background()))
	write(12)
	require.NoError(t, e.Close())

	img := image{}
	takeImage(t, fs, "db", img)
	done := map[string]bool{}
	for _, p := range slices.Sorted(maps.Keys(img)) {
		kind := flipKind(p)
		if kind == "" || len(img[p]) == 0 {
			continue
		}
		t.Run(fmt.Sprintf("%s %s", kind, path.Base(p)), func(t *testing.T) { flipAll(t, img, p, kind, m) })
		done[kind] = true
	}
	for _, kind := range []string{"table", "manifest", "marker", "log", "FORMAT"} {
		if kind != "marker" {
			require.True(t, done[kind], "no file of kind %s was tried", kind)
		}
	}
}

func flipAll(t *testing.T, img image, p, kind string, m *model) {
	good := img[p]
	// Long runs of zeros (preallocated space) are sampled: one byte in 32.
	counts := map[string]int{}
	for pos := range good {
		if pos%32 != 0 && pos > 64 && zeros(good, pos-32, pos+32) {
			continue
		}
		bad := maps.Clone(img)
		flipped := slices.Clone(good)
		flipped[pos] ^= 1 << (pos * 7 % 8)
		bad[p] = flipped
		counts[flipOnce(t, bad, kind, pos, m)]++
	}
	t.Logf("%d bytes: %v", len(good), counts)
}

func zeros(b []byte, from, to int) bool {
	for _, c := range b[max(from, 0):min(to, len(b))] {
		if c != 0 {
			return false
		}
	}
	return true
}

// flipOnce returns how the damage came out.
func flipOnce(t *testing.T, img image, kind string, pos int, m *model) string {
	checked := "harmless"
	findings, err := CheckDir(context.Background(), "db", img.restore(t), CheckOptions{})
	require.NoError(t, err, "%s byte %d", kind, pos)
	if slices.ContainsFunc(findings, func(f Finding) bool { return !f.Harmless }) {
		checked = "found by check"
	}
	e, err := Open("db", flipOptions(img.restore(t)))
	if err != nil {
		require.NotEqual(t, "harmless", checked, "%s byte %d: check finds nothing, open says %v", kind, pos, err)
		return "refused at open"
	}
	defer func() { require.NoError(t, e.Close()); requireNothingPinned(t, e) }()
	failed, equal := compareFlipped(t, e, kind, pos, m)
	switch {
	case failed:
		return "read failed"
	case !equal:
		return "torn tail"
	}
	return checked
}

// compareFlipped reads everything. A failure must be damage that is said; an answer must be right,
// now or, in the log, before the newest write.
func compareFlipped(t *testing.T, e *Engine, kind string, pos int, m *model) (failed, equal bool) {
	got := map[string]string{}
	for _, k := range m.sorted {
		value, found, err := e.Get([]byte(k), nil)
		if err != nil {
			require.ErrorIs(t, err, ErrCorrupt, "%s byte %d", kind, pos)
			failed = true
		} else if found {
			got[k] = string(value)
		} else {
			got[k] = ""
		}
	}
	candidates := []ikey.Seq{m.last()}
	if kind == "log" {
		candidates = append(candidates, m.marks[len(m.marks)-2])
	}
	for i, at := range candidates {
		right := true
		for k, v := range got {
			right = right && string(m.get(k, at)) == v
		}
		if right {
			return failed, i == 0
		}
	}
	t.Fatalf("%s byte %d: wrong answers: %v", kind, pos, got)
	return false, false
}
