// Package announce tells an existing coordinator that this node is there, until the coordinator knows it.
// It never keeps the node from serving, and never ends it.
package announce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	coordinatorv1 "github.com/pairdb/pairdb/proto/coordinator/proto/v1"
)

// Options say who is announced to whom.
type Options struct {
	// Coordinator is the address of CoordinatorService, host:port.
	Coordinator string
	// NodeID, Host and Port are what the coordinator is told; VirtualNodes the places on its ring.
	NodeID       string
	Host         string
	Port         int32
	VirtualNodes int32
	Log          *slog.Logger
	// Labels are those of the metric.
	Labels prometheus.Labels

	// FirstPause is how long to wait after an attempt that failed: one second. It doubles up to
	// MaxPause, half a minute: a coordinator that comes back is found that soon. Each is shortened by
	// chance by up to a half, so that a cluster that starts together does not ask together.
	FirstPause, MaxPause time.Duration
	// Timeout is how long one call may take: ten seconds. A coordinator that is slower may have done
	// it all the same: the next attempt finds out.
	Timeout time.Duration
}

// Announcer announces one node to one coordinator.
type Announcer struct {
	o          Options
	conn       *grpc.ClientConn
	client     coordinatorv1.CoordinatorServiceClient
	registered prometheus.Gauge
	last       string // the problem that was logged last
}

// New returns an announcer. Nothing is sent before Run.
func New(o Options) (*Announcer, error) {
	if o.FirstPause == 0 {
		o.FirstPause = time.Second
	}
	if o.MaxPause == 0 {
		o.MaxPause = 30 * time.Second
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	conn, err := grpc.NewClient(o.Coordinator,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // such coordinators speak plaintext
		// The pauses between attempts are ours: the connection must not add its own.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{
			BaseDelay: o.FirstPause / 2, Multiplier: 1, MaxDelay: o.FirstPause / 2,
		}, MinConnectTimeout: o.Timeout}),
		grpc.WithNoProxy(),
	)
	if err != nil {
		return nil, fmt.Errorf("coordinator %s: %w", o.Coordinator, err)
	}
	return &Announcer{
		o: o, conn: conn, client: coordinatorv1.NewCoordinatorServiceClient(conn),
		registered: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pairdb_coordinator_registered", ConstLabels: o.Labels,
			Help: "1 when the coordinator (PAIRDB_COORDINATOR_ADDR) knows this node since its start, 0 while it is announced.",
		}),
	}, nil
}

// Collector returns the metric.
func (a *Announcer) Collector() prometheus.Collector { return a.registered }

// Run announces the node, again and again until the coordinator knows it, and returns then or when ctx
// ends. It is called once.
func (a *Announcer) Run(ctx context.Context) {
	defer a.conn.Close() //nolint:errcheck // nothing is in flight any more
	pause := a.o.FirstPause
	for ctx.Err() == nil {
		err := a.attempt(ctx)
		if err == nil {
			a.registered.Set(1)
			return
		}
		a.log(ctx, err)
		timer := time.NewTimer(pause - time.Duration(rand.Int64N(int64(pause/2)+1)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		pause = min(2*pause, a.o.MaxPause)
	}
}

// attempt announces the node once. That it is there already is an error of the coordinator which its
// list tells from the others.
func (a *Announcer) attempt(ctx context.Context) error {
	added, addErr := a.add(ctx)
	if addErr == nil {
		a.o.Log.Info("registered with the coordinator", "coordinator", a.o.Coordinator, "migration", added.GetMigrationId(), "message", added.GetMessage())
		return nil
	}
	known, err := a.find(ctx)
	switch {
	case err != nil:
		return errors.Join(addErr, err)
	case known == nil:
		return addErr
	case known.GetHost() != a.o.Host || known.GetPort() != a.o.Port:
		return fmt.Errorf("the coordinator knows %s at %s:%d and not at %s:%d: remove it there, or set PAIRDB_ADVERTISE_ADDR to what it knows",
			a.o.NodeID, known.GetHost(), known.GetPort(), a.o.Host, a.o.Port)
	}
	a.o.Log.Info("known to the coordinator already", "coordinator", a.o.Coordinator, "status", known.GetStatus())
	return nil
}

func (a *Announcer) add(ctx context.Context) (*coordinatorv1.AddStorageNodeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, a.o.Timeout)
	defer cancel()
	resp, err := a.client.AddStorageNode(ctx, &coordinatorv1.AddStorageNodeRequest{
		NodeId: a.o.NodeID, Host: a.o.Host, Port: a.o.Port, VirtualNodes: a.o.VirtualNodes,
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("add this node: %w", err)
	case !resp.GetSuccess():
		return nil, fmt.Errorf("add this node: the coordinator refused: %.200s", cmp.Or(resp.GetErrorMessage(), resp.GetMessage()))
	}
	return resp, nil
}

// find returns this node as the coordinator lists it, nil if it does not.
func (a *Announcer) find(ctx context.Context) (*coordinatorv1.StorageNode, error) {
	ctx, cancel := context.WithTimeout(ctx, a.o.Timeout)
	defer cancel()
	resp, err := a.client.ListStorageNodes(ctx, &coordinatorv1.ListStorageNodesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	for _, n := range resp.GetNodes() {
		if n.GetNodeId() == a.o.NodeID {
			return n, nil
		}
	}
	return nil, nil
}

// log tells a problem once, however often it repeats.
func (a *Announcer) log(ctx context.Context, err error) {
	if text := err.Error(); text != a.last && ctx.Err() == nil {
		a.last = text
		a.o.Log.Warn("not registered with the coordinator yet", "coordinator", a.o.Coordinator, "error", text)
	}
}
