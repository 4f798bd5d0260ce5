package main

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/service/servicetest"
	"github.com/pairdb/pairdb/libs/sidecar"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
)

// well is a node that serves.
type well struct {
	nodev1.UnimplementedNodeServiceServer
}

func (well) Identity(context.Context, *nodev1.IdentityRequest) (*nodev1.IdentityResponse, error) {
	return &nodev1.IdentityResponse{NodeId: "n1", ClusterId: "c1", VirtualNodes: 150}, nil
}

func (well) Health(context.Context, *nodev1.HealthRequest) (*nodev1.HealthResponse, error) {
	return &nodev1.HealthResponse{State: "serving", RecoveryProgress: 1, Disk: &nodev1.DiskHealth{State: "ok"}}, nil
}

func (well) Report(context.Context, *nodev1.ReportRequest) (*nodev1.ReportResponse, error) {
	return &nodev1.ReportResponse{}, nil
}

func environment(t *testing.T) string {
	t.Helper()
	_, socket := servicetest.Pod(t)
	t.Setenv("PAIRDB_NODE_ID", "n1")
	t.Setenv("PAIRDB_GOSSIP_ADDR", "127.0.0.1:0")
	t.Setenv(opsKey, "127.0.0.1:0")
	return socket
}

const opsKey = "PAIRDB_HEALTH_OPS_ADDR"

func TestHealthAgentWaitsForTheSocketServesAndEndsCleanly(t *testing.T) {
	// The agent may be the first container of the pod that starts; /ready is the pod's then too.
	socket := environment(t)
	p := servicetest.Start(t, program())
	status, body := p.Get("/ready")
	require.Equal(t, http.StatusServiceUnavailable, status, body)
	require.Contains(t, body, `"reason":"node"`)
	status, body = p.Get("/health")
	require.Equal(t, http.StatusOK, status, body)
	_, body = p.Get("/metrics")
	require.Contains(t, body, `pairdb_health_node_reachable{node_id="n1"} 0`)

	servicetest.ServeNode(t, socket, sidecar.SelfAccess(), func(s grpc.ServiceRegistrar) { nodev1.RegisterNodeServiceServer(s, well{}) })
	p.Eventually("/ready", func(status int, _ string) bool { return status == http.StatusOK })
	p.Eventually("/metrics", func(_ int, body string) bool {
		return strings.Contains(body, `pairdb_health_ready{node_id="n1"} 1`) && strings.Contains(body, `pairdb_gossip_joined{node_id="n1"} 1`) &&
			strings.Contains(body, `pairdb_gossip_members_healthy{node_id="n1"} 1`)
	})
	p.End()
}

func TestWrongPlacesAreSaidInOneLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	servicetest.WrongPlaces(t, program, func(t *testing.T) { environment(t) }, opsKey,
		servicetest.WrongPlace{Key: "PAIRDB_GOSSIP_KEYRING", Value: file, Says: "no key in", Code: service.ExitUsage},
		servicetest.WrongPlace{Key: "PAIRDB_GOSSIP_KEYRING", Value: file + "-missing", Says: "no such file", Code: service.ExitUsage},
		servicetest.WrongPlace{Key: "PAIRDB_GOSSIP_SEED", Value: "a:1", Says: "PAIRDB_GOSSIP_SEEDS", Code: service.ExitUsage})
}

func TestCommandLine(t *testing.T) {
	servicetest.CommandLine(t, program, map[string]string{
		"--help": "PAIRDB_GOSSIP_SEEDS", "--version": "health-agent ", "--print-config": "PAIRDB_GOSSIP_ADDR=:7946",
	})
}
