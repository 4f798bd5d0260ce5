package worker

import (
	"errors"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/identity"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/service/servicetest"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
)

// Dashboards are written from this page: what it leaves out is not watched.
func TestMetricsPageIsWhatTheCompactorRegisters(t *testing.T) {
	r := service.NewRegistry("compactor")
	NewMetrics().Register(r)
	r.MustRegister(identity.NewCollector(nil, nil))
	servicetest.Metrics(t, "compactor", r)
}

// A label that is made up as it comes is a series without a past, or one too many.
func TestAnswersOfTheNodeHaveTheirLabels(t *testing.T) {
	m := NewMetrics()
	polls, beats := testutil.CollectAndCount(m.polls), testutil.CollectAndCount(m.heartbeats)
	m.polled(0, nil)
	m.polled(3, nil)
	m.polled(0, errors.New("gone"))
	for result, n := range map[string]float64{"empty": 1, "jobs": 1, "error": 1} {
		require.InDelta(t, n, testutil.ToFloat64(m.polls.WithLabelValues(result)), 0, result)
	}
	require.InDelta(t, 3, testutil.ToFloat64(m.leases), 0)
	m.beat(&compactionv1.HeartbeatResponse{Verdict: compactionv1.HeartbeatResponse_VERDICT_CONTINUE}, nil)
	m.beat(&compactionv1.HeartbeatResponse{Verdict: compactionv1.HeartbeatResponse_VERDICT_STOP}, nil)
	m.beat(nil, errors.New("gone"))
	for _, result := range []string{"continue", "stop", "error"} {
		require.InDelta(t, 1, testutil.ToFloat64(m.heartbeats.WithLabelValues(result)), 0, result)
	}
	require.Equal(t, polls, testutil.CollectAndCount(m.polls))
	require.Equal(t, beats, testutil.CollectAndCount(m.heartbeats))
	for reason := range compactionv1.AbandonRequest_Reason_name {
		if r := compactionv1.AbandonRequest_Reason(reason); r != compactionv1.AbandonRequest_REASON_UNSPECIFIED {
			require.Contains(t, abandonNames, r)
		}
	}
	for _, name := range verdictNames {
		require.Contains(t, results, name)
	}
}
