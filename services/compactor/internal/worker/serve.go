package worker

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"

	"github.com/pairdb/pairdb/libs/identity"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/sidecar"
	"github.com/pairdb/pairdb/libs/vfs"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
	"github.com/pairdb/pairdb/services/compactor/internal/config"
)

// Serve runs a compactor until ctx ends: the operations server, and the worker on a connection to
// the node's socket.
func Serve(ctx context.Context, cfg *config.Config, rt *service.Runtime) error {
	if info, err := os.Stat(cfg.DataDir); err != nil {
		return service.WithExitCode(service.ExitDisk, fmt.Errorf("PAIRDB_DATA_DIR: %w", err))
	} else if !info.IsDir() {
		return service.WithExitCode(service.ExitDisk, fmt.Errorf("PAIRDB_DATA_DIR: %s is not a directory", cfg.DataDir))
	}
	if info, err := os.Lstat(cfg.Socket); err == nil && info.Mode().Type() != os.ModeSocket {
		return service.WithExitCode(service.ExitUnreachable, fmt.Errorf("PAIRDB_SOCKET: %s is not a socket", cfg.Socket))
	}
	certificates, err := identity.Start(cfg.Files, rt, nil)
	if err != nil {
		return err
	}
	conn, err := sidecar.Dial(cfg.Socket, rt.Tracing.DialOptions()...)
	if err != nil {
		return service.WithExitCode(service.ExitUnreachable, err)
	}
	defer conn.Close() //nolint:errcheck // nothing is in flight any more

	metrics := NewMetrics()
	metrics.Register(rt.Metrics)
	slots := min(cfg.Slots, runtime.GOMAXPROCS(0))
	w := New(Options{
		Client: compactionv1.NewCompactionServiceClient(conn), Node: nodev1.NewNodeServiceClient(conn), FS: vfs.OS, Dir: cfg.DataDir,
		// In containers every process is number 1: chance tells two compactors apart.
		Name:  fmt.Sprintf("compactor-%d-%04x", os.Getpid(), rand.Uint32N(1<<16)),
		Slots: slots, Log: rt.Log, Metrics: metrics, Tracer: rt.Tracing.Tracer("compactor"),
	})
	ops, err := service.OpenOps(certificates.Ops(service.OpsOptions{
		Addr: cfg.OpsAddr, Registry: rt.Metrics, Log: rt.Log, Pprof: cfg.OpsPprof,
		NotReady: func() []service.Reason { return unreachable(w) }, Degraded: certificates.Degraded,
	}))
	if err != nil {
		return err
	}
	rt.Log.Info("compactor ready for work", "socket", cfg.Socket, "slots", slots, "ops", ops.Addr())

	work, end := context.WithCancel(context.Background())
	defer end()
	group := service.NewGroup(rt.Log)
	group.Add(service.Stage{
		Name:  "worker",
		Run:   func() error { return service.WithExitCode(service.ExitUnreachable, w.Run(work)) },
		Stop:  func(context.Context) error { end(); return nil },
		Limit: cfg.ShutdownTimeout,
	})
	group.Add(ops.Stage())
	certificates.AddTo(group)
	return group.Run(ctx)
}

func unreachable(w *Worker) []service.Reason {
	if why := w.Unreachable(); why != "" {
		return []service.Reason{{Name: "node", Detail: why}}
	}
	return nil
}
