package localpod

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLayoutTellsEachBinaryItsPlaceAndNothingElse(t *testing.T) {
	// An address of another process, or a key without a value, is a pod that does not start: each binary
	// refuses what it does not know.
	l := Layout{
		NodeID: "node-0", DataDir: "/data", Socket: "/run/s", GRPCAddr: "g:1", AdvertiseAddr: "a:1", OpsAddr: "o:1",
		CompactorOpsAddr: "c:1", MigratorOpsAddr: "m:1", HealthOpsAddr: "h:1", GossipAddr: "p:1", Seeds: []string{"p:1", "p:2"},
		NATSURL: "nats://n", AtOnce: true, Env: []string{"PAIRDB_LOG_FORMAT=json"},
	}
	every := []string{"PAIRDB_NODE_ID=node-0", "PAIRDB_DATA_DIR=/data", "PAIRDB_SOCKET=/run/s", "PAIRDB_LOG_FORMAT=text", "PAIRDB_JOIN=at-once", "PAIRDB_LOG_FORMAT=json"}
	for binary, own := range map[string][]string{
		StorageNode: {"PAIRDB_GRPC_ADDR=g:1", "PAIRDB_ADVERTISE_ADDR=a:1", "PAIRDB_OPS_ADDR=o:1", "PAIRDB_NATS_URL=nats://n"},
		Compactor:   {"PAIRDB_COMPACTOR_OPS_ADDR=c:1"},
		Migrator:    {"PAIRDB_MIGRATOR_OPS_ADDR=m:1", "PAIRDB_NATS_URL=nats://n"},
		HealthAgent: {"PAIRDB_HEALTH_OPS_ADDR=h:1", "PAIRDB_GOSSIP_ADDR=p:1", "PAIRDB_GOSSIP_SEEDS=p:1,p:2", "PAIRDB_NATS_URL=nats://n"},
	} {
		require.Equal(t, append(every[:len(every):len(every)], own...), l.Environment(binary), binary)
		require.Equal(t, []string{"PAIRDB_LOG_FORMAT=text"}, Layout{}.Environment(binary), binary)
	}
	require.Len(t, Binaries(), 4)
}
