package sidecar_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/sidecar"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node answers Identity, and says who asked.
type node struct {
	nodev1.UnimplementedNodeServiceServer
	session uint64
	peer    chan sidecar.Peer
}

func (n *node) Identity(ctx context.Context, _ *nodev1.IdentityRequest) (*nodev1.IdentityResponse, error) {
	if p, ok := sidecar.PeerFrom(ctx); ok && n.peer != nil {
		n.peer <- p
	}
	return &nodev1.IdentityResponse{NodeId: "n1", ClusterId: "c", Version: "v", Session: n.session}, nil
}

// serve serves a node on a socket and returns how to end it.
func serve(t *testing.T, path string, access sidecar.Access, n *node) (stop func()) {
	t.Helper()
	l, err := sidecar.Listen(path)
	require.NoError(t, err)
	s := grpc.NewServer(sidecar.ServerOptions(access)...)
	nodev1.RegisterNodeServiceServer(s, n)
	healthv1.RegisterHealthServer(s, health.NewServer())
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	return func() {
		s.Stop()
		require.NoError(t, <-done)
	}
}

func dial(t *testing.T, path string) *grpc.ClientConn {
	t.Helper()
	conn, err := sidecar.Dial(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return conn
}

func limited(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestKernelSaysWhoCalls(t *testing.T) {
	// A name in a request is a claim; the uid of the socket is not.
	path := filepath.Join(t.TempDir(), "node.sock")
	n := &node{session: 7, peer: make(chan sidecar.Peer, 1)}
	defer serve(t, path, sidecar.SelfAccess(), n)()
	id, err := sidecar.WaitForNode(limited(t), dial(t, path))
	require.NoError(t, err)
	require.Equal(t, sidecar.Identity{NodeID: "n1", ClusterID: "c", Version: "v", Session: 7}, id)
	require.Equal(t, uint32(os.Getuid()), (<-n.peer).UID)
	if os.Getuid() != 0 {
		return // 0 is what nobody would have said
	}
	const another = 4711
	for _, dir := range []string{filepath.Dir(path), filepath.Dir(filepath.Dir(path))} {
		require.NoError(t, os.Chmod(dir, 0o711)) // of tests, for their user only
	}
	conn, err := sidecar.Dial(path, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dialAs(ctx, another, path) }))
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()
	_, err = healthv1.NewHealthClient(conn).Check(limited(t), &healthv1.HealthCheckRequest{})
	require.NoError(t, err)
	_, err = nodev1.NewNodeServiceClient(conn).Identity(limited(t), &nodev1.IdentityRequest{})
	require.ErrorContains(t, err, "user id 4711 may not call")
}

// dialAs dials as another user of the same group; root may become one.
func dialAs(ctx context.Context, uid int, path string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // which ends with this goroutine: the user is the thread's
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			done <- result{err: errno}
			return
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

func TestUserThatIsNotInTheTableMayOnlyAskForHealth(t *testing.T) {
	// A compactor must not write data; an unknown process must not do anything.
	path := filepath.Join(t.TempDir(), "node.sock")
	access := sidecar.Access{uint32(os.Getuid()): {"compaction"}}
	defer serve(t, path, access, &node{})()
	conn := dial(t, path)
	_, err := sidecar.WaitForNode(limited(t), conn)
	require.Equal(t, codes.PermissionDenied, status.Code(unwrap(err)))
	require.ErrorContains(t, err, "PAIRDB_SOCKET_UIDS")

	h := healthv1.NewHealthClient(conn)
	_, err = h.Check(limited(t), &healthv1.HealthCheckRequest{})
	require.NoError(t, err)
	watch, err := h.Watch(limited(t), &healthv1.HealthCheckRequest{})
	require.NoError(t, err)
	_, err = watch.Recv()
	require.NoError(t, err)
}

// unwrap finds the status in an error that wraps one.
func unwrap(err error) error {
	for err != nil {
		if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
			return err
		}
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		err = u.Unwrap()
	}
	return nil
}

func TestTableOfServices(t *testing.T) {
	a := sidecar.Access{1: {"compaction", "node"}, 2: {sidecar.All}, 3: {}}
	for _, c := range []struct {
		uid    uint32
		method string
		want   bool
	}{
		{1, "/pairdb.compaction.v1.CompactionService/Lease", true},
		{1, "/pairdb.node.v1.NodeService/Identity", true},
		{1, "/pairdb.storage.v1.StorageService/Write", false},
		{1, "/pairdb.admin.v1.AdminService/Compact", false},
		{1, "/evil.compaction.v1.CompactionService/Lease", false},
		{1, "/pairdb.compaction/Lease", false},
		{1, "/pairdb.compaction.v1.x.CompactionService/Lease", false},
		{1, "", false},
		{1, "/", false},
		{1, "/grpc.health.v1.Health/Check", true},
		{2, "/pairdb.storage.v1.StorageService/Write", true},
		{3, "/pairdb.compaction.v1.CompactionService/Lease", false},
		{4, "/pairdb.compaction.v1.CompactionService/Lease", false},
		{4, "/grpc.health.v1.Health/Watch", true},
		{4, "/grpc.health.v1.Health2/Watch", false},
	} {
		require.Equal(t, c.want, a.Allows(c.uid, c.method), "uid %d, %s", c.uid, c.method)
	}
}

func TestCallsThatDoNotComeOverTheSocketAreUnauthenticated(t *testing.T) {
	// A listener that somebody adds by mistake must not be open to all.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	a := sidecar.SelfAccess()
	s := grpc.NewServer(grpc.ChainUnaryInterceptor(a.Unary), grpc.ChainStreamInterceptor(a.Stream))
	nodev1.RegisterNodeServiceServer(s, &node{})
	healthv1.RegisterHealthServer(s, health.NewServer())
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	defer func() { s.Stop(); <-done }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close() //nolint:errcheck // a test's
	_, err = nodev1.NewNodeServiceClient(conn).Identity(limited(t), &nodev1.IdentityRequest{})
	require.Equal(t, codes.Unauthenticated, status.Code(err))
	watch, err := healthv1.NewHealthClient(conn).Watch(limited(t), &healthv1.HealthCheckRequest{})
	require.NoError(t, err)
	_, err = watch.Recv()
	require.Equal(t, codes.Unauthenticated, status.Code(err))
}

func TestPeerCredentialsRefuseOtherConnections(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close() //nolint:errcheck // a test's
	defer b.Close() //nolint:errcheck // a test's
	_, _, err := sidecar.PeerCredentials().ServerHandshake(a)
	require.ErrorContains(t, err, "not a unix socket")
}

func TestSocketHasTheModeOfThePodWhateverTheUmask(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.sock")
	l, err := sidecar.Listen(path)
	require.NoError(t, err)
	require.Equal(t, path, l.Addr().String())
	info, err := os.Lstat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o660), info.Mode().Perm())
	require.NoError(t, l.Close())
	require.NoError(t, l.Close())
	require.NoFileExists(t, path)
	names, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Empty(t, names)
}

func TestStaleSocketIsReplacedAServedOneIsNot(t *testing.T) {
	// After kill -9 the socket file stays; a second node must not take the first one's.
	path := filepath.Join(t.TempDir(), "node.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	stale.SetUnlinkOnClose(false)
	require.NoError(t, stale.Close())
	require.FileExists(t, path)

	l, err := sidecar.Listen(path)
	require.NoError(t, err)
	_, err = sidecar.Listen(path)
	require.ErrorIs(t, err, sidecar.ErrInUse)
	require.NoError(t, l.Close())

	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
	_, err = sidecar.Listen(path)
	require.ErrorIs(t, err, sidecar.ErrNotSocket)
	require.FileExists(t, path)
	_, err = sidecar.Listen(filepath.Join(t.TempDir(), "missing", "node.sock"))
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = sidecar.Listen("/" + strings.Repeat("x", 110))
	require.ErrorContains(t, err, "at most")
}

func TestCloseLeavesTheSocketOfASuccessor(t *testing.T) {
	// An old process that ends late must not cut its successor off.
	path := filepath.Join(t.TempDir(), "node.sock")
	old, err := sidecar.Listen(path)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	l, err := sidecar.Listen(path)
	require.NoError(t, err)
	require.NoError(t, old.Close())
	require.FileExists(t, path)
	require.NoError(t, l.Close())
}

func TestWaitForNodeThatComesLaterAndRestarts(t *testing.T) {
	// Containers of a pod start in any order, and the node may be the last.
	path := filepath.Join(t.TempDir(), "node.sock")
	conn := dial(t, path)
	ids := make(chan sidecar.Identity, 1)
	go func() {
		id, _ := sidecar.WaitForNode(limited(t), conn)
		ids <- id
	}()
	stop := serve(t, path, sidecar.SelfAccess(), &node{session: 1})
	require.Equal(t, uint64(1), (<-ids).Session)
	stop()
	stop = serve(t, path, sidecar.SelfAccess(), &node{session: 2})
	defer stop()
	id, err := sidecar.WaitForNode(limited(t), conn)
	require.NoError(t, err)
	require.Equal(t, uint64(2), id.Session)
}

func TestWaitForNodeEndsWithItsContext(t *testing.T) {
	conn := dial(t, filepath.Join(t.TempDir(), "nobody.sock"))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := sidecar.WaitForNode(ctx, conn)
	require.ErrorContains(t, err, "wait for the node")
}
