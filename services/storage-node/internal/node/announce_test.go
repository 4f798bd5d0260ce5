package node

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/service"
	coordinatorv1 "github.com/pairdb/pairdb/proto/coordinator/proto/v1"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
)

// coordinatorRing is a coordinator that notes who was added.
type coordinatorRing struct {
	coordinatorv1.UnimplementedCoordinatorServiceServer
	added chan *coordinatorv1.AddStorageNodeRequest
}

func (r *coordinatorRing) AddStorageNode(_ context.Context, req *coordinatorv1.AddStorageNodeRequest) (*coordinatorv1.AddStorageNodeResponse, error) {
	r.added <- req
	return &coordinatorv1.AddStorageNodeResponse{Success: true}, nil
}

// A coordinator that knows the node sends it requests: it must not learn of it before it serves, and a
// coordinator that is not there must not keep the node from serving or stopping.
func TestNodeIsAnnouncedOnceItServes(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	coordinator := &coordinatorRing{added: make(chan *coordinatorv1.AddStorageNodeRequest, 1)}
	g := grpc.NewServer()
	coordinatorv1.RegisterCoordinatorServiceServer(g, coordinator)
	go func() { _ = g.Serve(listener) }() // ends with Stop
	t.Cleanup(g.Stop)

	cfg := testConfig(t)
	cfg.CoordinatorAddr, cfg.AdvertiseAddr = listener.Addr().String(), "node-0.pods:8080"
	fs := realFS()
	fs.lockGate = make(chan struct{})
	w := startNode(t, cfg, fs)
	contract := storagenodev1.NewStorageNodeServiceClient(w.conn)
	health, err := contract.HealthCheck(t.Context(), &storagenodev1.HealthCheckRequest{})
	require.NoError(t, err)
	require.Equal(t, "unhealthy", health.GetStatus())
	require.Empty(t, coordinator.added)
	close(fs.lockGate)
	added := <-coordinator.added
	require.Equal(t, "n1", added.GetNodeId())
	require.Equal(t, "node-0.pods", added.GetHost())
	require.EqualValues(t, 8080, added.GetPort())
	require.EqualValues(t, 150, added.GetVirtualNodes())
	health, err = contract.HealthCheck(t.Context(), &storagenodev1.HealthCheckRequest{})
	require.NoError(t, err)
	require.Equal(t, "healthy", health.GetStatus(), "%v", health.GetMetrics())
	require.Equal(t, "serving", health.GetMetrics()["state"])
	require.NotEqual(t, "0", health.GetMetrics()["disk_total_bytes"])
	eventually(t, "the metric says so", func() bool {
		_, text := w.probe("/metrics")
		return strings.Contains(text, "\n"+`pairdb_coordinator_registered{node_id="n1"} 1`)
	})
	require.NoError(t, w.end())
	require.Equal(t, []string{"readiness", "announce", "grpc", "socket", "watch", "engine", "events", "ops"}, w.log.values("stage stopped", "stage"))
}

func TestNodeServesAndStopsWithoutItsCoordinator(t *testing.T) {
	cfg := testConfig(t)
	cfg.CoordinatorAddr, cfg.AdvertiseAddr = "127.0.0.1:1", "node-0.pods:8080"
	w := startNode(t, cfg, realFS()).ready()
	require.NoError(t, w.put("k", "v"))
	eventually(t, "the problem is in the log", func() bool { return len(w.log.values("not registered with the coordinator yet", "error")) == 1 })
	_, text := w.probe("/metrics")
	require.True(t, strings.Contains(text, "\n"+`pairdb_coordinator_registered{node_id="n1"} 0`))
	require.NoError(t, w.end())
	require.Contains(t, w.log.values("stage stopped", "stage"), "announce")

	cfg.CoordinatorAddr = "%"
	_, err := New(cfg, &service.Runtime{Log: slog.New(slog.DiscardHandler), Metrics: service.NewRegistry("x")}, realFS())
	require.ErrorContains(t, err, "PAIRDB_COORDINATOR_ADDR")
}
