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
	first, err := claim(fsys, "/d", "n1", "c1")
	require.NoError(t, err)
	next, err := claim(fsys, "/d", "n1", "c1")
	require.NoError(t, err, "the next start")
	require.Equal(t, first, next)
	for _, c := range []struct{ node, cluster, message string }{
		{"n2", "c1", `/d belongs to node "n1", this is node "n2": set PAIRDB_NODE_ID=n1 to go on`},
		{"n1", "c2", `/d belongs to cluster "c1", this is cluster "c2"`},
	} {
		_, err := claim(fsys, "/d", c.node, c.cluster)
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
		`{"version":1,"node_id":"n1","cluster_id":"c1","incarnation":"` + strings.Repeat("i", 65) + `"}`: "is damaged",
		`{"version":3,"node_id":"n1","cluster_id":"c1","state":"LATER"}`:                                 "has version 3, this binary reads up to 2",
	} {
		fsys := identityDir(t)
		require.NoError(t, vfs.WriteFile(fsys, path.Join("/d", identityFile), []byte(content), filePerm))
		_, err := claim(fsys, "/d", "n1", "c1")
		require.ErrorContains(t, err, message)
		require.Equal(t, service.ExitCorrupt, service.ExitCode(err))
	}
}

// Two directories that had one name must be told apart, and one must be known again by its name.
func TestIncarnationIsThatOfTheDirectory(t *testing.T) {
	claimed := func(fsys vfs.FS) identity {
		id, err := claim(fsys, "/d", "n1", "c1")
		require.NoError(t, err)
		require.Regexp(t, "^[a-z2-7]{16}$", id.Incarnation)
		return id
	}
	first, other := identityDir(t), identityDir(t)
	require.NotEqual(t, claimed(first), claimed(other))
	before := claimed(first)
	require.Equal(t, before, claimed(first))
	require.NoError(t, first.Remove(path.Join("/d", identityFile))) // as it is adopted
	require.NotEqual(t, before, claimed(first))

	old := identityDir(t) // of a node that knew no incarnations
	require.NoError(t, vfs.WriteFile(old, path.Join("/d", identityFile), []byte(`{"version":1,"node_id":"n1","cluster_id":"c1"}`), filePerm))
	require.Equal(t, claimed(old), claimed(old))
}

// Danger: a StatefulSet that scales down and up again hands out the volume of a drained node: what was
// deleted since would be back.
func TestDirectoryOfADrainedNodeIsRefusedUntilItIsAdopted(t *testing.T) {
	fsys := identityDir(t)
	first, err := claim(fsys, "/d", "n1", "c1")
	require.NoError(t, err)
	require.Equal(t, 1, first.Version, "binaries that know no state go on with it")
	require.NoError(t, first.drained().write(fsys, "/d"))
	_, err = claim(fsys, "/d", "n1", "c1")
	require.ErrorContains(t, err, `/d belongs to node "n1", which was drained: its data is at other nodes. To join as a new node, empty the directory; to join with what is there, run: storage-node adopt /d`)
	require.Equal(t, service.ExitLocked, service.ExitCode(err))

	name, err := Adopt(fsys, "/d", "")
	require.NoError(t, err)
	require.Equal(t, "n1", name)
	again, err := claim(fsys, "/d", "n1", "c1")
	require.NoError(t, err)
	require.NotEqual(t, first.Incarnation, again.Incarnation)
	require.Empty(t, again.State)
	require.Equal(t, 1, again.Version)

	name, err = Adopt(fsys, "/d", "n2")
	require.NoError(t, err)
	require.Equal(t, "n2", name)
	_, err = claim(fsys, "/d", "n1", "c1")
	require.ErrorContains(t, err, `storage-node adopt /d --node-id n1`)
	_, err = claim(fsys, "/d", "n2", "c1")
	require.NoError(t, err)
}

// Danger: a directory that a node has open becomes another one's under its hands.
func TestAdoptIsRefusedWhereItMakesNoSense(t *testing.T) {
	fsys := identityDir(t)
	_, err := Adopt(fsys, "/d", "")
	require.ErrorContains(t, err, "/d has no IDENTITY")
	require.Equal(t, service.ExitUsage, service.ExitCode(err))
	before, err := claim(fsys, "/d", "n1", "c1")
	require.NoError(t, err)
	_, err = Adopt(fsys, "/d", "n 2")
	require.ErrorContains(t, err, "--node-id")
	require.Equal(t, service.ExitUsage, service.ExitCode(err))
	lock, err := fsys.Lock("/d/LOCK")
	require.NoError(t, err)
	_, err = Adopt(fsys, "/d", "")
	require.ErrorContains(t, err, "/d is in use by another process")
	require.Equal(t, service.ExitLocked, service.ExitCode(err))
	require.NoError(t, lock.Close())
	after, err := claim(fsys, "/d", "n1", "c1")
	require.NoError(t, err)
	require.Equal(t, before, after)
	require.NoError(t, vfs.WriteFile(fsys, path.Join("/d", identityFile), []byte("{"), filePerm))
	_, err = Adopt(fsys, "/d", "")
	require.Equal(t, service.ExitCorrupt, service.ExitCode(err))
}
