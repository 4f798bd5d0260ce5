package localpod

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestScrapeFileNamesTheProcessesThatAreThere(t *testing.T) {
	// A target that never answers is an alarm for nothing; a label that is missing leaves alerts blind.
	dir := t.TempDir()
	p := &Pods{options: Options{Dir: dir}, nodes: []*Pod{
		{
			Name: "node-0", OpsAddr: "127.0.0.1:9091", CompactorOpsAddr: "127.0.0.1:9092", MigratorOpsAddr: "127.0.0.1:9093",
			HealthOpsAddr: "127.0.0.1:9094", Node: &Process{}, Compactor: &Process{}, Migrator: &Process{}, HealthAgent: &Process{},
		},
		{Name: "node-1", OpsAddr: "127.0.0.1:4001", CompactorOpsAddr: "127.0.0.1:4002", Node: &Process{}},
	}}
	require.NoError(t, p.WriteScrapeFile())
	got, err := os.ReadFile(filepath.Join(dir, ScrapeFile))
	require.NoError(t, err)
	require.JSONEq(t, `[
		{"targets": ["127.0.0.1:9091"], "labels": {"job": "storage-node", "node_id": "node-0"}},
		{"targets": ["127.0.0.1:9092"], "labels": {"job": "compactor", "node_id": "node-0"}},
		{"targets": ["127.0.0.1:9093"], "labels": {"job": "migrator", "node_id": "node-0"}},
		{"targets": ["127.0.0.1:9094"], "labels": {"job": "health-agent", "node_id": "node-0"}},
		{"targets": ["127.0.0.1:4001"], "labels": {"job": "storage-node", "node_id": "node-1"}}
	]`, string(got))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1, "a file that is written beside")
}
