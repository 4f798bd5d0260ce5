package agent

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	pki "github.com/pairdb/pairdb/libs/identity"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/sidecar"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
	"github.com/pairdb/pairdb/services/health-agent/internal/command"
	"github.com/pairdb/pairdb/services/health-agent/internal/config"
	"github.com/pairdb/pairdb/services/health-agent/internal/gossip"
	"github.com/pairdb/pairdb/services/health-agent/internal/probe"
	"github.com/pairdb/pairdb/services/health-agent/internal/verdict"
)

// every is the time between two rounds: a scrape, a probe of Kubernetes and a person see a verdict that
// is about a second old.
const every = time.Second

// Serve runs a health-agent until ctx ends: the operations server, and the agent on a connection to the
// node's socket.
func Serve(ctx context.Context, cfg *config.Config, rt *service.Runtime) error {
	if info, err := os.Lstat(cfg.Socket); err == nil && info.Mode().Type() != os.ModeSocket {
		return service.WithExitCode(service.ExitUnreachable, fmt.Errorf("PAIRDB_SOCKET: %s is not a socket", cfg.Socket))
	}
	if cfg.GossipKeyring != "" {
		if _, err := gossip.ReadKeyring(cfg.GossipKeyring); err != nil {
			return service.WithExitCode(service.ExitUsage, fmt.Errorf("PAIRDB_GOSSIP_KEYRING: %w", err))
		}
	}
	certificates, err := pki.Start(cfg.Files, rt, nil)
	if err != nil {
		return err
	}
	conn, err := sidecar.Dial(cfg.Socket, rt.Tracing.DialOptions()...)
	if err != nil {
		return service.WithExitCode(service.ExitUnreachable, err)
	}
	defer conn.Close() //nolint:errcheck // nothing is in flight any more

	metrics := NewMetrics()
	var once sync.Once
	known := func(nodeID string) {
		once.Do(func() { metrics.Register(rt.Metrics, nodeID) })
	}
	if cfg.NodeID != "" {
		known(cfg.NodeID) // a node that never answers is to be seen in the metrics too
	}
	a := New(Options{
		Node: nodev1.NewNodeServiceClient(conn), NodeID: cfg.NodeID, Zone: cfg.Zone,
		Gossip: gossip.Options{
			Addr: cfg.GossipAddr, Advertise: cfg.GossipAdvertise, Seeds: cfg.GossipSeeds, Keyring: cfg.GossipKeyring,
		},
		Probe: probe.New(cfg.DataDir), Limits: verdict.DefaultLimits, Every: every, Known: known, Log: rt.Log, Metrics: metrics,
	})
	ops, err := service.OpenOps(certificates.Ops(service.OpsOptions{
		Addr: cfg.OpsAddr, Registry: rt.Metrics, Log: rt.Log, Pprof: cfg.OpsPprof,
		NotLive:  func() []service.Reason { return stuck(a) },
		NotReady: func() []service.Reason { return against(a.Verdict()) },
		Degraded: func() []service.Reason { return append(reasons(a.Verdict().Degraded), certificates.Degraded()...) },
	}))
	if err != nil {
		return err
	}
	rt.Log.Info("health-agent begins", "socket", cfg.Socket, "ops", ops.Addr())
	if cfg.GossipKeyring == "" {
		rt.Log.Warn("gossip is not encrypted: PAIRDB_GOSSIP_KEYRING is not set")
	}

	work, end := context.WithCancel(context.Background())
	defer end()
	group := service.NewGroup(rt.Log)
	if cfg.NATSURL != "" {
		group.Add(command.ForNode(cfg.Config, conn, rt))
	}
	group.Add(service.Stage{
		Name:  "agent",
		Run:   func() error { return a.Run(work) },
		Stop:  func(context.Context) error { end(); return nil },
		Limit: cfg.ShutdownTimeout,
	})
	group.Add(ops.Stage())
	certificates.AddTo(group)
	return group.Run(ctx)
}

// stuck is why this process should be started again.
func stuck(a *Agent) []service.Reason {
	if d := a.Stuck(); d > 0 {
		return []service.Reason{{Name: "stuck", Detail: fmt.Sprintf("no round has ended for %s", d.Round(time.Second))}}
	}
	return nil
}

// against is why the pod should get no requests. A pod that is not live is not ready either.
func against(v verdict.Verdict) []service.Reason {
	if len(v.NotReady) > 0 {
		return reasons(v.NotReady)
	}
	return reasons(v.NotLive)
}

func reasons(list []verdict.Reason) []service.Reason {
	var out []service.Reason
	for _, r := range list {
		out = append(out, service.Reason{Name: string(r.Name), Detail: r.Detail})
	}
	return out
}
