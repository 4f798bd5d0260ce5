// Package config is the configuration of the compactor: keys, defaults, ranges. It never opens
// anything.
package config

import (
	"time"

	"github.com/pairdb/pairdb/libs/identity"
	"github.com/pairdb/pairdb/libs/service"
)

// Config is the configuration of a compactor, one environment variable a field.
type Config struct {
	service.LogConfig
	identity.Files

	Socket  string `envconfig:"PAIRDB_SOCKET" default:"/run/pairdb/node.sock" unit:"path" desc:"Unix socket of the storage node; it may appear later."`
	DataDir string `envconfig:"PAIRDB_DATA_DIR" default:"/var/lib/pairdb" unit:"directory" desc:"Data directory of the storage node: tables are read from sst/, outputs are written to files that the node has made in staging/."`
	// Four is what the node's merges can use on the usual disks; cores bound it, since a merge is
	// mostly checksums and compression.
	Slots int `envconfig:"PAIRDB_COMPACTOR_SLOTS" default:"4" unit:"count" desc:"Jobs at a time; never more than there are cores."`

	OpsAddr         string        `envconfig:"PAIRDB_COMPACTOR_OPS_ADDR" default:":9092" unit:"address" desc:"Where /metrics, /health and /ready are served."`
	OpsPprof        bool          `envconfig:"PAIRDB_OPS_PPROF" default:"false" unit:"bool" desc:"Also serve /debug/pprof/ there."`
	ShutdownTimeout time.Duration `envconfig:"PAIRDB_SHUTDOWN_TIMEOUT" default:"25s" unit:"duration" desc:"How long giving back the running jobs may take after SIGTERM; below the 30 s of Kubernetes."`
}

// maxSocketBytes is what a node can listen on: the address of a unix socket less a suffix.
const maxSocketBytes = 103

// Validate reports all values that are out of their ranges.
func (c *Config) Validate() error {
	var p service.Problems
	c.Check(&p)
	c.CheckTLS(&p)
	if n := len(c.Socket); n < 1 || n > maxSocketBytes {
		p.Addf("PAIRDB_SOCKET", "the path has %d bytes, 1 to %d fit into a socket address", n, maxSocketBytes)
	}
	if c.DataDir == "" {
		p.Addf("PAIRDB_DATA_DIR", "is empty")
	}
	p.Int("PAIRDB_COMPACTOR_SLOTS", c.Slots, 1, 64)
	p.Address("PAIRDB_COMPACTOR_OPS_ADDR", c.OpsAddr)
	p.Duration("PAIRDB_SHUTDOWN_TIMEOUT", c.ShutdownTimeout, time.Second, 10*time.Minute)
	return p.Err()
}
