package monitoring

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/localpod"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

const (
	nodes = 3
	// namedTenants are shown by name; the load writes for more.
	namedTenants = 3
	// settled is how long Prometheus may take to see what has happened: a few scrapes and evaluations.
	settled = 30 * time.Second
)

// emptyWhenWell are queries of dashboards that rightly have no data on a healthy cluster, by a part of them.
var emptyWhenWell = map[string]string{
	`ALERTS{`:                               "nothing fires",
	`pairdb_health_degraded{`:               "only reasons that hold are drawn",
	`pairdb_storage_degraded{`:              "only reasons that hold are drawn",
	`_request_errors_total{`:                "no request fails",
	`pairdb_migrator_fence_seconds_bucket{`: "nothing is handed over",
}

// ofTheMachine are alerts that a slow, small or full machine may be about to raise: they say nothing about
// the rules. None can fire within the minute that the test takes.
var ofTheMachine = map[string]string{
	"PairDBDiskUsageHigh":       "the disk of the machine",
	"PairDBDiskAlmostFull":      "the disk of the machine",
	"PairDBDiskRefusesWrites":   "the disk of the machine",
	"PairDBDiskFullWithin7Days": "a minute of growth is no trend; it waits for an hour",
	"PairDBWriteLatencyHigh":    "the disk of the machine",
	"PairDBReadLatencyHigh":     "the processors of the machine",
	"PairDBMemoryNearLimit":     "the memory of the machine",
	"PairDBCacheHitRateLow":     "the load reads what is not there",
}

func TestClusterUnderLoadIsSeenAndRaisesNoAlarm(t *testing.T) {
	// An alert that fires on a healthy cluster is switched off by its reader; a panel without data is found
	// in an incident.
	debian(t, "prometheus")
	pods, _ := podtest.Start(t, localpod.Options{Nodes: nodes, Env: []string{fmt.Sprintf("PAIRDB_TENANT_METRICS=%d", namedTenants)}})
	s := startPrometheus(t, pods)
	targets := len(pods.ScrapeTargets())
	podtest.Eventually(t, settled, "all targets are scraped", func() bool {
		return len(s.query("up == 1")) == targets && len(s.query("changes(up[10s])")) == targets
	})
	stop := keepBusy(t, pods)

	t.Run("each panel has data", func(t *testing.T) { eachPanelHasData(t, s.in(t)) })
	t.Run("no label grows without bound", func(t *testing.T) { labelsAreBounded(t, s.in(t)) })
	t.Run("each rule is evaluated", func(t *testing.T) {
		alerts, recordings := rules(t)
		total, bad := s.in(t).ruleHealth()
		require.Equal(t, len(alerts)+len(recordings), total)
		require.Empty(t, bad)
	})
	t.Run("metrics of rules are scraped", func(t *testing.T) { ruleMetricsAreScraped(t, s.in(t)) })
	t.Run("no alert", func(t *testing.T) { noAlert(t, s.in(t)) })
	require.Len(t, s.query("up == 1"), targets)
	stop()

	pod := pods.All()[1]
	t.Run("a sidecar that is away", func(t *testing.T) {
		pod.Compactor.Stop()
		defer func() { require.NoError(t, pod.Compactor.Start()) }()
		s.in(t).becomes(alert{Labels: map[string]string{"alertname": "PairDBSidecarDown", "node_id": pod.Name, "job": "compactor"}})
	})
	t.Run("a pod without power", func(t *testing.T) {
		pod.Halt()
		defer func() { require.NoError(t, pod.Start()) }()
		s.in(t).becomes(alert{Labels: map[string]string{"alertname": "PairDBPodDown", "node_id": pod.Name, "job": "storage-node"}})
		s.in(t).becomes(alert{Labels: map[string]string{"alertname": "PairDBMemberLost", "node_id": pods.All()[0].Name}})
	})
	t.Run("NATS is away", func(t *testing.T) {
		pods.StopNATS()
		defer func() { require.NoError(t, pods.StartNATS()) }()
		s.in(t).becomes(alert{Labels: map[string]string{"alertname": "PairDBNATSDisconnected", "node_id": pods.All()[0].Name, "job": "storage-node"}})
	})
}

// noAlert waits until none is about to fire, but for those of the machine. None may fire meanwhile.
func noAlert(t *testing.T, s *server) {
	var unexpected []alert
	defer func() {
		if t.Failed() {
			t.Log(unexpected)
		}
	}()
	podtest.Eventually(t, settled, "no alert is pending", func() bool {
		unexpected = nil
		for _, a := range s.alerts() {
			require.Equal(t, "pending", a.State, "%v", a)
			if _, known := ofTheMachine[a.Labels["alertname"]]; !known {
				unexpected = append(unexpected, a)
			}
		}
		return len(unexpected) == 0
	})
}

func eachPanelHasData(t *testing.T, s *server) {
	used := map[string]bool{}
	wanted := map[string]string{} // by query: where it is
	for _, p := range panels(t) {
		for i, expr := range p.exprs {
			expr = strings.ReplaceAll(expr, "$node_id", ".+")
			if why := expectedEmpty(expr, used); why != "" {
				s.query(expr) // it has to be valid all the same
				continue
			}
			wanted[expr] = p.where + ": " + p.legend[i]
		}
	}
	answered(t, wanted, s.answers)
	for part := range emptyWhenWell {
		require.True(t, used[part], "no query has %s", part)
	}
}

// answered waits until each query has what it should have, and then fails with all that have not.
func answered(t *testing.T, wanted map[string]string, ask func(expr string) bool) {
	t.Helper()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for begun := time.Now(); time.Since(begun) < settled; <-tick.C {
		maps.DeleteFunc(wanted, func(expr, _ string) bool { return ask(expr) })
		if len(wanted) == 0 {
			return
		}
	}
	require.Empty(t, wanted, "queries without an answer")
}

func expectedEmpty(expr string, used map[string]bool) string {
	for part, why := range emptyWhenWell {
		if strings.Contains(expr, part) {
			used[part] = true
			return why
		}
	}
	return ""
}

// ruleMetricsAreScraped finds alerts on metrics that no process shows.
func ruleMetricsAreScraped(t *testing.T, s *server) {
	alerts, recordings := rules(t)
	wanted := map[string]string{}
	for _, r := range slices.Concat(alerts, recordings) {
		for _, name := range metrics(t, r.Expr) {
			wanted[name] = r.Alert + r.Record
		}
	}
	// They are there while something is wrong.
	delete(wanted, "pairdb_health_degraded")
	delete(wanted, "pairdb_storage_degraded")
	answered(t, wanted, func(name string) bool { return len(s.query(name)) > 0 })
}

// labels are those that a metric may have, with the most values that each may take in this cluster. A new
// label goes here when its values are a closed set; a key, a client or a request never does.
var labels = map[string]int{
	"__name__": 1, "instance": 4 * nodes, "job": 4, "node_id": nodes,
	"binary": 5, "version": 5, "revision": 5, "go_version": 5,
	"le": 40, "result": 10, "status": 10, "kind": 20, "origin": 5, "level": 10, "cache": 5, "state": 12, "phase": 5, "purpose": 10, "cause": 20, "fate": 10,
	"direction": 5, "outcome": 10, "reason": 100, "quota": 10, "tenant": namedTenants + 1, "sidecar": 5, "liveness": 10,
	"type": 30, "verb": 20, "service": 10, "method": 80, "code": 20, "listener": 5, "what": 2,
}

func labelsAreBounded(t *testing.T, s *server) {
	values := map[string]map[string]map[string]bool{} // metric, label, values
	for _, series := range s.series(`{__name__=~"pairdb_.+"}`) {
		name := series["__name__"]
		if values[name] == nil {
			values[name] = map[string]map[string]bool{}
		}
		for label, value := range series {
			if values[name][label] == nil {
				values[name][label] = map[string]bool{}
			}
			values[name][label][value] = true
		}
	}
	require.Greater(t, len(values), 80, "metrics")
	for name, byLabel := range values {
		for label, seen := range byLabel {
			most, known := labels[label]
			require.True(t, known, "%s has the label %s: is it a closed set?", name, label)
			require.LessOrEqual(t, len(seen), most, "%s{%s}: %v", name, label, seen)
		}
	}
	require.Len(t, values["pairdb_tenant_requests_total"]["tenant"], namedTenants+1, "the load is of more tenants than have names")
}

// keepBusy puts load on all pods until stop is called: a round has been done at each when it returns.
func keepBusy(t *testing.T, pods *localpod.Pods) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	first, ended := make(chan error, nodes), make(chan error, nodes)
	for _, pod := range pods.All() {
		clients := make([]*client.Client, namedTenants+2)
		for i := range clients {
			clients[i] = podtest.Client(t, pod.Addr, client.Options{Tenant: fmt.Sprintf("shop-%d", i)})
			_, err := clients[i].Admin().CreateTenant(ctx, &adminv1.CreateTenantRequest{Name: clients[i].Tenant()})
			require.NoError(t, err)
		}
		go func() { ended <- rounds(ctx, clients, first) }()
	}
	stop = sync.OnceFunc(func() {
		cancel()
		for range nodes {
			if err := <-ended; err != nil {
				t.Errorf("load: %v", err)
			}
		}
	})
	t.Cleanup(stop)
	for range nodes {
		require.NoError(t, <-first)
	}
	return stop
}

// rounds does a round each second until ctx ends, which is no error. It tells how the first one went.
func rounds(ctx context.Context, clients []*client.Client, first chan<- error) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for n := 0; ; n++ {
		err := round(ctx, clients, n)
		if ctx.Err() != nil {
			err = nil // it was cut off
		}
		if n == 0 {
			first <- err
		}
		if err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// round is a bit of everything: writes, deletes, reads that hit and miss, a scan, a flush and a merge.
func round(ctx context.Context, clients []*client.Client, n int) error {
	value := []byte(strings.Repeat("value ", 200))
	for _, c := range clients {
		for i := range 30 {
			key := fmt.Sprintf("key-%03d", (n*7+i)%100)
			if _, err := c.Put(ctx, key, value); err != nil {
				return err
			}
			if _, err := c.Get(ctx, key); err != nil {
				return err
			}
		}
		if _, err := c.Delete(ctx, fmt.Sprintf("key-%03d", n*7%100)); err != nil {
			return err
		}
		if _, err := c.Get(ctx, "not there"); err != nil {
			return err
		}
		for _, err := range c.Scan(ctx, "", "") {
			if err != nil {
				return err
			}
		}
	}
	admin := clients[0].Admin()
	if _, err := admin.Flush(ctx, &adminv1.FlushRequest{}); err != nil {
		return err
	}
	merge, err := admin.Compact(ctx, &adminv1.CompactRequest{})
	for err == nil {
		_, err = merge.Recv()
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
