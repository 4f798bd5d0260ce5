package events

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/localpod"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	eventv1 "github.com/pairdb/pairdb/proto/pairdb/event/v1"
)

// Danger: requests wait for NATS, or the events of an outage are lost, doubled or out of order. A minute
// with PAIRDB_LONG, a few seconds without.
func TestNATSGoesAwayUnderLoad(t *testing.T) {
	away := 4 * time.Second
	if os.Getenv("PAIRDB_LONG") != "" {
		away = time.Minute
	}
	pods, _ := podtest.Start(t, localpod.Options{})
	b, pod := brokerOf(t, pods), pods.All()[0]
	c := podtest.Client(t, pod.Addr, client.Options{RetryFor: -1}) // the first failure counts

	load, stop := context.WithCancel(t.Context())
	defer stop()
	var workers sync.WaitGroup
	var done, failed atomic.Int64
	var first atomic.Pointer[error]
	for worker := range 8 {
		workers.Go(func() {
			for i := 0; load.Err() == nil; i++ {
				key := fmt.Sprintf("%d/%d", worker, i%500)
				_, err := c.Put(t.Context(), key, []byte(key))
				if err == nil {
					_, err = c.Get(t.Context(), key)
				}
				if done.Add(1); err != nil {
					failed.Add(1)
					first.CompareAndSwap(nil, &err)
				}
			}
		})
	}

	pods.StopNATS()
	var made []string
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(away); time.Now().Before(end); <-tick.C {
		name := fmt.Sprintf("away-%04d", len(made))
		_, err := c.Admin().Snapshot(t.Context(), &adminv1.SnapshotRequest{Name: name})
		require.NoError(t, err)
		_, err = c.Admin().DeleteSnapshot(t.Context(), &adminv1.DeleteSnapshotRequest{Name: name})
		require.NoError(t, err)
		made = append(made, name)
	}
	require.NoError(t, pods.StartNATS())

	var got []string
	podtest.Eventually(t, 60*time.Second, "the events of the outage are there", func() bool {
		got = nil
		for _, e := range b.events() {
			if e.Kind != event.SnapshotCreated {
				continue
			}
			payload, err := e.Payload()
			require.NoError(t, err)
			if name := payload.(*eventv1.SnapshotCreated).GetName(); strings.HasPrefix(name, "away-") {
				got = append(got, name)
			}
		}
		return len(got) >= len(made)
	})
	stop()
	workers.Wait()
	require.Equal(t, made, got, "in order, each once")
	inOrder(t, b.events())
	if err := first.Load(); err != nil {
		t.Fatalf("%d of %d requests failed, first: %v", failed.Load(), done.Load(), *err)
	}
	require.Greater(t, done.Load(), int64(100))
	t.Logf("%d requests and %d events while NATS was away for %s", done.Load(), len(made), away)
}
