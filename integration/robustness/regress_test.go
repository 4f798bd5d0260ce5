package robustness

import (
	"strings"
	"testing"
	"time"

	"github.com/pairdb/pairdb/integration/cluster"
)

// again is how long the faults of a bug that was found before are repeated.
const again = 6 * time.Second

// regressions are the faults that led to bugs of the track record in the README, close together. Each bug has
// a test of its own as well, which needs no luck.
var regressions = []struct {
	name, kinds string
	start       runner
}{
	{"fences outlive nobody", "bootstrap,decommission,kill migrator,kill storage-node,pause storage-node", cluster.Local},
	{"disks that fail", "failing sync,failing write,disk full,kill storage-node,kill everything", cluster.Local},
	{"verdicts belong to their attempts", "lying compactor,stalled compactor,kill compactor,pause compactor,kill storage-node", cluster.Local},
	{"members find each other again", "power off a node,kill health-agent,partition one node,partition one way,clock jump of storage-node", cluster.Namespaces},
}

// A bug comes back by the way that it came first.
func TestFaultsThatFoundBugs(t *testing.T) {
	for _, r := range regressions {
		t.Run(r.name, func(t *testing.T) { campaign(t, r.start, again, strings.Split(r.kinds, ",")...) })
	}
}
