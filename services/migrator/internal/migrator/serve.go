package migrator

import (
	"context"
	"fmt"
	"os"
	"slices"

	"google.golang.org/grpc"

	pki "github.com/pairdb/pairdb/libs/identity"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/sidecar"
	"github.com/pairdb/pairdb/services/migrator/internal/command"
	"github.com/pairdb/pairdb/services/migrator/internal/config"
	"github.com/pairdb/pairdb/services/migrator/internal/stream"
)

// Serve runs a migrator until ctx ends: the operations server, the commands over NATS, and the migrator
// on a connection to the node's socket.
func Serve(ctx context.Context, cfg *config.Config, rt *service.Runtime) error {
	if info, err := os.Lstat(cfg.Socket); err == nil && info.Mode().Type() != os.ModeSocket {
		return service.WithExitCode(service.ExitUnreachable, fmt.Errorf("PAIRDB_SOCKET: %s is not a socket", cfg.Socket))
	}
	if err := giveWay(); err != nil { // whoever forbids it, or has it lower already, loses nothing else
		rt.Log.Warn("moves compete with requests for processors", "error", err)
	}
	certificates, err := pki.Start(cfg.Files, rt, nil)
	if err != nil {
		return err
	}
	conn, err := sidecar.Dial(cfg.Socket, slices.Concat(rt.Tracing.DialOptions(), stream.Bulk(), []grpc.DialOption{grpc.WithDefaultCallOptions(
		grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(stream.MaxMessageBytes), grpc.MaxCallSendMsgSize(stream.MaxMessageBytes),
	)})...)
	if err != nil {
		return service.WithExitCode(service.ExitUnreachable, err)
	}
	defer conn.Close() //nolint:errcheck // nothing is in flight any more

	metrics := NewMetrics()
	metrics.Register(rt.Metrics)
	m := New(Options{
		Conn: conn, Targets: stream.NewTargets(append(rt.Tracing.DialOptions(), certificates.DialOption())...), Moves: cfg.Moves, BytesPerSecond: int64(cfg.BytesPerSecond.Bytes),
		RepairInterval: cfg.RepairInterval, RepairPaused: cfg.RepairPaused, RepairBytesPerSecond: int64(cfg.RepairBytesPerSecond),
		Log: rt.Log, Metrics: metrics, Tracer: rt.Tracing.Tracer("migrator"),
	})
	ops, err := service.OpenOps(certificates.Ops(service.OpsOptions{
		Addr: cfg.OpsAddr, Registry: rt.Metrics, Log: rt.Log, Pprof: cfg.OpsPprof,
		NotReady: func() []service.Reason { return unreachable(m) }, Degraded: certificates.Degraded,
	}))
	if err != nil {
		return err
	}
	rt.Log.Info("migrator begins", "socket", cfg.Socket, "moves", cfg.Moves, "ops", ops.Addr())

	work, end := context.WithCancel(context.Background())
	defer end()
	group := service.NewGroup(rt.Log)
	if cfg.NATSURL != "" {
		group.Add(command.ForNode(cfg.Config, conn, rt))
	}
	group.Add(service.Stage{
		Name:  "moves",
		Run:   func() error { return service.WithExitCode(service.ExitUnreachable, m.Run(work)) },
		Stop:  func(context.Context) error { end(); return nil },
		Limit: cfg.ShutdownTimeout,
	})
	group.Add(ops.Stage())
	certificates.AddTo(group)
	return group.Run(ctx)
}

func unreachable(m *Migrator) []service.Reason {
	if why := m.Unreachable(); why != "" {
		return []service.Reason{{Name: "node", Detail: why}}
	}
	return nil
}
