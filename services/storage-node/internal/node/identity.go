package node

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
)

// identityFile says whose data directory it is. Checkpoints do not contain it: a restored one is
// adopted by the node that opens it, in an incarnation of its own. Nothing about clocks stands in it:
// the store's actor is drawn anew by every process.
const identityFile = "IDENTITY"

// filePerm: the group of the pod may write, as everywhere in the data directory.
const filePerm = 0o660

// maxIdentityBytes bounds what is read of the file.
const maxIdentityBytes = 4 << 10

// identity is the content of the file.
type identity struct {
	Version   int    `json:"version"`
	NodeID    string `json:"node_id"`
	ClusterID string `json:"cluster_id"`
	// Incarnation tells this directory from every other one that had or has the name of the node. Files
	// of older nodes have none.
	Incarnation string `json:"incarnation,omitempty"`
	// State is DRAINED once the node was declared that, else empty: then the file has version 1.
	State string `json:"state,omitempty"`
}

// identityVersion is the newest format of the file. Version 1 has no state: a binary that knows no other
// does not start in the directory of a drained node.
const identityVersion = 2

// stateDrained is the one state that is remembered.
var stateDrained = membership.Drained.String()

// maxIncarnationBytes is what is taken of an incarnation in a file: far more than one has.
const maxIncarnationBytes = 64

// newIncarnation draws 80 random bits as 16 characters: nobody draws them twice.
func newIncarnation() string { return strings.ToLower(rand.Text()[:16]) }

// readIdentity returns the identity of a data directory; ok is false when it has none.
func readIdentity(fsys vfs.FS, dir string) (id identity, ok bool, err error) {
	f, err := fsys.Open(path.Join(dir, identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		return identity{}, false, nil
	}
	if err != nil {
		return identity{}, false, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxIdentityBytes))
	if err = errors.Join(err, f.Close()); err != nil {
		return identity{}, false, err
	}
	if err := json.Unmarshal(b, &id); err != nil || id.NodeID == "" || id.ClusterID == "" || len(id.Incarnation) > maxIncarnationBytes || id.State != "" && id.State != stateDrained && id.Version <= identityVersion {
		return identity{}, false, service.WithExitCode(service.ExitCorrupt, fmt.Errorf(
			"%s is damaged: remove the file if this directory belongs to this node", path.Join(dir, identityFile)))
	}
	if id.Version > identityVersion {
		return identity{}, false, service.WithExitCode(service.ExitCorrupt, fmt.Errorf(
			"%s has version %d, this binary reads up to %d: start a newer one", path.Join(dir, identityFile), id.Version, identityVersion))
	}
	return id, true, nil
}

// checkOwner refuses a directory of another node or cluster: its data would answer under the wrong
// name. It refuses that of a drained node too: its ranges are at their next owners, and a pod that comes
// back to an old volume must not bring back what was deleted since.
func (id identity) checkOwner(dir, nodeID, clusterID string) error {
	switch {
	case id.ClusterID != clusterID:
		return service.WithExitCode(service.ExitLocked, fmt.Errorf(
			"%s belongs to cluster %q, this is cluster %q: set PAIRDB_CLUSTER_ID=%s, or use another directory", dir, id.ClusterID, clusterID, id.ClusterID))
	case id.NodeID != nodeID:
		return service.WithExitCode(service.ExitLocked, fmt.Errorf(
			"%s belongs to node %q, this is node %q: set PAIRDB_NODE_ID=%s to go on as that node, use another directory, "+
				"or adopt the data under the new name: storage-node adopt %s --node-id %s", dir, id.NodeID, nodeID, id.NodeID, dir, nodeID))
	case id.State == stateDrained:
		return service.WithExitCode(service.ExitLocked, fmt.Errorf(
			"%s belongs to node %q, which was drained: its data is at other nodes. To join as a new node, empty the directory; "+
				"to join with what is there, run: storage-node adopt %s", dir, id.NodeID, dir))
	}
	return nil
}

// claim records durably whose directory it is and returns that; what the file says already stays. The
// caller holds the lock of the directory.
func claim(fsys vfs.FS, dir, nodeID, clusterID string) (identity, error) {
	id, ok, err := readIdentity(fsys, dir)
	if err != nil {
		return identity{}, err
	}
	if !ok {
		id = identity{Version: 1, NodeID: nodeID, ClusterID: clusterID}
	}
	if err := id.checkOwner(dir, nodeID, clusterID); err != nil {
		return identity{}, err
	}
	if id.Incarnation != "" {
		return id, nil
	}
	id.Incarnation = newIncarnation()
	return id, id.write(fsys, dir)
}

// write replaces the file atomically and durably.
func (id identity) write(fsys vfs.FS, dir string) error {
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	if err := vfs.WriteFile(fsys, path.Join(dir, identityFile), append(b, '\n'), filePerm); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	return nil
}

// drained returns the identity of the directory once its node is declared drained.
func (id identity) drained() identity {
	id.Version, id.State = identityVersion, stateDrained
	return id
}

// Adopt gives a data directory a new incarnation, so that a node can join with what is in it: the node of
// the same id, or of another one that is not empty. Nothing else in it changes. It is refused while
// a node has the directory open. It returns the id of the node that may start with it.
func Adopt(fsys vfs.FS, dir, nodeID string) (adopted string, err error) {
	unlock, err := engine.LockOffline(fsys, dir)
	if errors.Is(err, vfs.ErrLocked) {
		return "", service.WithExitCode(service.ExitLocked, fmt.Errorf("%s is in use by another process: stop it first", dir))
	}
	if err != nil {
		return "", service.WithExitCode(service.ExitDisk, fmt.Errorf("lock %s: %w", dir, err))
	}
	defer func() { err = errors.Join(err, unlock()) }()
	id, ok, err := readIdentity(fsys, dir)
	switch {
	case err != nil:
		return "", err
	case !ok:
		return "", service.WithExitCode(service.ExitUsage, fmt.Errorf(
			"%s has no %s: it is no data directory, or nobody's, and the node that starts with it adopts it", dir, identityFile))
	}
	if nodeID != "" {
		probe := membership.Declaration{NodeID: nodeID, Version: 1, State: membership.Up, VirtualNodes: 1}
		if err := probe.Validate(); err != nil {
			return "", service.WithExitCode(service.ExitUsage, fmt.Errorf("--node-id: %w", err))
		}
		id.NodeID = nodeID
	}
	id.Version, id.State, id.Incarnation = 1, "", newIncarnation()
	return id.NodeID, id.write(fsys, dir)
}
