// Package config is the configuration of the storage node: keys, defaults, ranges. It never opens
// anything.
package config

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/identity"
	"github.com/pairdb/pairdb/libs/service"
)

// Config is the configuration of a storage node, one environment variable a field.
type Config struct {
	service.LogConfig
	event.Config
	identity.Files

	TokenKeys string `envconfig:"PAIRDB_TOKEN_KEYS" optional:"true" unit:"path" desc:"File with public keys (PEM, Ed25519). With it, clients need a token that was signed with one of them, beside their certificate, and may do what it says; coordinators do not. Needs PAIRDB_TLS_CERT. Read again when it changes."`

	DataDir   string `envconfig:"PAIRDB_DATA_DIR" default:"/var/lib/pairdb" unit:"directory" desc:"Directory that the node owns: commit log, tables, manifest, snapshots."`
	NodeID    string `envconfig:"PAIRDB_NODE_ID" optional:"true" unit:"name" desc:"Name of the node, unique in the cluster, the same for ever for a data directory; the host name when not set."`
	ClusterID string `envconfig:"PAIRDB_CLUSTER_ID" default:"pairdb" unit:"name" desc:"Name of the cluster; a data directory of another cluster is refused."`

	GRPCAddr string `envconfig:"PAIRDB_GRPC_ADDR" default:":8080" unit:"address" desc:"Where clients and operators reach the node."`
	OpsAddr  string `envconfig:"PAIRDB_OPS_ADDR" default:":9091" unit:"address" desc:"Where /metrics, /health and /ready are served."`
	OpsPprof bool   `envconfig:"PAIRDB_OPS_PPROF" default:"false" unit:"bool" desc:"Also serve /debug/pprof/ there."`
	Socket   string `envconfig:"PAIRDB_SOCKET" default:"/run/pairdb/node.sock" unit:"path" desc:"Unix socket for the sidecars of the pod."`
	// One uid runs everything in a local pod, so the default lets it do everything.
	SocketUIDs SocketUIDs `envconfig:"PAIRDB_SOCKET_UIDS" optional:"true" unit:"list" desc:"Who may call what on the socket: uid=service+service,… with the services node, compaction, migration, replica, admin, storage or all; when not set, the uid of the node and root may call all."`

	CoordinatorAddr string `envconfig:"PAIRDB_COORDINATOR_ADDR" optional:"true" unit:"address" desc:"Existing coordinator that the node announces itself to once it serves, host:port; when not set, to none."`
	AdvertiseAddr   string `envconfig:"PAIRDB_ADVERTISE_ADDR" optional:"true" unit:"address" desc:"Where coordinators, clients and other nodes reach the node, host:port; when not set, the host name and the port of PAIRDB_GRPC_ADDR. Needed with PAIRDB_COORDINATOR_ADDR."`
	VirtualNodes    int    `envconfig:"PAIRDB_VIRTUAL_NODES" default:"150" unit:"count" desc:"Places on the ring that the node asks for."`

	Join string `envconfig:"PAIRDB_JOIN" default:"bootstrap" unit:"word" desc:"What a node with a new data directory wants to be: bootstrap (it is JOINING until the migrator of its pod has brought the records of its ranges), at-once (it is UP at once, and the others' records come by repair)."`

	ReplicationFactor int `envconfig:"PAIRDB_REPLICATION_FACTOR" default:"3" unit:"count" desc:"Nodes that keep each record; the same in the whole cluster."`

	Sync         string        `envconfig:"PAIRDB_SYNC" default:"group" unit:"word" desc:"When a write is answered: group (on disk), interval (a crash of the machine loses up to PAIRDB_SYNC_INTERVAL), never (it loses what the kernel had not written)."`
	SyncInterval time.Duration `envconfig:"PAIRDB_SYNC_INTERVAL" default:"100ms" unit:"duration" desc:"Time between syncs of the commit log with PAIRDB_SYNC=interval."`

	LogSegmentBytes service.Bytes `envconfig:"PAIRDB_LOG_SEGMENT_BYTES" default:"32MiB" unit:"bytes" desc:"Size of a segment of the commit log; a quiet node has four, preallocated."`
	MemtableBytes   service.Bytes `envconfig:"PAIRDB_MEMTABLE_BYTES" default:"64MiB" unit:"bytes" desc:"Size of a memtable; a full one is written to a table."`
	BlockCacheBytes service.Bytes `envconfig:"PAIRDB_BLOCK_CACHE_BYTES" default:"128MiB" unit:"bytes" desc:"Cache of table blocks; 0 is none."`
	RowCacheBytes   service.Bytes `envconfig:"PAIRDB_ROW_CACHE_BYTES" default:"128MiB" unit:"bytes" desc:"Cache of whole records; 0 is none."`
	TableBytes      service.Bytes `envconfig:"PAIRDB_TABLE_BYTES" default:"64MiB" unit:"bytes" desc:"Size of the tables that compactions write."`
	MemoryLimit     memoryLimit   `envconfig:"PAIRDB_MEMORY_LIMIT_BYTES" default:"auto" unit:"bytes" desc:"Soft limit of the Go runtime (GOMEMLIMIT); auto derives it from memtables and caches, and stays below nine tenths of the container's limit."`
	MemoryHigh      int           `envconfig:"PAIRDB_MEMORY_HIGH_PERCENT" default:"85" unit:"percent" desc:"Used part of the container's memory from which memtables are flushed early and caches shrink."`
	MemoryCritical  int           `envconfig:"PAIRDB_MEMORY_CRITICAL_PERCENT" default:"95" unit:"percent" desc:"Used part of the container's memory from which writes are refused; reads go on."`

	CompactionLocal string        `envconfig:"PAIRDB_COMPACTION_LOCAL" default:"auto" unit:"word" desc:"When the node merges tables itself: auto (no compactor for 30 s, or under pressure), never, always."`
	CompactionRate  service.Bytes `envconfig:"PAIRDB_COMPACTION_BYTES_PER_SECOND" default:"0" unit:"bytes/s" desc:"Limit of each compaction job; 0 is none."`
	CompactionAudit int           `envconfig:"PAIRDB_COMPACTION_AUDIT_PERCENT" default:"10" unit:"percent" desc:"How many merges of compactors the node does again, to compare them entry by entry before it installs them; all, once one differed."`
	DiskReserve     service.Bytes `envconfig:"PAIRDB_DISK_RESERVE_BYTES" default:"256MiB" unit:"bytes" desc:"Free space below which writes are refused, kept for deletes and merges that make room."`
	DiskWarning     int           `envconfig:"PAIRDB_DISK_WARNING_PERCENT" default:"85" unit:"percent" desc:"Used part of the data volume from which the node is degraded, and says so."`
	DiskThrottled   int           `envconfig:"PAIRDB_DISK_THROTTLED_PERCENT" default:"90" unit:"percent" desc:"Used part of the data volume from which writes above 64 KiB are refused."`
	DiskFull        int           `envconfig:"PAIRDB_DISK_FULL_PERCENT" default:"95" unit:"percent" desc:"Used part of the data volume from which all writes but deletes are refused; reads go on."`
	StallLimit      time.Duration `envconfig:"PAIRDB_STALL_LIMIT" default:"2m" unit:"duration" desc:"How long writes may not move at all before the process ends with exit code 5; after 10 s it is not ready."`

	GCGrace      time.Duration `envconfig:"PAIRDB_GC_GRACE" default:"240h" unit:"duration" desc:"Age at which a tombstone or an expired value may be collected; longer than any replica may be away."`
	GC           string        `envconfig:"PAIRDB_GC" default:"auto" unit:"word" desc:"What besides PAIRDB_GC_GRACE must have passed before a delete is collected: repair (all replicas of its range were found equal since), grace (nothing), auto (repair as soon as another member is declared)."`
	MaxClockSkew time.Duration `envconfig:"PAIRDB_MAX_CLOCK_SKEW" default:"1m" unit:"duration" desc:"How far ahead of this node's clock a timestamp of a client may be."`

	OutboxEvents int `envconfig:"PAIRDB_OUTBOX_EVENTS" default:"10000" unit:"count" desc:"Events that wait for NATS, in the data directory; the oldest is dropped for one more."`

	Tenants       string `envconfig:"PAIRDB_TENANTS" default:"open" unit:"word" desc:"Which tenants are served: open (all; those that are not known have no limits), strict (those that were created)."`
	TenantMetrics int    `envconfig:"PAIRDB_TENANT_METRICS" default:"100" unit:"count" desc:"Tenants with metrics of their own; all others together are tenant=\"_other\"."`

	RequestTimeout  time.Duration `envconfig:"PAIRDB_REQUEST_TIMEOUT" default:"30s" unit:"duration" desc:"Deadline of a request that brings none."`
	MaxInFlight     int           `envconfig:"PAIRDB_MAX_IN_FLIGHT" default:"4096" unit:"count" desc:"Requests that are worked on at once; more are refused with OVERLOADED. Also the writes of all pipelines together; more of them wait."`
	SlowRequest     time.Duration `envconfig:"PAIRDB_SLOW_REQUEST" default:"500ms" unit:"duration" desc:"From when on a request is logged as slow, with the time of its stages; 0 is never."`
	LogKeys         bool          `envconfig:"PAIRDB_LOG_KEYS" default:"false" unit:"bool" desc:"Log the keys of requests as they are, instead of the first 16 digits of their SHA-256."`
	Reflection      bool          `envconfig:"PAIRDB_REFLECTION" default:"false" unit:"bool" desc:"Serve gRPC reflection, for grpcurl and the like."`
	ShutdownTimeout time.Duration `envconfig:"PAIRDB_SHUTDOWN_TIMEOUT" default:"25s" unit:"duration" desc:"How long requests in flight and the last flush may take after SIGTERM; below the 30 s of Kubernetes."`
}

// TenantsStrict is the value of PAIRDB_TENANTS that serves only tenants that were created.
const TenantsStrict = "strict"

// JoinAtOnce is the value of PAIRDB_JOIN that has a new node UP at once.
const JoinAtOnce = "at-once"

// Complete fills in what derives from the machine and from other values.
func (c *Config) Complete() error {
	if c.NodeID == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("PAIRDB_NODE_ID is not set and the host has no name: %w", err)
		}
		c.NodeID = host
	}
	if c.MemoryLimit.auto {
		c.MemoryLimit.bytes = c.derivedMemoryLimit()
	}
	return nil
}

// derivedMemoryLimit is what the node needs when everything is full: the memtable being written
// and two being flushed, both caches, and baseBytes for filters and indexes of open tables, buffers
// of requests and stacks. It is a soft limit: above it the collector works harder.
func (c *Config) derivedMemoryLimit() service.Bytes {
	const (
		memtables = 3
		baseBytes = 96 << 20
	)
	return memtables*c.MemtableBytes + c.BlockCacheBytes + c.RowCacheBytes + baseBytes
}

// maxNameBytes bounds node and cluster names: a node name and an incarnation must fit into the 128
// bytes of an actor in a clock.
const maxNameBytes = 100

// Validate checks every value; all problems are reported together.
func (c *Config) Validate() error {
	var p service.Problems
	c.Check(&p)
	c.CheckTLS(&p)
	if c.TokenKeys != "" && !c.Enabled() {
		p.Addf("PAIRDB_TOKEN_KEYS", "is set without PAIRDB_TLS_CERT: tokens would travel in the clear, and nobody would know who is a coordinator")
	}
	c.CheckNATS(&p)
	if c.DataDir == "" || !filepath.IsAbs(c.DataDir) && !filepath.IsLocal(c.DataDir) {
		p.Addf("PAIRDB_DATA_DIR", "%q is not a directory name", c.DataDir)
	}
	checkName(&p, "PAIRDB_NODE_ID", c.NodeID)
	checkName(&p, "PAIRDB_CLUSTER_ID", c.ClusterID)
	p.Address("PAIRDB_GRPC_ADDR", c.GRPCAddr)
	p.Address("PAIRDB_OPS_ADDR", c.OpsAddr)
	// sun_path holds 108 bytes with its terminating zero; sidecar.Listen needs four for a moment.
	if n := len(c.Socket); n < 1 || n > 103 {
		p.Addf("PAIRDB_SOCKET", "the path has %d bytes, 1 to 103 fit into a socket address", n)
	}
	checkPeer(&p, "PAIRDB_COORDINATOR_ADDR", c.CoordinatorAddr)
	checkPeer(&p, "PAIRDB_ADVERTISE_ADDR", c.AdvertiseAddr)
	if c.CoordinatorAddr != "" && c.AdvertiseAddr == "" {
		p.Addf("PAIRDB_ADVERTISE_ADDR", "not set, and PAIRDB_COORDINATOR_ADDR is: the coordinator has to know where the node is reached")
	}
	p.Int("PAIRDB_VIRTUAL_NODES", c.VirtualNodes, 1, 256)
	p.OneOf("PAIRDB_JOIN", c.Join, "bootstrap", JoinAtOnce)
	p.OneOf("PAIRDB_SYNC", c.Sync, "group", "interval", "never")
	p.Duration("PAIRDB_SYNC_INTERVAL", c.SyncInterval, time.Millisecond, time.Minute)
	p.Bytes("PAIRDB_LOG_SEGMENT_BYTES", c.LogSegmentBytes, 64<<10, 1<<30)
	p.Bytes("PAIRDB_MEMTABLE_BYTES", c.MemtableBytes, 1<<20, 4<<30)
	p.Bytes("PAIRDB_BLOCK_CACHE_BYTES", c.BlockCacheBytes, 0, 1<<40)
	p.Bytes("PAIRDB_ROW_CACHE_BYTES", c.RowCacheBytes, 0, 1<<40)
	p.Bytes("PAIRDB_TABLE_BYTES", c.TableBytes, 1<<20, 2<<30)
	p.Bytes("PAIRDB_MEMORY_LIMIT_BYTES", c.MemoryLimit.bytes, 64<<20, 1<<43)
	p.OneOf("PAIRDB_COMPACTION_LOCAL", c.CompactionLocal, "auto", "never", "always")
	if c.CompactionRate != 0 {
		p.Bytes("PAIRDB_COMPACTION_BYTES_PER_SECOND", c.CompactionRate, 64<<10, 1<<40)
	}
	p.Int("PAIRDB_COMPACTION_AUDIT_PERCENT", c.CompactionAudit, 0, 100)
	p.Bytes("PAIRDB_DISK_RESERVE_BYTES", c.DiskReserve, 0, 1<<40)
	ascending(&p, percent{"PAIRDB_DISK_WARNING_PERCENT", c.DiskWarning}, percent{"PAIRDB_DISK_THROTTLED_PERCENT", c.DiskThrottled}, percent{"PAIRDB_DISK_FULL_PERCENT", c.DiskFull})
	ascending(&p, percent{"PAIRDB_MEMORY_HIGH_PERCENT", c.MemoryHigh}, percent{"PAIRDB_MEMORY_CRITICAL_PERCENT", c.MemoryCritical})
	p.Duration("PAIRDB_STALL_LIMIT", c.StallLimit, 10*time.Second, time.Hour)
	p.Duration("PAIRDB_GC_GRACE", c.GCGrace, time.Minute, 10*365*24*time.Hour)
	p.OneOf("PAIRDB_GC", c.GC, "auto", "repair", "grace")
	p.Int("PAIRDB_REPLICATION_FACTOR", c.ReplicationFactor, 1, 16)
	p.Duration("PAIRDB_MAX_CLOCK_SKEW", c.MaxClockSkew, time.Millisecond, 24*time.Hour)
	p.Int("PAIRDB_OUTBOX_EVENTS", c.OutboxEvents, 1, 1_000_000)
	p.OneOf("PAIRDB_TENANTS", c.Tenants, "open", TenantsStrict)
	p.Int("PAIRDB_TENANT_METRICS", c.TenantMetrics, 0, 10_000)
	p.Duration("PAIRDB_REQUEST_TIMEOUT", c.RequestTimeout, 10*time.Millisecond, time.Hour)
	p.Duration("PAIRDB_SLOW_REQUEST", c.SlowRequest, 0, time.Hour)
	p.Int("PAIRDB_MAX_IN_FLIGHT", c.MaxInFlight, 1, 1<<20)
	p.Duration("PAIRDB_SHUTDOWN_TIMEOUT", c.ShutdownTimeout, time.Second, time.Hour)
	return p.Err()
}

// percent is a threshold and its key.
type percent struct {
	key   string
	value int
}

// ascending checks thresholds of one thing: each 1 to 100, and none below the one before it.
func ascending(p *service.Problems, all ...percent) {
	for i, t := range all {
		p.Int(t.key, t.value, 1, 100)
		if i > 0 && t.value < all[i-1].value {
			p.Addf(t.key, "%d is below %s, which is %d", t.value, all[i-1].key, all[i-1].value)
		}
	}
}

// maxHostBytes is the longest name that DNS has.
const maxHostBytes = 253

// checkPeer accepts an address at which others can be reached, or none.
func checkPeer(p *service.Problems, key, addr string) {
	if addr == "" {
		return
	}
	host, port, err := net.SplitHostPort(addr)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil || n == 0 || len(host) < 1 || len(host) > maxHostBytes || strings.ContainsAny(host, " /%") {
		p.Addf(key, "%q is not an address that others can reach: write host:port", addr)
	}
}

// checkName accepts what can be a host name, a metric label and a part of an actor: no slash, which
// separates a node from its incarnation.
func checkName(p *service.Problems, key, name string) {
	if len(name) < 1 || len(name) > maxNameBytes {
		p.Addf(key, "%q has %d bytes, 1 to %d are allowed", name, len(name), maxNameBytes)
		return
	}
	for _, r := range name {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.') {
			p.Addf(key, "%q contains %q; letters, digits, dash, underscore and dot are allowed", name, r)
			return
		}
	}
}
