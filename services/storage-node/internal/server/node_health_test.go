package server

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/sidecar"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
)

// nodeOf is NodeService of a node in a phase.
func nodeOf(phase State, v Vitals, s *Sidecars) nodev1.NodeServiceServer {
	return New(Node{
		ID: "n1", Started: time.Now().Add(-time.Minute), State: func() (State, string) { return phase, "why" },
		Vitals: func() Vitals { return v }, Sidecars: s,
	}).NewNode(Identity{Identity: sidecar.Identity{NodeID: "n1", Session: 7}})
}

// The danger: the health-agent judges the pod by this answer, and asks exactly when something is wrong.
func TestHealthAnswersInEveryPhaseWithEverything(t *testing.T) {
	v := Vitals{
		NotLive: []Reason{{Name: "stalled", Detail: "a"}}, NotReady: []Reason{{Name: "data-dir", Detail: "b\xff"}}, Degraded: []Reason{{Name: "disk", Detail: "c"}, {Name: "files", Detail: ""}},
		RecoveryProgress: 0.5, Disk: DiskVitals{"full", 100, 4, 96}, Memory: MemoryVitals{"high", 9, 10}, OpenFiles: 3, OpenFilesLimit: 4,
		Stalled: 12 * time.Second, Compactors: 2, Sidecars: []Seen{{SidecarCompactor, time.Second}}, OutboxLength: 5,
	}
	for phase := StateRecovering; phase <= StateStopping; phase++ {
		r, err := nodeOf(phase, v, &Sidecars{}).Health(t.Context(), &nodev1.HealthRequest{})
		require.NoError(t, err)
		require.Equal(t, phase.String(), r.GetState())
		require.InDelta(t, 0.5, r.GetRecoveryProgress(), 0)
		require.GreaterOrEqual(t, r.GetUptimeSeconds(), int64(60))
		require.Equal(t, "stalled", r.GetNotLive()[0].GetName())
		require.Equal(t, "b?", r.GetNotReady()[0].GetDetail(), "proto takes valid UTF-8 only")
		require.Len(t, r.GetDegraded(), 2)
		require.Equal(t, "full", r.GetDisk().GetState())
		require.EqualValues(t, 4, r.GetDisk().GetFreeBytes())
		require.EqualValues(t, 100, r.GetDisk().GetTotalBytes())
		require.InDelta(t, 96, r.GetDisk().GetUsedPercent(), 0)
		require.Equal(t, "high", r.GetMemory().GetState())
		require.EqualValues(t, 9, r.GetMemory().GetUsedBytes())
		require.EqualValues(t, 10, r.GetMemory().GetLimitBytes())
		require.EqualValues(t, 3, r.GetOpenFiles())
		require.EqualValues(t, 4, r.GetOpenFilesLimit())
		require.EqualValues(t, 12_000, r.GetStalledMs())
		require.EqualValues(t, 2, r.GetCompactors())
		require.EqualValues(t, 1000, r.GetSidecars()[0].GetLastSeenMsAgo())
		require.EqualValues(t, 5, r.GetOutboxLength())
	}
}

// The danger: a name of the caller's choice becomes a label of a metric.
func TestOnlySidecarsAreRemembered(t *testing.T) {
	var s Sidecars
	n := nodeOf(StateServing, Vitals{}, &s)
	for _, name := range []string{"", SidecarAgent} {
		_, err := n.Health(t.Context(), &nodev1.HealthRequest{Sidecar: name})
		require.NoError(t, err)
	}
	_, err := n.Identity(t.Context(), &nodev1.IdentityRequest{Sidecar: SidecarMigrator})
	require.NoError(t, err)
	for _, name := range []string{"node", "Compactor", "x\n"} {
		_, err := n.Health(t.Context(), &nodev1.HealthRequest{Sidecar: name})
		require.Equal(t, codes.InvalidArgument, status.Code(err))
		_, err = n.Identity(t.Context(), &nodev1.IdentityRequest{Sidecar: name})
		require.Equal(t, codes.InvalidArgument, status.Code(err))
	}
	now := time.Now()
	seen := s.Seen(now.Add(time.Hour))
	require.Len(t, seen, 2)
	require.Equal(t, SidecarAgent, seen[0].Name)
	require.Equal(t, SidecarMigrator, seen[1].Name)
	require.InDelta(t, time.Hour, seen[0].Ago, float64(time.Minute))
	require.Zero(t, s.Seen(now.Add(-time.Hour))[0].Ago, "clocks may be set back")

	seen = AddSeen(seen, SidecarCompactor, 5*time.Second)
	seen = AddSeen(seen, SidecarAgent, 2*time.Hour)
	seen = AddSeen(seen, SidecarMigrator, -time.Second)
	require.Equal(t, []Seen{{SidecarCompactor, 5 * time.Second}, {SidecarAgent, seen[1].Ago}, {SidecarMigrator, 0}}, seen)
	require.Less(t, seen[1].Ago, 2*time.Hour, "the latest sign of life counts")
}
