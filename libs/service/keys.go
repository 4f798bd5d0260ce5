package service

import (
	"fmt"
	"slices"
	"sort"
	"strings"
)

// Prefix begins every configuration key.
const Prefix = "PAIRDB_"

// Keys are the configuration keys of all binaries, sorted. Containers of a pod often share one
// environment, so each binary must tell the key of a neighbour from a typing error. A test of each
// binary checks that its own keys are here.
var Keys = []string{
	"PAIRDB_ADDR",                        // pairctl
	"PAIRDB_ADVERTISE_ADDR",              // storage-node
	"PAIRDB_BLOCK_BYTES",                 // storage-node
	"PAIRDB_BLOCK_CACHE_BYTES",           // storage-node
	"PAIRDB_CLUSTER_ID",                  // storage-node
	"PAIRDB_COMPACTION_AUDIT_PERCENT",    // storage-node
	"PAIRDB_COMPACTION_BYTES_PER_SECOND", // storage-node
	"PAIRDB_COMPACTION_LOCAL",            // storage-node
	"PAIRDB_COMPACTOR_OPS_ADDR",          // compactor
	"PAIRDB_COMPACTOR_SLOTS",             // compactor
	"PAIRDB_COORDINATOR_ADDR",            // storage-node
	"PAIRDB_DATA_DIR",                    // storage-node, compactor, health-agent
	"PAIRDB_DISK_FULL_PERCENT",           // storage-node
	"PAIRDB_DISK_RESERVE_BYTES",          // storage-node
	"PAIRDB_DISK_THROTTLED_PERCENT",      // storage-node
	"PAIRDB_DISK_WARNING_PERCENT",        // storage-node
	"PAIRDB_FILTER_BITS_PER_KEY",         // storage-node
	"PAIRDB_GC",                          // storage-node
	"PAIRDB_GC_GRACE",                    // storage-node
	"PAIRDB_GOSSIP_ADDR",                 // health-agent
	"PAIRDB_GOSSIP_ADVERTISE_ADDR",       // health-agent
	"PAIRDB_GOSSIP_KEYRING",              // health-agent
	"PAIRDB_GOSSIP_SEEDS",                // health-agent
	"PAIRDB_GRPC_ADDR",                   // storage-node
	"PAIRDB_HEALTH_OPS_ADDR",             // health-agent
	"PAIRDB_JOIN",                        // storage-node
	"PAIRDB_LOG_FORMAT",                  // all
	"PAIRDB_LOG_KEYS",                    // storage-node
	"PAIRDB_LOG_LEVEL",                   // all
	"PAIRDB_LOG_SEGMENT_BYTES",           // storage-node
	"PAIRDB_LONG",                        // the tests, which may pass their environment on
	"PAIRDB_MAX_CLOCK_SKEW",              // storage-node
	"PAIRDB_MAX_IN_FLIGHT",               // storage-node
	"PAIRDB_MEMORY_CRITICAL_PERCENT",     // storage-node
	"PAIRDB_MEMORY_HIGH_PERCENT",         // storage-node
	"PAIRDB_MEMORY_LIMIT_BYTES",          // storage-node
	"PAIRDB_MEMTABLE_BYTES",              // storage-node
	"PAIRDB_MIGRATOR_BYTES_PER_SECOND",   // migrator
	"PAIRDB_MIGRATOR_MOVES",              // migrator
	"PAIRDB_MIGRATOR_OPS_ADDR",           // migrator
	"PAIRDB_NATS_CA",                     // storage-node, health-agent, migrator, pairctl
	"PAIRDB_NATS_CREDENTIALS",            // storage-node, health-agent, migrator, pairctl
	"PAIRDB_NATS_URL",                    // storage-node, health-agent, migrator, pairctl
	"PAIRDB_NODE_ID",                     // storage-node, health-agent
	"PAIRDB_OPS_ADDR",                    // storage-node, compactor
	"PAIRDB_OPS_PPROF",                   // storage-node, compactor, health-agent, migrator
	"PAIRDB_OUTBOX_EVENTS",               // storage-node
	"PAIRDB_REFLECTION",                  // storage-node
	"PAIRDB_REPAIR_BYTES_PER_SECOND",     // migrator
	"PAIRDB_REPAIR_INTERVAL",             // migrator
	"PAIRDB_REPAIR_PAUSED",               // migrator
	"PAIRDB_REPLICATION_FACTOR",          // storage-node
	"PAIRDB_REQUEST_TIMEOUT",             // storage-node
	"PAIRDB_ROW_CACHE_BYTES",             // storage-node
	"PAIRDB_SHORT",                       // the tests
	"PAIRDB_SHUTDOWN_TIMEOUT",            // storage-node, compactor, health-agent, migrator
	"PAIRDB_SLOW_REQUEST",                // storage-node
	"PAIRDB_SOCKET",                      // storage-node, compactor, health-agent, migrator
	"PAIRDB_SOCKET_UIDS",                 // storage-node
	"PAIRDB_STALL_LIMIT",                 // storage-node
	"PAIRDB_SYNC",                        // storage-node
	"PAIRDB_SYNC_INTERVAL",               // storage-node
	"PAIRDB_TABLE_BYTES",                 // storage-node
	"PAIRDB_TENANT",                      // pairctl
	"PAIRDB_TENANTS",                     // storage-node
	"PAIRDB_TENANT_METRICS",              // storage-node
	"PAIRDB_TEST_KILLS",                  // the tests
	"PAIRDB_TLS_CA",                      // all
	"PAIRDB_TLS_CERT",                    // all
	"PAIRDB_TLS_KEY",                     // all
	"PAIRDB_TOKEN_FILE",                  // pairctl
	"PAIRDB_TOKEN_KEYS",                  // storage-node
	"PAIRDB_VIRTUAL_NODES",               // storage-node
	"PAIRDB_ZONE",                        // health-agent
}

// Known reports whether some binary knows a key.
func Known(key string) bool {
	i := sort.SearchStrings(Keys, key)
	return i < len(Keys) && Keys[i] == key
}

// UnknownKeys returns one error for each PAIRDB_ key of the environment (as os.Environ gives it)
// that is neither known to any binary nor in own.
func UnknownKeys(environ []string, own []string) []error {
	var errs []error
	for _, kv := range environ {
		key, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(key, Prefix) || Known(key) || slices.Contains(own, key) {
			continue
		}
		errs = append(errs, unknownKey(key, own))
	}
	return errs
}

func unknownKey(key string, own []string) error {
	if serviceLink(key) {
		return fmt.Errorf("%s: unknown key; it looks like a service link of Kubernetes: set enableServiceLinks: false in the pod", key)
	}
	return fmt.Errorf("%s: unknown key; the nearest known one is %s (--help lists all)", key, Nearest(key, append(own, Keys...)))
}

// serviceLink reports whether a key is one that Kubernetes makes for a service named pairdb…
func serviceLink(key string) bool {
	return strings.HasSuffix(key, "_SERVICE_HOST") || strings.HasSuffix(key, "_SERVICE_PORT") ||
		strings.Contains(key, "_SERVICE_PORT_") || strings.Contains(key, "_TCP_") || strings.HasSuffix(key, "_TCP")
}

// Nearest returns the candidate with the smallest edit distance to name; the first of equals, ""
// when there is none.
func Nearest(name string, candidates []string) string {
	best, bestDistance := "", -1
	for _, c := range candidates {
		if d := editDistance(name, c); bestDistance < 0 || d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// editDistance counts the insertions, deletions and substitutions of bytes that turn a into b.
func editDistance(a, b string) int {
	const maxName = 256 // quadratic; no key of ours is longer
	a, b = a[:min(len(a), maxName)], b[:min(len(b), maxName)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
