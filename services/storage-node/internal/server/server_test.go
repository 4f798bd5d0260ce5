package server

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/pairdb/pairdb/libs/sidecar"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/hot"
	"github.com/pairdb/pairdb/services/storage-node/internal/members"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
	"github.com/pairdb/pairdb/services/storage-node/internal/ownership"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
	"github.com/pairdb/pairdb/services/storage-node/internal/tenant"
)

// world is a server over a fake engine, and a client of it.
type world struct {
	t         *testing.T
	engine    *fakeEngine
	snapshots *fakeSnapshots
	tenants   *tenant.Registry
	members   *members.Registry
	moves     *moves.Registry
	server    *Server
	grpc      *grpc.Server
	conn      *grpc.ClientConn
	storage   storagev1.StorageServiceClient
	contract  storagenodev1.StorageNodeServiceClient
	admin     adminv1.AdminServiceClient
	node      nodev1.NodeServiceClient
	migration migrationv1.MigrationServiceClient

	mu       sync.Mutex
	calls    []Call
	phase    State
	ready    bool
	problems []string
	vitals   Vitals
	sidecars Sidecars
	now      func() time.Time // of the store
	joins    bool             // it is to be bootstrapped

	more  []grpc.ServerOption // of the transport
	hot   *hot.Tracker
	level slog.LevelVar

	pipelined     func(Pipelined)
	maxWrites     int
	tenantOptions tenant.Options
}

// start starts a server; setup may change it before it serves.
func start(t *testing.T, setup ...func(*world, *Options)) *world {
	t.Helper()
	w := &world{t: t, engine: newFake(), snapshots: &fakeSnapshots{}, phase: StateServing, ready: true}
	w.server = New(Node{
		ID: "n1", Version: "v1", Started: time.Now(), State: func() (State, string) { return w.phase, "why" },
		Health: func() (bool, []string) { return w.ready, w.problems }, Level: &w.level,
		Vitals: func() Vitals { return w.vitals }, Sidecars: &w.sidecars,
	})
	o := Options{Log: slog.New(slog.DiscardHandler), Timeout: 10 * time.Second, MaxInFlight: 100, Observe: w.observe}
	for _, f := range setup {
		f(w, &o)
	}
	w.tenants = tenant.New(w.tenantOptions)
	st, err := store.New(w.engine, store.Options{NodeID: "n1", Now: w.now, Tenants: w.tenants})
	require.NoError(t, err)
	require.NoError(t, w.tenants.Open(t.Context(), st, w.engine))
	w.members = members.New(members.Options{NodeID: "n1", Incarnation: "i1"})
	require.NoError(t, w.members.Open(t.Context(), st))
	w.moves = moves.New(moves.Options{NodeID: "n1", Incarnation: "i1", JoinAtOnce: !w.joins})
	require.NoError(t, w.moves.Open(t.Context(), st))
	if w.phase != StateRecovering {
		w.server.Open(Backend{Store: st, Engine: w.engine, Snapshots: w.snapshots, Tenants: w.tenants, Members: w.members, Moves: w.moves, Ownership: ownership.New(ownership.Options{NodeID: "n1"}), LocalMode: "auto", Pipelined: w.pipelined, MaxWrites: w.maxWrites, Hot: w.hot})
	}
	w.grpc = w.server.GRPC(o, health.NewServer(), w.more...)
	w.server.RegisterStorage(w.grpc)
	w.server.RegisterContract(w.grpc)
	adminv1.RegisterAdminServiceServer(w.grpc, w.server.Admin())
	w.server.RegisterMigration(w.grpc)
	nodev1.RegisterNodeServiceServer(w.grpc, w.server.NewNode(Identity{
		Identity: sidecar.Identity{NodeID: "n1", ClusterID: "c", Version: "v1", Session: 7}, Incarnation: "i1", GRPCAddr: "10.0.0.1:8080", VirtualNodes: 150,
	}))
	listener := bufconn.Listen(256 << 10)
	served := make(chan error, 1)
	go func() { served <- w.grpc.Serve(listener) }()
	w.conn, err = grpc.NewClient("passthrough:///bufconn",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponseBytes), grpc.MaxCallSendMsgSize(maxResponseBytes)),
		grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, w.conn.Close())
		w.grpc.Stop()
		require.NoError(t, <-served)
	})
	w.storage, w.admin = storagev1.NewStorageServiceClient(w.conn), adminv1.NewAdminServiceClient(w.conn)
	w.node = nodev1.NewNodeServiceClient(w.conn)
	w.migration = migrationv1.NewMigrationServiceClient(w.conn)
	w.contract = storagenodev1.NewStorageNodeServiceClient(w.conn)
	return w
}

func (w *world) observe(c Call) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c.Request, c.Response = nil, nil
	w.calls = append(w.calls, c)
}

func (w *world) put(key, value string) *storagev1.WriteResponse {
	w.t.Helper()
	resp, err := w.storage.Write(w.t.Context(), &storagev1.WriteRequest{Tenant: "t", Key: key, Value: []byte(value)})
	require.NoError(w.t, err)
	return resp
}

// refusal is what an error says to a machine.
type refusal struct {
	code   codes.Code
	reason string
	retry  time.Duration
}

// refused requires that err has the details of our errors, and returns them.
func refused(t *testing.T, err error) refusal {
	t.Helper()
	require.Error(t, err)
	s := status.Convert(err)
	out := refusal{code: s.Code()}
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			require.Equal(t, "pairdb", d.GetDomain())
			out.reason = d.GetReason()
		case *errdetails.RetryInfo:
			out.retry = d.GetRetryDelay().AsDuration()
		}
	}
	require.NotEmpty(t, out.reason, "%v has no ErrorInfo", err)
	return out
}

// facts returns the metadata of an error.
func facts(err error) map[string]string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetMetadata()
		}
	}
	return nil
}
