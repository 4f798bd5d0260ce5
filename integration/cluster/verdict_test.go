package cluster

import (
	"encoding/json"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
)

// workersGone is how long the node waits for a compactor before it says so, and some time to see it.
const workersGone = 45 * time.Second

// verdict is what the health-agent of a pod answers at /ready.
type verdict struct {
	code    int
	reasons []string
	// degraded are the words, in order.
	degraded []string
}

func (c *cluster) verdict(node int) verdict {
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, "http://"+c.pods[node].HealthOpsAddr+"/ready", nil)
	require.NoError(c.t, err)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return verdict{reasons: []string{err.Error()}}
	}
	defer resp.Body.Close()
	type reason struct {
		Reason string `json:"reason"`
	}
	var body struct {
		Reasons  []reason `json:"reasons"`
		Degraded []reason `json:"degraded"`
	}
	require.NoError(c.t, json.NewDecoder(resp.Body).Decode(&body))
	v := verdict{code: resp.StatusCode}
	for _, r := range body.Reasons {
		v.reasons = append(v.reasons, r.Reason)
	}
	for _, r := range body.Degraded {
		v.degraded = append(v.degraded, r.Reason)
	}
	slices.Sort(v.degraded)
	return v
}

// judged waits until the verdict fits.
func (c *cluster) judged(node int, limit time.Duration, what string, fits func(verdict) bool) {
	c.t.Helper()
	var last verdict
	c.t.Cleanup(func() {
		if c.t.Failed() {
			c.t.Logf("the verdict on %s was %+v last", c.pods[node].Name, last)
		}
	})
	podtest.Eventually(c.t, limit, what, func() bool {
		last = c.verdict(node)
		return fits(last)
	})
}

func TestVerdictFollowsTheProcessesOfThePod(t *testing.T) {
	// A pod that lost its compactor or NATS must go on getting requests, one that lost its node must not.
	c := start(t, 1)
	pod := c.pods[0]
	well := func(v verdict) bool { return v.code == http.StatusOK && len(v.degraded) == 0 }
	c.judged(0, joinLimit, "all is well", well)

	pod.Compactor.Halt()
	c.judged(0, workersGone, "no compactor", func(v verdict) bool {
		require.Equal(t, http.StatusOK, v.code, "%v", v.reasons)
		return slices.Contains(v.degraded, "compaction")
	})
	c.set.StopNATS()
	c.judged(0, joinLimit, "no NATS", func(v verdict) bool {
		require.Equal(t, http.StatusOK, v.code, "%v", v.reasons)
		return slices.Contains(v.degraded, "events")
	})
	c.serves(0, "degraded")

	pod.Node.Halt()
	c.judged(0, downLimit, "no node", func(v verdict) bool {
		return v.code == http.StatusServiceUnavailable && slices.Contains(v.reasons, "node")
	})

	require.NoError(t, pod.Node.Start())
	require.NoError(t, c.set.StartNATS())
	require.NoError(t, pod.Compactor.Start())
	c.judged(0, workersGone, "all is well again", well)
	c.serves(0, "whole")
}
