package main

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/service/servicetest"
	"github.com/pairdb/pairdb/libs/sidecar"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
)

// idle is a node without work.
type idle struct {
	compactionv1.UnimplementedCompactionServiceServer
	nodev1.UnimplementedNodeServiceServer
	leases chan struct{}
}

func (n *idle) Identity(context.Context, *nodev1.IdentityRequest) (*nodev1.IdentityResponse, error) {
	return &nodev1.IdentityResponse{NodeId: "n1"}, nil
}

func (n *idle) Lease(ctx context.Context, _ *compactionv1.LeaseRequest) (*compactionv1.LeaseResponse, error) {
	select {
	case n.leases <- struct{}{}:
		return &compactionv1.LeaseResponse{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func environment(t *testing.T) (dir, socket string) {
	t.Helper()
	dir, socket = servicetest.Pod(t)
	t.Setenv(opsKey, "127.0.0.1:0")
	return dir, socket
}

const opsKey = "PAIRDB_COMPACTOR_OPS_ADDR"

func TestCompactorWaitsForTheSocketServesAndEndsCleanly(t *testing.T) {
	// The compactor may be the first container of the pod that starts.
	dir, socket := environment(t)
	require.NoError(t, os.MkdirAll(filepath.Join(dir, compact.TableDir), 0o770))
	p := servicetest.Start(t, program())
	status, body := p.Get("/ready")
	require.Equal(t, http.StatusServiceUnavailable, status, body)
	status, _ = p.Get("/health")
	require.Equal(t, http.StatusOK, status)

	n := &idle{leases: make(chan struct{})}
	servicetest.ServeNode(t, socket, sidecar.SelfAccess(), func(s grpc.ServiceRegistrar) {
		compactionv1.RegisterCompactionServiceServer(s, n)
		nodev1.RegisterNodeServiceServer(s, n)
	})
	<-n.leases
	<-n.leases
	status, body = p.Get("/ready")
	require.Equal(t, http.StatusOK, status, body)
	_, body = p.Get("/metrics")
	require.Contains(t, body, "pairdb_compactor_connected 1")
	p.End()
}

func TestWrongPlacesAreSaidInOneLine(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	servicetest.WrongPlaces(t, program, func(t *testing.T) { environment(t) }, opsKey,
		servicetest.WrongPlace{Key: "PAIRDB_DATA_DIR", Value: filepath.Join(dir, "missing"), Says: "no such file", Code: service.ExitDisk},
		servicetest.WrongPlace{Key: "PAIRDB_DATA_DIR", Value: file, Says: "not a directory", Code: service.ExitDisk},
		servicetest.WrongPlace{Key: "PAIRDB_COMPACTOR_SLOT", Value: "3", Says: "PAIRDB_COMPACTOR_SLOTS", Code: service.ExitUsage})
}

func TestCommandLine(t *testing.T) {
	servicetest.CommandLine(t, program, map[string]string{
		"--help": "PAIRDB_COMPACTOR_SLOTS", "--version": "compactor ", "--print-config": "PAIRDB_COMPACTOR_SLOTS=4",
	})
}
