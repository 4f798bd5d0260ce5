// Package config is the configuration of the health-agent: keys, defaults, ranges. It never opens
// anything.
package config

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/identity"
	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/service"
)

// Config is the configuration of a health-agent, one environment variable a field.
type Config struct {
	service.LogConfig
	event.Config
	identity.Files

	Socket  string `envconfig:"PAIRDB_SOCKET" default:"/run/pairdb/node.sock" unit:"path" desc:"Unix socket of the storage node; it may appear later."`
	NodeID  string `envconfig:"PAIRDB_NODE_ID" optional:"true" unit:"name" desc:"Name of the storage node; when set, an agent whose node has another name ends with an error."`
	DataDir string `envconfig:"PAIRDB_DATA_DIR" default:"/var/lib/pairdb" unit:"directory" desc:"Data directory of the storage node, where the agent looks at the free space; it may be out of its reach."`
	Zone    string `envconfig:"PAIRDB_ZONE" optional:"true" unit:"name" desc:"Where the pod stands: replicas are spread over zones."`

	GossipAddr      string   `envconfig:"PAIRDB_GOSSIP_ADDR" default:":7946" unit:"address" desc:"Where the agent gossips, TCP and UDP; the host is an IP address, or empty for all."`
	GossipAdvertise string   `envconfig:"PAIRDB_GOSSIP_ADVERTISE_ADDR" optional:"true" unit:"address" desc:"Where other agents reach it, IP:port; when not set, the address of PAIRDB_GOSSIP_ADDR or a private one of the machine."`
	GossipSeeds     []string `envconfig:"PAIRDB_GOSSIP_SEEDS" optional:"true" unit:"list" desc:"Agents to join, host:port,…; dns+host:port stands for all addresses of the name. They are tried for ever; the agent itself may be among them."`
	GossipKeyring   string   `envconfig:"PAIRDB_GOSSIP_KEYRING" optional:"true" unit:"file" desc:"Keys of the gossip's encryption, base64 of 16, 24 or 32 bytes, one a line; the first encrypts, all decrypt; read again when it changes. When not set, gossip is not encrypted."`

	OpsAddr         string        `envconfig:"PAIRDB_HEALTH_OPS_ADDR" default:":9094" unit:"address" desc:"Where /metrics, /health (this process) and /ready (the verdict on the pod) are served."`
	OpsPprof        bool          `envconfig:"PAIRDB_OPS_PPROF" default:"false" unit:"bool" desc:"Also serve /debug/pprof/ there."`
	ShutdownTimeout time.Duration `envconfig:"PAIRDB_SHUTDOWN_TIMEOUT" default:"25s" unit:"duration" desc:"How long saying goodbye to the other agents may take after SIGTERM; below the 30 s of Kubernetes."`
}

const (
	// maxSocketBytes is what a node can listen on: the address of a unix socket less a suffix.
	maxSocketBytes = 103
	// maxSeeds is far above what finds a cluster: one that answers is enough.
	maxSeeds = 100
	// dnsPrefix of a seed stands for all addresses of its name.
	dnsPrefix = "dns+"
)

// Validate reports all values that are out of their ranges.
func (c *Config) Validate() error {
	var p service.Problems
	c.Check(&p)
	c.CheckTLS(&p)
	c.CheckNATS(&p)
	if n := len(c.Socket); n < 1 || n > maxSocketBytes {
		p.Addf("PAIRDB_SOCKET", "the path has %d bytes, 1 to %d fit into a socket address", n, maxSocketBytes)
	}
	if len(c.NodeID) > membership.MaxNodeIDBytes {
		p.Addf("PAIRDB_NODE_ID", "has %d bytes, at most %d are allowed", len(c.NodeID), membership.MaxNodeIDBytes)
	}
	if c.DataDir == "" {
		p.Addf("PAIRDB_DATA_DIR", "is empty")
	}
	if len(c.Zone) > membership.MaxZoneBytes {
		p.Addf("PAIRDB_ZONE", "has %d bytes, at most %d are allowed", len(c.Zone), membership.MaxZoneBytes)
	}
	p.Address("PAIRDB_GOSSIP_ADDR", c.GossipAddr)
	if host, _, ok := cutPort(c.GossipAddr); ok && host != "" && !isIP(host) {
		p.Addf("PAIRDB_GOSSIP_ADDR", "%q is not an IP address", host)
	}
	if c.GossipAdvertise != "" {
		if host, port, ok := cutPort(c.GossipAdvertise); !ok || !isIP(host) || port == 0 {
			p.Addf("PAIRDB_GOSSIP_ADVERTISE_ADDR", "%q is not an address that others can reach: write IP:port", c.GossipAdvertise)
		}
	}
	c.checkSeeds(&p)
	p.Address("PAIRDB_HEALTH_OPS_ADDR", c.OpsAddr)
	p.Duration("PAIRDB_SHUTDOWN_TIMEOUT", c.ShutdownTimeout, time.Second, 10*time.Minute)
	return p.Err()
}

func (c *Config) checkSeeds(p *service.Problems) {
	if len(c.GossipSeeds) > maxSeeds {
		p.Addf("PAIRDB_GOSSIP_SEEDS", "%d seeds, at most %d", len(c.GossipSeeds), maxSeeds)
	}
	for _, s := range c.GossipSeeds {
		host, port, ok := cutPort(strings.TrimPrefix(s, dnsPrefix))
		if !ok || port == 0 || host == "" || strings.ContainsAny(host, " /+") {
			p.Addf("PAIRDB_GOSSIP_SEEDS", "%q is not a seed: write host:port or %shost:port", s, dnsPrefix)
		}
	}
}

// cutPort splits host:port; the host may be empty or in brackets.
func cutPort(addr string) (host string, port uint16, ok bool) {
	i := strings.LastIndexByte(addr, ':')
	if i < 0 {
		return "", 0, false
	}
	n, err := strconv.ParseUint(addr[i+1:], 10, 16)
	return strings.TrimSuffix(strings.TrimPrefix(addr[:i], "["), "]"), uint16(n), err == nil
}

func isIP(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}
