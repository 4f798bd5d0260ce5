package localpod

import (
	"slices"
	"strings"
)

// The binaries of a pod, in the order in which they start.
const (
	StorageNode = "storage-node"
	Compactor   = "compactor"
	Migrator    = "migrator"
	HealthAgent = "health-agent"
)

// Binaries are the names of the binaries of a pod, in the order in which they start.
func Binaries() []string { return []string{StorageNode, Compactor, Migrator, HealthAgent} }

// Layout says how the processes of one pod find one another and the rest of the cluster, whatever runs
// them: processes of this machine or containers. What is empty is left to the binary's default.
type Layout struct {
	// NodeID is the name of the node; DataDir the volume of its storage-node; Socket the path of the pod's
	// unix socket.
	NodeID, DataDir, Socket string
	// GRPCAddr is where the node listens, AdvertiseAddr where others reach it, host:port.
	GRPCAddr, AdvertiseAddr string
	// OpsAddr, CompactorOpsAddr, MigratorOpsAddr and HealthOpsAddr are where the processes serve /metrics,
	// /health and /ready.
	OpsAddr, CompactorOpsAddr, MigratorOpsAddr, HealthOpsAddr string
	// GossipAddr is where the health-agent listens, Seeds where it meets the others.
	GossipAddr string
	Seeds      []string
	// NATSURL is where events go and commands come from.
	NATSURL string
	// AtOnce: a node whose data directory is new is up without taking over its ranges first.
	AtOnce bool
	// Env is added to the environment of every process, as KEY=value. It wins over what is the same for all
	// of them, and loses against addresses.
	Env []string
}

// Environment returns what a binary of the pod is configured with, as KEY=value; of two with one key the
// later counts.
func (l Layout) Environment(binary string) []string {
	env := set("PAIRDB_NODE_ID", l.NodeID, "PAIRDB_DATA_DIR", l.DataDir, "PAIRDB_SOCKET", l.Socket, "PAIRDB_LOG_FORMAT", "text")
	if l.AtOnce {
		env = append(env, joinAtOnce)
	}
	env = append(env, l.Env...)
	switch binary {
	case StorageNode:
		return slices.Concat(env, set("PAIRDB_GRPC_ADDR", l.GRPCAddr, "PAIRDB_ADVERTISE_ADDR", l.AdvertiseAddr,
			"PAIRDB_OPS_ADDR", l.OpsAddr, "PAIRDB_NATS_URL", l.NATSURL))
	case Compactor:
		return slices.Concat(env, set("PAIRDB_COMPACTOR_OPS_ADDR", l.CompactorOpsAddr))
	case Migrator:
		return slices.Concat(env, set("PAIRDB_MIGRATOR_OPS_ADDR", l.MigratorOpsAddr, "PAIRDB_NATS_URL", l.NATSURL))
	case HealthAgent:
		return slices.Concat(env, set("PAIRDB_HEALTH_OPS_ADDR", l.HealthOpsAddr, "PAIRDB_GOSSIP_ADDR", l.GossipAddr,
			"PAIRDB_GOSSIP_SEEDS", strings.Join(l.Seeds, ","), "PAIRDB_NATS_URL", l.NATSURL))
	}
	return env
}

// set makes KEY=value of pairs of a key and a value, without those that have no value.
func set(pairs ...string) []string {
	var env []string
	for kv := range slices.Chunk(pairs, 2) {
		if kv[1] != "" {
			env = append(env, kv[0]+"="+kv[1])
		}
	}
	return env
}
