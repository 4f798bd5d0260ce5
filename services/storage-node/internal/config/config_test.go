package config

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/service/servicetest"
)

func TestConfigurationPageAndDefaultsAreCurrent(t *testing.T) {
	servicetest.Config(t, "storage-node", &Config{})
}

// A value outside of its range must name the key and the range, and never run.
func TestEveryLimitIsCheckedOnBothSides(t *testing.T) {
	for _, c := range []struct {
		key       string
		good, bad []string
	}{
		{"PAIRDB_NODE_ID", []string{"n", strings.Repeat("n", 100), "pairdb-0.pairdb_x"}, []string{strings.Repeat("n", 101), "a/b", "a b", "ä"}},
		{"PAIRDB_CLUSTER_ID", []string{"c"}, []string{"", strings.Repeat("c", 101), "a:b"}},
		{"PAIRDB_DATA_DIR", []string{"/data", "data"}, []string{"", "../data"}},
		{"PAIRDB_GRPC_ADDR", []string{":8080", "127.0.0.1:0"}, []string{"8080", "host:99999", ":x"}},
		{"PAIRDB_OPS_ADDR", []string{":0"}, []string{"", "9091"}},
		{"PAIRDB_OPS_PPROF", []string{"true"}, []string{"yes", ""}},
		{"PAIRDB_SOCKET", []string{"/" + strings.Repeat("s", 102)}, []string{"", "/" + strings.Repeat("s", 103)}},
		{"PAIRDB_SOCKET_UIDS", []string{"", "1002=compaction+node", "0=all,7=admin"}, []string{"1002", "x=all", "1=", "1=root", "1=all,1=all", "-1=all", "4294967296=all", strings.Repeat("1=all,", 65)}},
		{"PAIRDB_ADVERTISE_ADDR", []string{"", "node-0.pods:8080", "10.0.0.1:65535", "[::1]:1"}, []string{"node-0", ":8080", "node-0:0", "node-0:65536", "a b:1", strings.Repeat("h", 254) + ":1"}},
		{"PAIRDB_COORDINATOR_ADDR", []string{""}, []string{"coordinator", ":50051", "coordinator:0", "coordinator:50051"}},
		{"PAIRDB_VIRTUAL_NODES", []string{"1", "256"}, []string{"0", "257", "-1", ""}},
		{"PAIRDB_SYNC", []string{"group", "interval", "never"}, []string{"", "always", "Group"}},
		{"PAIRDB_SYNC_INTERVAL", []string{"1ms", "1m"}, []string{"999us", "61s", "100", ""}},
		{"PAIRDB_LOG_SEGMENT_BYTES", []string{"64KiB", "1GiB"}, []string{"", "0", "65535", "1025MiB"}},
		{"PAIRDB_COMPACTION_AUDIT_PERCENT", []string{"0", "100"}, []string{"", "-1", "101"}},
		{"PAIRDB_MEMTABLE_BYTES", []string{"1MiB", "4GiB"}, []string{"", "0", "1048575", "4294967297", "-1"}},
		{"PAIRDB_BLOCK_CACHE_BYTES", []string{"0", "1TiB"}, []string{"", "-1", "1025GiB"}},
		{"PAIRDB_ROW_CACHE_BYTES", []string{"0", "1TiB"}, []string{"", "-1", "1025GiB"}},
		{"PAIRDB_TABLE_BYTES", []string{"1MiB", "2GiB"}, []string{"0", "1023KiB", "2049MiB"}},
		{"PAIRDB_MEMORY_LIMIT_BYTES", []string{"auto", "64MiB", "8TiB"}, []string{"", "0", "63MiB", "9TiB"}},
		{"PAIRDB_COMPACTION_LOCAL", []string{"auto", "never", "always"}, []string{"", "off"}},
		{"PAIRDB_COMPACTION_BYTES_PER_SECOND", []string{"0", "64KiB"}, []string{"1", ""}},
		{"PAIRDB_DISK_RESERVE_BYTES", []string{"0", "1GiB"}, []string{"-1", ""}},
		{"PAIRDB_DISK_WARNING_PERCENT", []string{"1", "90"}, []string{"0", "91", "101", "85%", ""}},
		{"PAIRDB_DISK_THROTTLED_PERCENT", []string{"85", "95"}, []string{"0", "84", "96", ""}},
		{"PAIRDB_DISK_FULL_PERCENT", []string{"90", "100"}, []string{"89", "101", ""}},
		{"PAIRDB_MEMORY_HIGH_PERCENT", []string{"1", "95"}, []string{"0", "96", ""}},
		{"PAIRDB_MEMORY_CRITICAL_PERCENT", []string{"85", "100"}, []string{"84", "101", ""}},
		{"PAIRDB_STALL_LIMIT", []string{"10s", "1h"}, []string{"0s", "9s", "61m", ""}},
		{"PAIRDB_GC_GRACE", []string{"1m", "87600h"}, []string{"0s", "59s", "87601h"}},
		{"PAIRDB_MAX_CLOCK_SKEW", []string{"1ms", "24h"}, []string{"0s", "25h"}},
		{"PAIRDB_OUTBOX_EVENTS", []string{"1", "1000000"}, []string{"0", "1000001", ""}},
		{"PAIRDB_NATS_URL", []string{"", "nats://n:4222", "tls://a:4222,tls://b:4222"}, []string{"n:4222", "http://n"}},
		{"PAIRDB_NATS_CREDENTIALS", []string{""}, []string{"/file"}},
		{"PAIRDB_NATS_CA", []string{""}, []string{"/file"}},
		{"PAIRDB_TENANTS", []string{"open", "strict"}, []string{"", "closed"}},
		{"PAIRDB_TENANT_METRICS", []string{"0", "10000"}, []string{"-1", "10001", ""}},
		{"PAIRDB_REQUEST_TIMEOUT", []string{"10ms", "1h"}, []string{"0s", "9ms", "61m"}},
		{"PAIRDB_MAX_IN_FLIGHT", []string{"1", "1048576"}, []string{"0", "1048577", ""}},
		{"PAIRDB_REFLECTION", []string{"true", "false"}, []string{"on"}},
		{"PAIRDB_SHUTDOWN_TIMEOUT", []string{"1s", "1h"}, []string{"0s", "999ms", "61m"}},
	} {
		t.Run(c.key, func(t *testing.T) {
			servicetest.ClearEnvironment(t)
			for _, value := range c.good {
				t.Setenv(c.key, value)
				require.NoError(t, service.Load(&Config{}), "%s=%q", c.key, value)
			}
			for _, value := range c.bad {
				t.Setenv(c.key, value)
				require.ErrorContains(t, service.Load(&Config{}), c.key, "%s=%q", c.key, value)
			}
		})
	}
}

// The runtime's limit must leave the pod's bar of 600 MiB for the default sizes, and never be
// below what memtables and caches alone take.
func TestMemoryLimitDerivesFromMemtablesAndCaches(t *testing.T) {
	servicetest.ClearEnvironment(t)
	var c Config
	require.NoError(t, service.Load(&c))
	require.EqualValues(t, 544<<20, c.MemoryLimit.Bytes())
	t.Setenv("PAIRDB_ROW_CACHE_BYTES", "1GiB")
	require.NoError(t, service.Load(&c))
	require.EqualValues(t, (544-128+1024)<<20, c.MemoryLimit.Bytes())
	t.Setenv("PAIRDB_MEMORY_LIMIT_BYTES", "256MiB")
	require.NoError(t, service.Load(&c))
	require.EqualValues(t, 256<<20, c.MemoryLimit.Bytes())
}

func TestNodeIDDefaultsToTheHost(t *testing.T) {
	servicetest.ClearEnvironment(t)
	var c Config
	require.NoError(t, service.Load(&c))
	require.NotEmpty(t, c.NodeID)
}

// A node that announced itself without an address would be on the ring and out of reach.
func TestCoordinatorNeedsAnAddressOfTheNode(t *testing.T) {
	servicetest.ClearEnvironment(t)
	t.Setenv("PAIRDB_COORDINATOR_ADDR", "coordinator:50051")
	require.ErrorContains(t, service.Load(&Config{}), "PAIRDB_ADVERTISE_ADDR")
	t.Setenv("PAIRDB_ADVERTISE_ADDR", "node-0.pods:8080")
	require.NoError(t, service.Load(&Config{}))
}
