package node

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/services/storage-node/internal/announce"
)

// openAnnouncer makes the announcer, if the node has a coordinator.
func (n *Node) openAnnouncer(metrics prometheus.Registerer, labels prometheus.Labels) error {
	if n.cfg.CoordinatorAddr == "" {
		return nil
	}
	host, text, err := net.SplitHostPort(n.cfg.AdvertiseAddr)
	if err != nil {
		return fmt.Errorf("PAIRDB_ADVERTISE_ADDR: %w", err)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return fmt.Errorf("PAIRDB_ADVERTISE_ADDR: %w", err)
	}
	n.announce, err = announce.New(announce.Options{
		Coordinator: n.cfg.CoordinatorAddr, NodeID: n.cfg.NodeID, Host: host, Port: int32(port),
		VirtualNodes: int32(n.cfg.VirtualNodes), Log: n.log, Labels: labels,
	})
	if err != nil {
		return fmt.Errorf("PAIRDB_COORDINATOR_ADDR: %w", err)
	}
	metrics.MustRegister(n.announce.Collector())
	return nil
}

// announceStage announces the node once it serves: a coordinator may send requests, and move keys
// here, as soon as it knows the node. The stage goes on until it is stopped, whatever the coordinator
// does.
func (n *Node) announceStage() service.Stage {
	ctx, cancel := context.WithCancel(context.Background())
	return service.Stage{
		Name: "announce", Limit: time.Second,
		Run: func() error {
			select {
			case <-n.opened:
			case <-ctx.Done():
			}
			n.announce.Run(ctx)
			<-ctx.Done()
			return nil
		},
		Stop: func(context.Context) error { cancel(); return nil },
	}
}
