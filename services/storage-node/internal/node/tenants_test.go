package node

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/config"
)

// What an operator set must hold after a restart, and before the first request of it.
func TestTenantsOfANode(t *testing.T) {
	cfg := testConfig(t)
	w := startNode(t, cfg, realFS()).ready()
	ctx := t.Context()
	create := func(name string, q *adminv1.TenantQuota) {
		_, err := w.admin.CreateTenant(ctx, &adminv1.CreateTenantRequest{Name: name, Quota: q})
		require.NoError(t, err)
	}
	create("t", &adminv1.TenantQuota{StoredBytes: 100})
	require.NoError(t, w.put("k", string(make([]byte, 4<<10)))) // packed on disk
	_, err := w.admin.Flush(ctx, &adminv1.FlushRequest{})
	require.NoError(t, err)
	require.NoError(t, w.end())

	strict := *cfg
	strict.Tenants = config.TenantsStrict
	w = startNode(t, &strict, realFS()).ready()
	require.Len(t, w.get("k"), 4<<10)
	_, err = w.storage.Read(ctx, &storagev1.ReadRequest{Tenant: "other", Key: "k"})
	require.Equal(t, codes.NotFound, status.Code(err))
	require.Equal(t, "TENANT_NOT_FOUND", reason(err))
	// The size is looked up when the node begins to serve.
	eventually(t, "the quota holds", func() bool { return reason(w.put("k2", "v")) == "QUOTA_EXCEEDED" })
	_, err = w.admin.DropTenant(ctx, &adminv1.DropTenantRequest{Name: "t"})
	require.NoError(t, err)
	require.NoError(t, w.end())

	w = startNode(t, cfg, realFS()).ready()
	require.Equal(t, "TENANT_NOT_FOUND", reason(w.put("k", "v")))
	create("t", nil)
	require.Empty(t, w.get("k"))
	require.NoError(t, w.put("k", "v"))
	require.NoError(t, w.end())
}

// A name of a tenant is UTF-8 with quotes and line ends of its own: a scrape must survive it, and a
// node with many tenants must not have as many time series.
func TestTenantMetricsAreBoundedAndEscaped(t *testing.T) {
	cfg := testConfig(t)
	cfg.TenantMetrics = 2
	w := startNode(t, cfg, realFS()).ready()
	odd := `"quoted"\n{tenant="x"} ä ` + "\u2028"
	for _, name := range []string{odd, "t", "u"} {
		_, err := w.admin.CreateTenant(t.Context(), &adminv1.CreateTenantRequest{Name: name, Quota: &adminv1.TenantQuota{OperationsPerSecond: 1}})
		require.NoError(t, err)
	}
	require.NoError(t, w.put("k", "v"))
	require.Equal(t, "QUOTA_EXCEEDED", reason(w.put("k", "v")))
	for _, name := range []string{odd, "u", "unknown"} {
		_, err := w.storage.Read(t.Context(), &storagev1.ReadRequest{Tenant: name, Key: "k"})
		require.NoError(t, err)
	}
	code, text := w.probe("/metrics")
	require.Equal(t, 200, code)
	require.Contains(t, text, `pairdb_tenant_requests_total{node_id="n1",tenant="t"} 1`)
	require.Contains(t, text, `pairdb_tenant_quota_refusals_total{node_id="n1",quota="operations_per_second",tenant="t"} 1`)
	require.Contains(t, text, `pairdb_tenant_quota_refusals_total{node_id="n1",quota="in_flight",tenant="t"} 0`)
	require.Contains(t, text, `pairdb_tenant_bytes_total{node_id="n1",tenant="t"} 2`)
	require.Contains(t, text, `pairdb_tenant_stored_bytes{node_id="n1",tenant="t"} 0`)
	require.Contains(t, text, `pairdb_tenant_requests_total{node_id="n1",tenant="_other"} 2`)
	require.Contains(t, text, `pairdb_tenant_requests_total{node_id="n1",tenant="\"quoted\"\\n{tenant=\"x\"} ä `+"\u2028"+`"} 1`)
	require.NotContains(t, text, `tenant="u"`)
	require.NoError(t, w.end())
}

// The measurement behind `make bench-tenants`: what tenant B notices of tenant A.
func TestNoisyNeighbour(t *testing.T) {
	if os.Getenv("BENCH_TENANTS") == "" {
		t.Skip("a measurement: make bench-tenants")
	}
	const (
		rounds  = 5
		phase   = 3 * time.Second
		quota   = 300  // operations/s that A may have
		offered = 3000 // that A tries
	)
	w := startNode(t, testConfig(t), realFS()).ready()
	_, err := w.admin.CreateTenant(t.Context(), &adminv1.CreateTenantRequest{Name: "A"})
	require.NoError(t, err)
	limit := func(q *adminv1.TenantQuota) {
		_, err := w.admin.UpdateTenant(t.Context(), &adminv1.UpdateTenantRequest{Name: "A", Quota: q})
		require.NoError(t, err)
	}
	var alone, limited, free []time.Duration
	var done, refused atomic.Int64
	noise := func(f func() []time.Duration) []time.Duration {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		w.hammer(ctx, &wg, offered, &done, &refused)
		out := f()
		cancel()
		wg.Wait()
		return out
	}
	for range rounds {
		alone = append(alone, w.quiet(phase)...)
		limit(&adminv1.TenantQuota{OperationsPerSecond: quota})
		limited = append(limited, noise(func() []time.Duration { return w.quiet(phase) })...)
		took, not := done.Swap(0), refused.Swap(0)
		limit(&adminv1.TenantQuota{})
		free = append(free, noise(func() []time.Duration { return w.quiet(phase) })...)
		fmt.Printf("A within its quota of %d/s: %d/s taken, %d/s refused; without one: %d/s taken\n",
			quota, took/int64(phase.Seconds()), not/int64(phase.Seconds()), done.Swap(0)/int64(phase.Seconds()))
	}
	p99 := func(all []time.Duration) time.Duration {
		slices.Sort(all)
		return all[len(all)*99/100]
	}
	a, l, f := p99(alone), p99(limited), p99(free)
	fmt.Printf("p99 of a write of B (%d each): alone %v; beside A over its quota %v, ratio %.2f; beside A without a quota %v, ratio %.2f\n",
		len(alone), a, l, float64(l)/float64(a), f, float64(f)/float64(a))
	require.NoError(t, w.end())
}

// quiet is tenant B: two writers with a hundred writes a second together. It returns how long they took.
func (w *testNode) quiet(d time.Duration) []time.Duration {
	var mu sync.Mutex
	var all []time.Duration
	var wg sync.WaitGroup
	end := time.Now().Add(d)
	for g := range 2 {
		wg.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for i := 0; time.Now().Before(end); i++ {
				<-tick.C
				start := time.Now()
				_, err := w.storage.Write(w.t.Context(), &storagev1.WriteRequest{Tenant: "B", Key: fmt.Sprint(g, "/", i), Value: make([]byte, 100)})
				took := time.Since(start)
				if err != nil {
					w.t.Errorf("B: %v", err)
					return
				}
				mu.Lock()
				all = append(all, took)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return all
}

// hammer is tenant A: it sends so many writes a second whatever the node says, until ctx ends.
func (w *testNode) hammer(ctx context.Context, wg *sync.WaitGroup, perSecond int, done, refused *atomic.Int64) {
	const writers = 50
	for g := range writers {
		wg.Go(func() {
			tick := time.NewTicker(time.Second * writers / time.Duration(perSecond))
			defer tick.Stop()
			for i := 0; ; i++ {
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
				_, err := w.storage.Write(ctx, &storagev1.WriteRequest{Tenant: "A", Key: fmt.Sprint(g, "/", i%1000), Value: make([]byte, 4<<10)})
				switch {
				case err == nil:
					done.Add(1)
				case reason(err) == "QUOTA_EXCEEDED":
					refused.Add(1)
				case ctx.Err() == nil:
					w.t.Errorf("A: %v", err)
				}
			}
		})
	}
}
