package crash

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/localpod"
)

func TestCallsAreExactWhileTheNodeIsKilled(t *testing.T) {
	// kill -9 between a write and its answer: the client repeats, and what was applied must neither be
	// applied again, nor be refused by its own first try, nor be missed by a watch.
	const rounds, writers, each = 6, 4, 150
	pods, _ := podtest.Start(t, localpod.Options{NoCompactor: true})
	pod := pods.All()[0]
	c := podtest.Client(t, pod.Addr, client.Options{RetryFor: time.Minute, Timeout: 20 * time.Second})

	begun := make(chan struct{})
	seen := map[string]int{}
	watched := make(chan error, 1)
	go func() {
		start, end := client.Prefix("once/")
		started := false
		for e, err := range c.Watch(t.Context(), start, end, 0) {
			if err != nil {
				watched <- err
				return
			}
			if !started {
				close(begun)
				started = true
			}
			if e.Kind == client.Written {
				seen[e.Record.Key]++
			}
			if len(seen) == writers*each {
				break
			}
		}
		watched <- nil
	}()

	var done atomic.Int64
	var writing sync.WaitGroup
	<-begun
	for w := range writers {
		writing.Go(func() {
			for i := range each {
				_, err := c.Update(t.Context(), "count", func(v client.Value) ([]byte, error) { return append(v.Bytes, '|'), nil })
				if err != nil {
					t.Errorf("update: %v", err)
				}
				r, err := c.Put(t.Context(), fmt.Sprintf("once/%d/%d", w, i), nil, client.IfAbsent())
				if err != nil || r.Siblings != 1 {
					t.Errorf("put: %+v %v", r, err)
				}
				done.Add(1)
			}
		})
	}
	for range rounds {
		target := min(done.Load()+1+rand.Int64N(writers*each/rounds/2), writers*each)
		podtest.Eventually(t, 30*time.Second, "the writers go on", func() bool { return done.Load() >= target })
		nodes := pod.Node.Restarts() + 1
		require.NoError(t, pod.Node.Kill())
		podtest.Eventually(t, recoveryLimit, "serving again after kill -9", func() bool {
			return pod.Node.Restarts() == nodes && pod.IsReady(t.Context())
		})
	}
	writing.Wait()
	require.NoError(t, <-watched)
	for k, times := range seen {
		require.Equal(t, 1, times, "the watch delivered %s again", k)
	}
	v, err := c.Get(t.Context(), "count")
	require.NoError(t, err)
	require.Len(t, v.Bytes, writers*each)
	require.Empty(t, v.Siblings)
}
