// Package config is the configuration of the migrator: keys, defaults, ranges. It never opens
// anything.
package config

import (
	"runtime"
	"time"

	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/identity"
	"github.com/pairdb/pairdb/libs/service"
)

// Config is the configuration of a migrator, one environment variable a field.
type Config struct {
	service.LogConfig
	event.Config
	identity.Files

	Socket string `envconfig:"PAIRDB_SOCKET" default:"/run/pairdb/node.sock" unit:"path" desc:"Unix socket of the storage node; it may appear later."`

	// What is sent takes processors from requests: docs/PERFORMANCE.md has what they notice of it.
	BytesPerSecond rate `envconfig:"PAIRDB_MIGRATOR_BYTES_PER_SECOND" default:"auto" unit:"bytes" desc:"Keys and values that all moves together may send in a second; auto: 4 MiB for each processor that the process may use; 0: no limit. A move can have a lower one of its own."`
	Moves          int  `envconfig:"PAIRDB_MIGRATOR_MOVES" default:"4" unit:"count" desc:"Moves at a time; others wait in the order in which they were made."`

	// An hour is what an unnoticed difference between replicas may last; what is noticed (a node comes
	// back, joins, gains a range) is compared at once.
	RepairInterval       time.Duration `envconfig:"PAIRDB_REPAIR_INTERVAL" default:"1h" unit:"duration" desc:"How often the ranges of the node are compared with each of their other replicas; 0: only when a node comes back, joins, or gains ranges."`
	RepairPaused         bool          `envconfig:"PAIRDB_REPAIR_PAUSED" default:"false" unit:"bool" desc:"Compare nothing in the background, whatever happens: for the time of other heavy work, not for ever. Repairs that are asked for and the verification of moves go on; with PAIRDB_GC=repair no deletion is forgotten meanwhile."`
	RepairBytesPerSecond service.Bytes `envconfig:"PAIRDB_REPAIR_BYTES_PER_SECOND" default:"32MiB" unit:"bytes" desc:"Keys and values that these comparisons may send in a second; 0: no limit."`

	OpsAddr         string        `envconfig:"PAIRDB_MIGRATOR_OPS_ADDR" default:":9093" unit:"address" desc:"Where /metrics, /health and /ready are served."`
	OpsPprof        bool          `envconfig:"PAIRDB_OPS_PPROF" default:"false" unit:"bool" desc:"Also serve /debug/pprof/ there."`
	ShutdownTimeout time.Duration `envconfig:"PAIRDB_SHUTDOWN_TIMEOUT" default:"25s" unit:"duration" desc:"How long ending the streams may take after SIGTERM; below the 30 s of Kubernetes."`
}

const (
	// maxSocketBytes is what a node can listen on: the address of a unix socket less a suffix.
	maxSocketBytes = 103
	// minRate is what still moves a record of 10 MiB within three hours.
	minRate = 1 << 10
	maxRate = 1 << 40
)

// bytesPerProcessor is what moves may send in a second for each processor.
const bytesPerProcessor = 4 << 20

// rate is bytes in a second, or "auto".
type rate struct {
	auto bool
	service.Bytes
}

func (r *rate) UnmarshalText(text []byte) error {
	if string(text) == "auto" {
		*r = rate{auto: true}
		return nil
	}
	r.auto = false
	return r.Bytes.UnmarshalText(text)
}

// Complete replaces auto.
func (c *Config) Complete() error {
	if c.BytesPerSecond.auto {
		c.BytesPerSecond.Bytes = service.Bytes(bytesPerProcessor * runtime.GOMAXPROCS(0))
	}
	return nil
}

// Validate reports all values that are out of their ranges.
func (c *Config) Validate() error {
	var p service.Problems
	c.Check(&p)
	c.CheckTLS(&p)
	c.CheckNATS(&p)
	if n := len(c.Socket); n < 1 || n > maxSocketBytes {
		p.Addf("PAIRDB_SOCKET", "the path has %d bytes, 1 to %d fit into a socket address", n, maxSocketBytes)
	}
	if r := c.BytesPerSecond.Bytes; r != 0 {
		p.Bytes("PAIRDB_MIGRATOR_BYTES_PER_SECOND", r, minRate, maxRate)
	}
	p.Int("PAIRDB_MIGRATOR_MOVES", c.Moves, 1, 64)
	if c.RepairInterval != 0 {
		p.Duration("PAIRDB_REPAIR_INTERVAL", c.RepairInterval, time.Second, 30*24*time.Hour)
	}
	if c.RepairBytesPerSecond != 0 {
		p.Bytes("PAIRDB_REPAIR_BYTES_PER_SECOND", c.RepairBytesPerSecond, minRate, maxRate)
	}
	p.Address("PAIRDB_MIGRATOR_OPS_ADDR", c.OpsAddr)
	p.Duration("PAIRDB_SHUTDOWN_TIMEOUT", c.ShutdownTimeout, time.Second, 10*time.Minute)
	return p.Err()
}
