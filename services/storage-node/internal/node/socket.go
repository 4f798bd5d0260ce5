package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/sidecar"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
)

// socketStage serves the sidecars. It begins when the lock of the data directory is taken, which is also
// the right to the socket's path, so that a health-agent sees how far recovery is. What needs the engine
// answers that it is recovering until it is open.
func (n *Node) socketStage(limit time.Duration) service.Stage {
	stop := make(chan struct{})
	var mu sync.Mutex // guards running
	var running *grpc.Server
	return service.Stage{
		Name: "socket", Limit: limit,
		Run: func() error {
			select {
			case <-n.locked:
			case <-stop:
				return nil
			}
			listener, err := sidecar.Listen(n.cfg.Socket)
			if err != nil {
				return fmt.Errorf("PAIRDB_SOCKET: %w", err)
			}
			s := n.socketServer()
			mu.Lock()
			running = s
			mu.Unlock()
			select {
			case <-stop:
				return listener.Close()
			default:
			}
			n.log.Info("listening for sidecars", "socket", n.cfg.Socket)
			return s.Serve(n.loads.socket.Listen(listener))
		},
		Stop: func(context.Context) error {
			close(stop)
			mu.Lock()
			defer mu.Unlock()
			// A worker that waits for jobs would wait for 20 s more: its call is cut off. What it
			// has in work it may finish; the keys are fenced when the node is back.
			if running != nil {
				running.Stop()
			}
			return nil
		},
	}
}

// socketServer returns the server for sidecars: who calls is known by uid, and allowed by table.
func (n *Node) socketServer() *grpc.Server {
	access := sidecar.Access(n.cfg.SocketUIDs)
	if len(access) == 0 {
		access = sidecar.SelfAccess()
	}

	more := append(sidecar.ServerOptions(access), grpc.WaitForHandlers(true))
	more = append(more, n.tracing.ServerOptions()...)
	s := n.server.GRPC(n.serverOptions(&n.loads.socket), n.health, more...)
	n.server.RegisterStorage(s)
	adminv1.RegisterAdminServiceServer(s, n.server.Admin())
	compactionv1.RegisterCompactionServiceServer(s, server.NewCompaction(n.board))
	n.server.RegisterMigration(s)
	n.server.RegisterReplica(s)
	nodev1.RegisterNodeServiceServer(s, n.server.NewNode(server.Identity{
		Identity: sidecar.Identity{
			NodeID: n.cfg.NodeID, ClusterID: n.cfg.ClusterID, Version: service.Version, Session: n.session,
		},
		Incarnation: n.identity.Incarnation, GRPCAddr: n.advertised(), VirtualNodes: n.cfg.VirtualNodes,
	}))
	return s
}

// board returns the job board while the engine is open, else nil.
func (n *Node) board() *jobs.Board {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.storage == nil {
		return nil
	}
	return n.storage.engine.Board()
}
