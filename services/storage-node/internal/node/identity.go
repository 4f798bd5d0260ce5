package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/vfs"
)

// identityFile says whose data directory it is. Checkpoints do not contain it: a restored one is
// adopted by the node that opens it. Nothing about clocks stands in it: the store's actor is drawn
// anew by every process.
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
}

// identityVersion is the format of the file.
const identityVersion = 1

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
	if err := json.Unmarshal(b, &id); err != nil || id.NodeID == "" || id.ClusterID == "" {
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
// name.
func (id identity) checkOwner(dir, nodeID, clusterID string) error {
	switch {
	case id.ClusterID != clusterID:
		return service.WithExitCode(service.ExitLocked, fmt.Errorf(
			"%s belongs to cluster %q, this is cluster %q: set PAIRDB_CLUSTER_ID=%s, or use another directory", dir, id.ClusterID, clusterID, id.ClusterID))
	case id.NodeID != nodeID:
		return service.WithExitCode(service.ExitLocked, fmt.Errorf(
			"%s belongs to node %q, this is node %q: set PAIRDB_NODE_ID=%s to go on as that node, use another directory, "+
				"or remove %s to adopt the data under the new name", dir, id.NodeID, nodeID, id.NodeID, path.Join(dir, identityFile)))
	}
	return nil
}

// claim records durably whose directory it is, unless it says so already. The caller holds the lock
// of the directory.
func claim(fsys vfs.FS, dir, nodeID, clusterID string) error {
	id, ok, err := readIdentity(fsys, dir)
	if err != nil {
		return err
	}
	if ok {
		return id.checkOwner(dir, nodeID, clusterID)
	}
	return identity{Version: identityVersion, NodeID: nodeID, ClusterID: clusterID}.write(fsys, dir)
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
