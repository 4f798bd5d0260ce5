// Package sidecartest checks what the pod does when its compactor is away, slow or hostile, from
// outside. It never imports a service.
package sidecartest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/localpod"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

func TestDeadCompactorSlowsThenRefusesWritesAndNothingElse(t *testing.T) {
	// Without compaction level 0 grows until reads drown; the node must say no before that, go on
	// reading, and work the debt off by itself when the compactor returns.
	pods, _ := podtest.Start(t, localpod.Options{Env: []string{
		"PAIRDB_COMPACTION_LOCAL=never", "PAIRDB_MEMTABLE_BYTES=1MiB", "PAIRDB_TABLE_BYTES=1MiB",
	}})
	pod := pods.All()[0]
	pod.Compactor.Stop()
	c := podtest.Client(t, pod.Addr, client.Options{RetryFor: -1, Timeout: 20 * time.Second})

	stored, refusal := fillUntilRefused(t, c)
	require.Equal(t, codes.ResourceExhausted, client.Code(refusal), "%v", refusal)
	require.NotEmpty(t, client.Reason(refusal))
	require.True(t, client.Retryable(refusal), "the refusal says when to come back")
	s := status(t, c)
	require.Equal(t, "refused", s.WritePressure)
	podtest.Eventually(t, 45*time.Second, "a compactor that is away for 30 s is a reason to be degraded", func() bool {
		return strings.Contains(fmt.Sprint(status(t, c).GetDegraded()), "compaction")
	})
	require.Zero(t, s.Compaction.InstalledExternal+s.Compaction.InstalledLocal)
	require.True(t, pod.IsReady(t.Context()), "a dead compactor must not unready the node")

	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		i := r.IntN(stored)
		v, err := c.Get(t.Context(), keyOf(i))
		require.NoError(t, err)
		require.True(t, v.Found)
		require.Equal(t, valueOf(i), v.Bytes)
	}

	require.NoError(t, pod.Compactor.Start())
	podtest.Eventually(t, time.Minute, "the debt is worked off and writes are taken again", func() bool {
		s := status(t, c)
		return s.WritePressure == "none" && s.Compaction.InstalledExternal > 0
	})
	_, err := c.Put(t.Context(), "after", []byte("yes"))
	require.NoError(t, err)
	require.Zero(t, status(t, c).Compaction.InstalledLocal, "the local executor is switched off")
}

func keyOf(i int) string { return fmt.Sprintf("key-%08d", i*7919%99_999_989) }

func valueOf(i int) []byte {
	r := rand.New(rand.NewPCG(uint64(i), 3))
	b := make([]byte, 1000)
	for j := range b {
		b[j] = byte(r.Uint32())
	}
	return b
}

// fillUntilRefused writes until the node says no, and returns how many records it took.
func fillUntilRefused(t *testing.T, c *client.Client) (int, error) {
	t.Helper()
	var b client.Batch
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for n := 0; ; n += 200 {
		b.Reset()
		for i := n; i < n+200; i++ {
			b.Put(keyOf(i), valueOf(i))
		}
		if err := c.Write(ctx, &b); err != nil {
			require.NoError(t, ctx.Err(), "never refused; %d records stored", n)
			return n, err
		}
	}
}

func status(t *testing.T, c *client.Client) *adminv1.StatusResponse {
	t.Helper()
	s, err := c.Admin().Status(t.Context(), &adminv1.StatusRequest{})
	require.NoError(t, err)
	return s
}

func TestDeadCompactorCostsWritesNothingUntilTheSoftLimit(t *testing.T) {
	// Its work piles up; that is all, until there is so much that the node says so. Two pods take the same writes
	// in turn, so that whatever else this machine does hits both; a whole try can be bad luck.
	const tries, bar = 5, 1.5
	var ratio float64
	for range tries {
		with, without := p99UntilDelayed(t)
		ratio = float64(without) / float64(with)
		t.Logf("p99 of a durable write of 4 KiB: %s beside a compactor, %s without one: ratio %.2f", with, without, ratio)
		if ratio <= bar {
			return
		}
	}
	require.LessOrEqual(t, ratio, bar)
}

// p99UntilDelayed writes to a pod with a compactor and to one without until the latter delays writes, and
// returns the 99th percentile of each.
func p99UntilDelayed(t *testing.T) (with, without time.Duration) {
	t.Helper()
	var pods [2]*localpod.Pod
	var clients [2]*client.Client
	for i := range pods {
		p, _ := podtest.Start(t, localpod.Options{Env: small, NoMigrator: true, NoHealthAgent: true, NoCompactor: i == 1})
		pods[i] = p.All()[0]
		clients[i] = podtest.Client(t, pods[i].Addr, client.Options{RetryFor: -1, Timeout: 20 * time.Second})
	}
	var took [2][]time.Duration
	for n := 0; status(t, clients[1]).GetWritePressure() == "none"; {
		for range 100 {
			value := slices.Concat(valueOf(4*n), valueOf(4*n+1), valueOf(4*n+2), valueOf(4*n+3))
			for i := range clients {
				to := (i + n) % 2
				begun := time.Now()
				_, err := clients[to].Put(t.Context(), keyOf(n), value)
				require.NoError(t, err)
				took[to] = append(took[to], time.Since(begun))
			}
			n++
		}
		require.Less(t, n, 20_000, "level 0 never gets full")
	}
	require.Greater(t, len(took[0]), 1000)
	require.Positive(t, status(t, clients[0]).GetCompaction().GetInstalledExternal(), "the one compactor has worked")
	require.Zero(t, status(t, clients[1]).GetCompaction().GetInstalledExternal())
	for i := range took {
		// The last hundred may have met the limit.
		took[i] = took[i][:len(took[i])-100]
		slices.Sort(took[i])
	}
	return took[0][len(took[0])*99/100], took[1][len(took[1])*99/100]
}
