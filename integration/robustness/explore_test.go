package robustness

import (
	"os"
	"strings"
	"testing"

	"github.com/pairdb/pairdb/integration/cluster"
)

// explorers are the campaigns that share the time of `make robust`.
const explorers = 2

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
