package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
)

const (
	// snapshotsDir is below the data directory: a checkpoint links tables, so it must be on the
	// same file system.
	snapshotsDir = "snapshots"
	// snapshotFile describes a snapshot; it is written last.
	snapshotFile = "SNAPSHOT"
	// unfinished begins the names of snapshots that are being made or removed. No valid name does.
	unfinished = "."
	// maxSnapshots bounds what a forgotten script can pile up; each holds tables that compactions
	// would free.
	maxSnapshots = 256
	// maxDepth bounds the walk over a snapshot.
	maxDepth = 4
)

// checkpointer is the part of the engine that snapshots need.
type checkpointer interface {
	// Checkpoint writes a consistent copy into dir, which must not exist, and makes it durable.
	Checkpoint(ctx context.Context, dir string) error
}

// snapshots are the named checkpoints of a node.
type snapshots struct {
	fs     vfs.FS
	dir    string // the data directory
	engine checkpointer
	seq    func() uint64 // newest durable sequence
	now    func() time.Time
	// created is called for each new snapshot; it must return at once. May be nil.
	created func(server.Snapshot)

	mu sync.Mutex // one change at a time
}

// openSnapshots makes the directory and removes what a crash left unfinished.
func openSnapshots(s *snapshots) error {
	root := path.Join(s.dir, snapshotsDir)
	if err := s.fs.MkdirAll(root, 0o770); err != nil {
		return err
	}
	names, err := s.fs.List(root)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, unfinished) {
			if err := s.fs.RemoveAll(path.Join(root, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// path returns the directory of a snapshot, in the making or not.
func (s *snapshots) path(prefix, name string) string {
	return path.Join(s.dir, snapshotsDir, prefix+name)
}

// Create makes a snapshot. It appears under its name when it is whole and durable.
func (s *snapshots) Create(ctx context.Context, name string) (server.Snapshot, error) {
	if err := server.CheckSnapshotName(name); err != nil {
		return server.Snapshot{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all, err := s.names()
	switch {
	case err != nil:
		return server.Snapshot{}, err
	case slices.Contains(all, name):
		return server.Snapshot{}, fmt.Errorf("%w: %q", server.ErrSnapshotExists, name)
	case len(all) >= maxSnapshots:
		return server.Snapshot{}, fmt.Errorf("%w: %d, delete one first", server.ErrTooManySnapshots, len(all))
	}
	// Writes may go on between the sequence and the checkpoint: it holds at least these.
	info := server.Snapshot{Name: name, CreatedAt: s.now().Unix(), Sequence: s.seq(), Path: path.Join(snapshotsDir, name)}
	temporary := s.path(unfinished, name)
	if err := s.make(ctx, temporary, info); err != nil {
		return server.Snapshot{}, errors.Join(fmt.Errorf("snapshot %q: %w", name, err), s.fs.RemoveAll(temporary))
	}
	if err := s.fs.Rename(temporary, s.path("", name)); err != nil {
		return server.Snapshot{}, errors.Join(fmt.Errorf("snapshot %q: %w", name, err), s.fs.RemoveAll(temporary))
	}
	if err := vfs.SyncDir(s.fs, path.Join(s.dir, snapshotsDir)); err != nil {
		return server.Snapshot{}, fmt.Errorf("snapshot %q: %w", name, err)
	}
	info.SizeBytes, err = s.size(s.path("", name), maxDepth)
	if s.created != nil {
		s.created(info)
	}
	return info, err
}

func (s *snapshots) make(ctx context.Context, dir string, info server.Snapshot) error {
	if err := s.engine.Checkpoint(ctx, dir); err != nil {
		return err
	}
	b, err := json.Marshal(info)
	if err != nil {
		return err
	}
	return vfs.WriteFile(s.fs, path.Join(dir, snapshotFile), append(b, '\n'), filePerm)
}

// List returns all snapshots by name.
func (s *snapshots) List() ([]server.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	out := make([]server.Snapshot, 0, len(names))
	for _, name := range names {
		info, err := s.read(name)
		if err != nil {
			return nil, fmt.Errorf("snapshot %q: %w", name, err)
		}
		out = append(out, info)
	}
	return out, nil
}

func (s *snapshots) read(name string) (server.Snapshot, error) {
	info := server.Snapshot{Name: name}
	f, err := s.fs.Open(path.Join(s.path("", name), snapshotFile))
	if err == nil {
		b, readErr := io.ReadAll(io.LimitReader(f, maxIdentityBytes))
		if err := errors.Join(readErr, f.Close()); err != nil {
			return info, err
		}
		if err := json.Unmarshal(b, &info); err != nil {
			return info, fmt.Errorf("%s: %w", snapshotFile, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) { // one that an operator copied here has no description
		return info, err
	}
	info.Name, info.Path = name, path.Join(snapshotsDir, name)
	info.SizeBytes, err = s.size(s.path("", name), maxDepth)
	return info, err
}

// Delete removes a snapshot: it is renamed first, so that a half-removed one is never listed.
func (s *snapshots) Delete(name string) error {
	if err := server.CheckSnapshotName(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	going := s.path(unfinished, name)
	err := s.fs.Rename(s.path("", name), going)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %q", server.ErrNoSnapshot, name)
	}
	if err != nil {
		return err
	}
	if err := vfs.SyncDir(s.fs, path.Join(s.dir, snapshotsDir)); err != nil {
		return err
	}
	return s.fs.RemoveAll(going)
}

// names returns the names of whole snapshots; what else lies in the directory is left alone.
func (s *snapshots) names() ([]string, error) {
	names, err := s.fs.List(path.Join(s.dir, snapshotsDir))
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(names, func(n string) bool { return server.CheckSnapshotName(n) != nil }), nil
}

// size sums the files below a directory. Tables are shared with the live tree: it is what a copy
// would take.
func (s *snapshots) size(dir string, depth int) (int64, error) {
	names, err := s.fs.List(dir)
	if err != nil {
		return 0, err
	}
	var total int64
	for _, name := range names {
		info, err := s.fs.Stat(path.Join(dir, name))
		if err != nil {
			return 0, err
		}
		if !info.IsDir() {
			total += info.Size()
			continue
		}
		if depth > 0 {
			below, err := s.size(path.Join(dir, name), depth-1)
			if err != nil {
				return 0, err
			}
			total += below
		}
	}
	return total, nil
}
