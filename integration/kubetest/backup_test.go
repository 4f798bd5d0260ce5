package kubetest

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Danger: a backup that nobody has ever restored.
func TestBackupRestoresATenantAndANode(t *testing.T) {
	b := installed(t)
	// Paths in the environment, as the page has them; a directory of ours instead of one below the repository.
	backup := "BACKUP=" + filepath.Join(t.TempDir(), "backup")
	pairctl := func(args string) string { return b.shell(t, time.Minute, "deploy/k8s/pairctl "+args) }
	pairctl("pairdb-0 --tenant shop put kept 'of the backup'")
	pairctl("pairdb-0 --tenant shop put spoilt 'of the backup'")
	pairctl("pairdb-0 repair --wait")
	underLoad(t, b, func(*load) { b.step(t, "backup", 5*time.Minute, backup) })
	for _, pod := range podNames(3) {
		info, err := os.Stat(filepath.Join(backup[len("BACKUP="):], pod+".tar"))
		require.NoError(t, err)
		require.Positive(t, info.Size())
	}
	b.step(t, "check-backup", 2*time.Minute, backup)

	pairctl("pairdb-0 --tenant shop put spoilt 'by mistake'")
	pairctl("pairdb-0 --tenant shop put later 'by mistake'")
	b.step(t, "restore-tenant", 5*time.Minute, backup, "TENANT=shop")
	require.Equal(t, "kept\tof the backup\nspoilt\tof the backup\n", pairctl("pairdb-0 --tenant shop scan"))

	before := b.get(t, "pvc/data-pairdb-1", "{.metadata.uid}")
	twoCopies(t, b, func() { b.step(t, "restore-node", 10*time.Minute, backup, "POD=pairdb-1") })
	require.NotEqual(t, before, b.get(t, "pvc/data-pairdb-1", "{.metadata.uid}"))
	require.Equal(t, "kept\tof the backup\nspoilt\tof the backup\n", pairctl("pairdb-1 --tenant shop scan"))
}
