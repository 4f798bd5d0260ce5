package fulldisk

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/localpod"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// volumeBytes holds the commit log's segments, 32 MiB each, and some tables.
const volumeBytes = 256 << 20

// volume is a small file system of its own, with a file that takes as much of it as the test wants.
type volume struct {
	*testing.T
	dir     string
	ballast *os.File
}

// mount mounts a tmpfs at dir until the test ends.
func mount(t *testing.T, dir string) *volume {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o770))
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0770", volumeBytes)); err != nil {
		require.NotEqual(t, "true", os.Getenv("CI"), "CI must run where a tmpfs can be mounted: %v", err)
		t.Skipf("a tmpfs can't be mounted here (%v): run as root", err)
	}
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(dir, 0)) })
	f, err := os.Create(filepath.Join(dir, "ballast"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) }) // before it is unmounted
	return &volume{t, dir, f}
}

// free returns the free part of the volume, in percent.
func (v *volume) free() float64 {
	v.Helper()
	var st syscall.Statfs_t
	require.NoError(v, syscall.Statfs(v.dir, &st))
	return 100 * float64(st.Bavail) / float64(st.Blocks)
}

// leave makes the ballast so large that a part of the volume is free, in percent. What the node does
// meanwhile does not matter: it asks again.
func (v *volume) leave(percent float64) {
	v.Helper()
	for range 20 {
		delta := int64((v.free() - percent) / 100 * volumeBytes)
		if delta > -(64<<10) && delta < 64<<10 {
			return
		}
		info, err := v.ballast.Stat()
		require.NoError(v, err)
		size := max(info.Size()+delta, 0)
		require.NoError(v, v.ballast.Truncate(size))
		if size > 0 {
			require.NoError(v, syscall.Fallocate(int(v.ballast.Fd()), 0, 0, size))
		}
	}
}

// fill takes everything that is left.
func (v *volume) fill() {
	v.Helper()
	block := make([]byte, 64<<10)
	info, err := v.ballast.Stat()
	require.NoError(v, err)
	for off := info.Size(); ; {
		n, err := v.ballast.WriteAt(block, off)
		if off += int64(n); err != nil {
			require.ErrorIs(v, err, syscall.ENOSPC)
			return
		}
	}
}

// empty takes the ballast away.
func (v *volume) empty() { v.Helper(); require.NoError(v, v.ballast.Truncate(0)) }

// bytesOf is the value of record i: random, so that nothing packs it.
func bytesOf(i, size int) []byte {
	r := rand.New(rand.NewPCG(uint64(i), 5))
	b := make([]byte, size)
	for j := range b {
		b[j] = byte(r.Uint32())
	}
	return b
}

// history is what the node has acknowledged.
type history struct {
	*testing.T
	c      *client.Client
	values map[string][]byte // nil: deleted
	next   int
}

// put writes one new record and remembers it if it was acknowledged.
func (h *history) put(size int) error {
	h.Helper()
	key, value := fmt.Sprintf("key-%06d", h.next), bytesOf(h.next, size)
	h.next++
	_, err := h.c.Put(h.Context(), key, value)
	if err == nil {
		h.values[key] = value
	}
	return err
}

// remove deletes a record that is there.
func (h *history) remove(key string) error {
	_, err := h.c.Delete(h.Context(), key)
	if err == nil {
		h.values[key] = nil
	}
	return err
}

// check reads back everything.
func (h *history) check() {
	h.Helper()
	for key, want := range h.values {
		v, err := h.c.Get(h.Context(), key)
		require.NoError(h, err, "reads are never refused: %s", key)
		require.Equal(h, want != nil, v.Found, key)
		if want != nil {
			require.Equal(h, want, v.Bytes, key)
		}
	}
}

// refused waits until f is refused for a reason, and requires that the refusal says when to come back.
func (h *history) refused(reason string, f func() error) {
	h.Helper()
	var err error
	podtest.Eventually(h, 30*time.Second, "refused with "+reason, func() bool {
		err = f()
		return err != nil && client.Reason(err) == reason
	})
	require.Equal(h, codes.ResourceExhausted, client.Code(err), "%v", err)
	require.True(h, client.Retryable(err), "%v", err)
}

const (
	small = 1000
	large = 100 << 10 // more than a throttled disk takes
)

func TestDiskThatFillsTakesNothingWithItAndRecovers(t *testing.T) {
	// A full disk is the most ordinary of all failures. It must not cost an acknowledged write, not stop
	// reads, not need a restart, and leave the way out of it open: deletes.
	dir, err := os.MkdirTemp("", "pod")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	v := mount(t, filepath.Join(dir, "node-0", "data"))
	pods, _ := podtest.Start(t, localpod.Options{Dir: dir, NoCompactor: true, Env: []string{
		"PAIRDB_MEMTABLE_BYTES=1MiB", "PAIRDB_TABLE_BYTES=1MiB", "PAIRDB_COMPACTION_LOCAL=always", "PAIRDB_DISK_RESERVE_BYTES=4MiB",
	}})
	pod := pods.All()[0]
	h := &history{T: t, c: podtest.Client(t, pod.Addr, client.Options{RetryFor: -1, Timeout: 20 * time.Second}), values: map[string][]byte{}}
	state := func() *adminv1.StatusResponse {
		s, err := h.c.Admin().Status(t.Context(), &adminv1.StatusRequest{})
		require.NoError(t, err)
		return s
	}

	for range 200 {
		require.NoError(t, h.put(large))
	}
	for range 500 {
		require.NoError(t, h.put(small))
	}
	h.check()

	v.leave(7.5)
	h.refused("DISK_THROTTLED", func() error { return h.put(large) })
	for range 50 {
		require.NoError(t, h.put(small), "small writes are taken by a throttled disk")
	}
	require.Contains(t, fmt.Sprint(state().GetDegraded()), "disk: throttled")

	v.leave(3)
	h.refused("DISK_FULL", func() error { return h.put(small) })
	h.refused("DISK_FULL", func() error { return h.put(large) })
	require.Equal(t, "refused", state().GetWritePressure())
	require.True(t, pod.IsReady(t.Context()), "a full disk must not take reads away")
	h.check()
	for i := range 100 {
		require.NoError(t, h.remove(fmt.Sprintf("key-%06d", i)), "deletes are the way out")
	}
	h.check()

	v.fill()
	require.Less(t, v.free(), 0.1)
	podtest.Eventually(t, 30*time.Second, "what is left is for flushes", func() bool {
		err := h.remove("key-000101")
		return err != nil && client.Reason(err) == "DISK_FULL"
	})
	h.check()
	require.True(t, pod.IsReady(t.Context()))

	v.empty()
	podtest.Eventually(t, 30*time.Second, "writes are taken again", func() bool {
		err := h.put(large)
		require.True(t, err == nil || client.Code(err) == codes.ResourceExhausted, "%v", err)
		return err == nil
	})
	require.NoError(t, h.put(small))
	require.NotContains(t, fmt.Sprint(state().GetDegraded()), "disk")
	_, err = h.c.Admin().Flush(t.Context(), &adminv1.FlushRequest{})
	require.NoError(t, err)
	h.check()

	require.NoError(t, pod.Node.Kill())
	require.NoError(t, pods.Ready(t.Context()))
	h.check()
}

func TestNodeStartsOnAFullDiskAndServesReads(t *testing.T) {
	// Kubernetes restarts a pod whenever it likes: also one whose volume is full.
	dir, err := os.MkdirTemp("", "pod")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	v := mount(t, filepath.Join(dir, "node-0", "data"))
	pods, _ := podtest.Start(t, localpod.Options{Dir: dir, NoCompactor: true, Env: []string{
		"PAIRDB_MEMTABLE_BYTES=1MiB", "PAIRDB_TABLE_BYTES=1MiB", "PAIRDB_COMPACTION_LOCAL=always", "PAIRDB_DISK_RESERVE_BYTES=4MiB",
	}})
	pod := pods.All()[0]
	h := &history{T: t, c: podtest.Client(t, pod.Addr, client.Options{RetryFor: -1, Timeout: 20 * time.Second}), values: map[string][]byte{}}
	for range 1000 {
		require.NoError(t, h.put(small))
	}
	v.leave(3)
	require.NoError(t, pod.Node.Kill())
	require.NoError(t, pods.Ready(t.Context()))
	podtest.Eventually(t, 20*time.Second, "the client has found the node again", func() bool {
		_, err := h.c.Get(t.Context(), "key-000000")
		return err == nil
	})
	h.check()
	h.refused("DISK_FULL", func() error { return h.put(small) })
	require.NoError(t, h.remove("key-000000"))
	v.empty()
	podtest.Eventually(t, 30*time.Second, "writes are taken again", func() bool { return h.put(large) == nil })
	h.check()
}
