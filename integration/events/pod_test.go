package events

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/localpod"
	"github.com/pairdb/pairdb/libs/sidecar"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	eventv1 "github.com/pairdb/pairdb/proto/pairdb/event/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
)

// find waits for the newest event of a kind and returns its payload.
func (b *broker) find(limit time.Duration, kind string) proto.Message {
	b.t.Helper()
	var found event.Event
	podtest.Eventually(b.t, limit, kind, func() bool {
		for _, e := range b.events() {
			if e.Kind == kind {
				found = e
			}
		}
		return found.Kind != ""
	})
	payload, err := found.Payload()
	require.NoError(b.t, err)
	return payload
}

// damage flips all bytes of a table but the first and the last KiB: it still looks like one.
func damage(t *testing.T, path string) {
	t.Helper()
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Greater(t, len(content), 4<<10)
	for i := 1 << 10; i < len(content)-1<<10; i++ {
		content[i] ^= 0x55
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(content, 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// Danger: what a real pod publishes is not what the catalogue promises.
func TestRealPodPublishesWhatHappensToIt(t *testing.T) {
	pods, _ := podtest.Start(t, localpod.Options{})
	b, pod := brokerOf(t, pods), pods.All()[0]
	require.NotEmpty(t, b.find(20*time.Second, event.NodeStarted).(*eventv1.NodeStarted).GetVersion())
	require.NotNil(t, b.find(20*time.Second, event.NodeReady))
	pod.Compactor.Stop() // thirty seconds until it is missed: below

	c := podtest.Client(t, pod.Addr, client.Options{})
	for i := range 500 {
		_, err := c.Put(t.Context(), fmt.Sprint("key", i), []byte(strings.Repeat("v", 500)))
		require.NoError(t, err)
	}
	_, err := c.Admin().Flush(t.Context(), &adminv1.FlushRequest{})
	require.NoError(t, err)
	_, err = c.Admin().Snapshot(t.Context(), &adminv1.SnapshotRequest{Name: "s1"})
	require.NoError(t, err)
	require.Equal(t, "s1", b.find(20*time.Second, event.SnapshotCreated).(*eventv1.SnapshotCreated).GetName())

	tables, err := filepath.Glob(filepath.Join(pod.DataDir, "sst", "*.sst"))
	require.NoError(t, err)
	require.NotEmpty(t, tables)
	damage(t, tables[0])
	verify, err := c.Admin().Verify(t.Context(), &adminv1.VerifyRequest{})
	for err == nil {
		_, err = verify.Recv()
	}
	require.NotEmpty(t, b.find(30*time.Second, event.TableCorrupt).(*eventv1.TableCorrupt).GetError())
	require.NotEmpty(t, b.find(30*time.Second, event.NodeDegraded).(*eventv1.NodeDegraded).GetReasons())

	require.NotEmpty(t, b.find(time.Minute, event.CompactionDegraded).(*eventv1.CompactionChanged).GetReason())
	require.NoError(t, pod.Compactor.Start())
	require.NotEmpty(t, b.find(time.Minute, event.CompactionRecovered).(*eventv1.CompactionChanged).GetReason())

	pod.Node.Stop()
	require.NotEmpty(t, b.find(20*time.Second, event.NodeStopping).(*eventv1.NodeStopping).GetReason())
	follow(t, b)
	inOrder(t, b.events())
}

// emitAll hands the node an event of each kind, as its health-agent would, each twice.
func emitAll(t *testing.T, socket string, kinds ...string) {
	t.Helper()
	conn, err := sidecar.Dial(socket)
	require.NoError(t, err)
	defer conn.Close()
	for _, kind := range kinds {
		row, ok := event.Lookup(kind)
		require.True(t, ok)
		data, err := event.EncodePayload(kind, row.Example)
		require.NoError(t, err)
		for range 2 {
			_, err = nodev1.NewNodeServiceClient(conn).Emit(t.Context(), &nodev1.EmitRequest{
				Id: "agent." + kind, Kind: kind, TimeMs: time.Now().UnixMilli(), Payload: data,
			})
			require.NoError(t, err)
		}
	}
}

// inOrder checks that each event is there once and that their sequences rise.
func inOrder(t *testing.T, events []event.Event) {
	t.Helper()
	seen, last := map[string]bool{}, uint64(0)
	for _, e := range events {
		require.False(t, seen[e.ID], "%s is there twice", e.ID)
		seen[e.ID] = true
		require.Greater(t, e.Sequence, last)
		last = e.Sequence
	}
}

// follow looks at the events with the tool.
func follow(t *testing.T, b *broker) {
	t.Helper()
	cmd := exec.Command(filepath.Join(podtest.Binaries(t), "pairctl"), "events", "--nats", b.url(), "--since", "1h", "--kind", "node.")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, kind := range []string{event.NodeStarted, event.NodeReady, event.NodeStopping} {
		require.Contains(t, string(out), kind)
	}
	require.NotContains(t, string(out), event.TableCorrupt)
}

// Danger: an operator learns of a full disk from the first refused write.
func TestRealPodTellsOfItsDisk(t *testing.T) {
	var s unix.Statfs_t
	require.NoError(t, unix.Statfs(os.TempDir(), &s))
	taken := s.Blocks - s.Bfree
	used := int(100 * taken / (taken + s.Bavail)) // as df counts
	if used < 2 || used > 90 {
		require.Empty(t, os.Getenv("CI"), "%d %% of the disk of temporary files are used: nothing is tested", used)
		t.Skipf("%d %% of the disk of temporary files are used", used)
	}
	for kind, percents := range map[string][3]int{
		event.DiskWarning: {used / 2, 99, 100}, event.DiskThrottled: {1, used / 2, 100}, event.DiskFull: {1, 1, used / 2},
	} {
		t.Run(kind, func(t *testing.T) {
			pods, _ := podtest.Start(t, localpod.Options{NoCompactor: true, NoHealthAgent: true, Env: []string{
				fmt.Sprint("PAIRDB_DISK_WARNING_PERCENT=", percents[0]), fmt.Sprint("PAIRDB_DISK_THROTTLED_PERCENT=", percents[1]),
				fmt.Sprint("PAIRDB_DISK_FULL_PERCENT=", percents[2]),
			}})
			changed := brokerOf(t, pods).find(30*time.Second, kind).(*eventv1.DiskChanged)
			require.Positive(t, changed.GetTotalBytes())
			require.InDelta(t, used, changed.GetUsedPercent(), 2)
		})
	}
}

// Danger: events of a node that is killed while NATS is away are lost, or come back in another order.
func TestKilledNodePublishesWhatItLeft(t *testing.T) {
	pods, _ := podtest.Start(t, localpod.Options{NoCompactor: true, NoHealthAgent: true})
	pods.StopNATS()
	b, pod := brokerOf(t, pods), pods.All()[0]
	c := podtest.Client(t, pod.Addr, client.Options{RetryFor: time.Minute})
	const rounds = 4
	for i := range rounds {
		for _, name := range []string{"a", "b"} {
			_, err := c.Admin().Snapshot(t.Context(), &adminv1.SnapshotRequest{Name: fmt.Sprint(name, i)})
			require.NoError(t, err)
		}
		emitAll(t, pod.Socket, event.MembershipJoined) // stored when it returns, and all before it
		require.NoError(t, pod.Node.Kill())
		podtest.Eventually(t, 20*time.Second, "it is back", func() bool { return pod.Node.Restarts() == i+1 && pod.IsReady(t.Context()) })
	}
	require.NoError(t, pods.StartNATS())
	var made []string
	podtest.Eventually(t, 30*time.Second, "all are published", func() bool {
		made = nil
		started := 0
		for _, e := range b.events() {
			if e.Kind == event.SnapshotCreated {
				payload, err := e.Payload()
				require.NoError(t, err)
				made = append(made, payload.(*eventv1.SnapshotCreated).GetName())
			}
			if e.Kind == event.NodeStarted {
				started++
			}
		}
		return started == rounds+1
	})
	require.Equal(t, []string{"a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"}, made)
	inOrder(t, b.events())
}
