package robustness

import (
	"os"
	"strings"
	"testing"

	"github.com/pairdb/pairdb/integration/cluster"
	"github.com/pairdb/pairdb/integration/pairdbtest/scratch"
)

func TestMain(m *testing.M) { os.Exit(scratch.Main(m)) }

// explorers are the campaigns that share the time of `make robust`.
const explorers = 3

// kinds are the faults that the environment asks for, with commas; none: all.
func kinds() []string {
	if s := os.Getenv("PAIRDB_ROBUST_KINDS"); s != "" {
		return strings.Split(s, ",")
	}
	return nil
}

// Whatever is taken from a cluster, and several things at a time: what it acknowledged is there afterwards,
// what was deleted is not, and its replicas are the same.
func TestLocalClusterUnderNemesis(t *testing.T) {
	campaign(t, cluster.Local, duration(t), kinds()...)
}

// The same with a network between the nodes, which is cut in all ways.
func TestClusterOfNamespacesUnderNemesis(t *testing.T) {
	campaign(t, cluster.Namespaces, duration(t), kinds()...)
}

// The same with each process in a container, as in production: other roots, names instead of addresses, and a
// network that takes a node out altogether.
func TestClusterOfContainersUnderNemesis(t *testing.T) {
	campaign(t, cluster.Containers(scratch.Images(t)), duration(t), kinds()...)
}
