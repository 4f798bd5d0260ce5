package cmd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/pairdb/pairdb/libs/vfs"
)

func (a *app) snapshotRestoreCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "restore SNAPSHOT_DIR DATA_DIR",
		Short: "Copy a checkpoint into an empty data directory of a stopped node",
		Long: `restore copies a checkpoint (the directory that 'snapshot create' printed) into DATA_DIR, which
must be empty or missing. Start the storage-node there afterwards: it takes the directory as its own
and writes with a new incarnation, so that its clocks never repeat what the original wrote since.`,
		Args: exactArgs("SNAPSHOT_DIR", "DATA_DIR"),
		RunE: func(_ *cobra.Command, args []string) error {
			n, err := restore(args[0], args[1])
			if err != nil {
				return err
			}
			return a.say(map[string]any{"bytes": n, "data_dir": args[1]}, "restored %s into %s", humanBytes(n), args[1])
		},
	}
}

// restore copies the tree at from into the empty directory to, synced, and removes what it made
// when it fails. The marker of the format comes last: a copy that was cut off is no data directory.
func restore(from, to string) (bytes int64, err error) {
	if _, err := os.Stat(filepath.Join(from, "FORMAT")); err != nil {
		return 0, fmt.Errorf("%w: %s is not a snapshot: %w", errInput, from, err)
	}
	entries, err := os.ReadDir(to)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("%w: %w", errInput, err)
	}
	if len(entries) > 0 {
		return 0, fmt.Errorf("%w: %s is not empty: restore never overwrites data; move it away first", errInput, to)
	}
	if err := os.MkdirAll(to, 0o770); err != nil {
		return 0, fmt.Errorf("make %s: %w", to, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, clearDir(to))
		}
	}()
	err = filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil || rel == "." || rel == "FORMAT" {
			return err
		}
		target := filepath.Join(to, rel)
		if d.IsDir() {
			return os.MkdirAll(target, 0o770)
		}
		if !d.Type().IsRegular() {
			return fmt.Errorf("%s is not a regular file", path)
		}
		n, err := vfs.CopyFile(vfs.OS, path, target)
		bytes += n
		return err
	})
	if err != nil {
		return bytes, fmt.Errorf("restore: %w", err)
	}
	if err := syncTree(to); err != nil {
		return bytes, fmt.Errorf("restore: %w", err)
	}
	n, err := vfs.CopyFile(vfs.OS, filepath.Join(from, "FORMAT"), filepath.Join(to, "FORMAT"))
	if err != nil {
		return bytes, fmt.Errorf("restore: %w", err)
	}
	return bytes + n, vfs.SyncDir(vfs.OS, to)
}

func clearDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func syncTree(root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return vfs.SyncDir(vfs.OS, path)
	})
}
