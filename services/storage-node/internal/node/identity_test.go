package node

import (
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/vfs"
)

func identityDir(t *testing.T) vfs.FS {
	t.Helper()
	fsys := vfs.NewMem()
	require.NoError(t, fsys.MkdirAll("/d", 0o770))
	return fsys
}

// A volume that lands at another pod must not answer under its name.
func TestDirectoryOfAnotherNodeIsRefused(t *testing.T) {
	fsys := identityDir(t)
	require.NoError(t, claim(fsys, "/d", "n1", "c1"))
	require.NoError(t, claim(fsys, "/d", "n1", "c1"), "the next start")
	for _, c := range []struct{ node, cluster, message string }{
		{"n2", "c1", `/d belongs to node "n1", this is node "n2": set PAIRDB_NODE_ID=n1 to go on`},
		{"n1", "c2", `/d belongs to cluster "c1", this is cluster "c2"`},
	} {
		err := claim(fsys, "/d", c.node, c.cluster)
		require.ErrorContains(t, err, c.message)
		require.Equal(t, service.ExitLocked, service.ExitCode(err))
	}
}

func TestDamagedOrNewerIdentityIsRefused(t *testing.T) {
	for content, message := range map[string]string{
		"":                        "is damaged",
		"{":                       "is damaged",
		`{"version":1}`:           "is damaged",
		strings.Repeat(" ", 9000): "is damaged",
		`{"version":2,"node_id":"n1","cluster_id":"c1"}`: "has version 2, this binary reads up to 1",
	} {
		fsys := identityDir(t)
		require.NoError(t, vfs.WriteFile(fsys, path.Join("/d", identityFile), []byte(content), filePerm))
		err := claim(fsys, "/d", "n1", "c1")
		require.ErrorContains(t, err, message)
		require.Equal(t, service.ExitCorrupt, service.ExitCode(err))
	}
}
