package main

import (
	"context"
	"net/http"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/service/servicetest"
	"github.com/pairdb/pairdb/libs/sidecar"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
)

// idle is a node without moves.
type idle struct {
	migrationv1.UnimplementedMigrationServiceServer
	nodev1.UnimplementedNodeServiceServer

	mu   sync.Mutex
	told []string // guarded by mu; who asked for the identity
}

func (n *idle) Identity(_ context.Context, r *nodev1.IdentityRequest) (*nodev1.IdentityResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.told = append(n.told, r.GetSidecar())
	return &nodev1.IdentityResponse{NodeId: "n1", ClusterId: "c1", GrpcAddr: "n1:1"}, nil
}

func (n *idle) heard() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.told
}

func (n *idle) Configuration(context.Context, *migrationv1.ConfigurationRequest) (*migrationv1.ConfigurationResponse, error) {
	return &migrationv1.ConfigurationResponse{GcGraceSeconds: 3600}, nil
}

func (n *idle) Work(_ *migrationv1.WorkRequest, out grpc.ServerStreamingServer[migrationv1.WorkResponse]) error {
	if err := out.Send(&migrationv1.WorkResponse{}); err != nil {
		return err
	}
	<-out.Context().Done()
	return out.Context().Err()
}

func environment(t *testing.T) string {
	t.Helper()
	_, socket := servicetest.Pod(t)
	t.Setenv(opsKey, "127.0.0.1:0")
	return socket
}

const opsKey = "PAIRDB_MIGRATOR_OPS_ADDR"

func TestMigratorWaitsForTheSocketServesAndEndsCleanly(t *testing.T) {
	// The migrator may be the first container of the pod that starts.
	socket := environment(t)
	p := servicetest.Start(t, program())
	status, body := p.Get("/ready")
	require.Equal(t, http.StatusServiceUnavailable, status, body)
	require.Contains(t, body, `"reason":"node"`)
	status, _ = p.Get("/health")
	require.Equal(t, http.StatusOK, status)
	_, body = p.Get("/metrics")
	require.Contains(t, body, "pairdb_migrator_connected 0")

	n := &idle{}
	servicetest.ServeNode(t, socket, sidecar.SelfAccess(), func(s grpc.ServiceRegistrar) {
		migrationv1.RegisterMigrationServiceServer(s, n)
		nodev1.RegisterNodeServiceServer(s, n)
	})
	p.Eventually("/ready", func(status int, _ string) bool { return status == http.StatusOK })
	_, body = p.Get("/metrics")
	require.Contains(t, body, "pairdb_migrator_connected 1")
	require.Contains(t, n.heard(), "migrator", "the node must know who is there")
	p.End()
}

func TestAMigratorThatMayNotAskEnds(t *testing.T) {
	// A wrong user in a manifest is to be seen as a container that does not start.
	servicetest.ServeNode(t, environment(t), sidecar.Access{}, func(s grpc.ServiceRegistrar) { nodev1.RegisterNodeServiceServer(s, &idle{}) })
	servicetest.Ends(t, program(), nil, service.ExitUnreachable, "PAIRDB_SOCKET_UIDS")
}

func TestWrongPlacesAreSaidInOneLine(t *testing.T) {
	servicetest.WrongPlaces(t, program, func(t *testing.T) { environment(t) }, opsKey,
		servicetest.WrongPlace{Key: "PAIRDB_MIGRATOR_MOVE", Value: "3", Says: "PAIRDB_MIGRATOR_MOVES", Code: service.ExitUsage})
}

func TestCommandLine(t *testing.T) {
	servicetest.CommandLine(t, program, map[string]string{
		"--help": "PAIRDB_MIGRATOR_MOVES", "--version": "migrator ", "--print-config": "PAIRDB_MIGRATOR_BYTES_PER_SECOND=",
	})
}
