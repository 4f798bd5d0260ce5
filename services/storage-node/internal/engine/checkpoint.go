package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// Checkpoint makes dir a data directory with everything that was applied before the call, and
// perhaps some of what was applied during it: tables are hard links, so dir lies in the same file
// system and must not exist; log segments are copies, because ours are written again. It becomes
// visible under its name when it is complete and durable.
func (e *Engine) Checkpoint(ctx context.Context, dir string) (err error) {
	if _, err := e.fs.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fmt.Errorf("checkpoint %s: %w", dir, fs.ErrExist), err)
	}
	cut, err := e.cut()
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	defer cut.release()
	tmp := dir + ".tmp"
	if err := e.fs.RemoveAll(tmp); err != nil { // of an earlier attempt
		return fmt.Errorf("checkpoint: %w", err)
	}
	if err := cut.write(ctx, tmp); err != nil {
		return errors.Join(fmt.Errorf("checkpoint: %w", err), e.fs.RemoveAll(tmp))
	}
	if err := e.fs.Rename(tmp, dir); err != nil {
		return errors.Join(fmt.Errorf("checkpoint: %w", err), e.fs.RemoveAll(tmp))
	}
	return vfs.SyncDir(e.fs, path.Dir(dir))
}

// cut is one state of the engine: a version, and the log that is needed with it.
type cut struct {
	e        *Engine
	version  *manifest.Version
	floor    uint64
	meta     map[string]string
	seq      ikey.Seq
	segments []commitlog.Segment
	unpin    func()
}

// cut takes the state between two groups and two edits, and makes it durable.
func (e *Engine) cut() (*cut, error) {
	c := &cut{e: e, unpin: func() {}}
	err := e.runAlone(func() error {
		if err := e.writable(); err != nil {
			return err
		}
		if err := e.syncWritten(); err != nil {
			return err
		}
		e.editMu.Lock()
		defer e.editMu.Unlock()
		c.floor, c.meta, c.seq = e.manifest.LogFloor(), e.manifest.NodeMeta(), ikey.Seq(e.applied.Load())
		for _, s := range e.log.Segments() {
			if s.Number >= c.floor {
				c.segments = append(c.segments, s)
			}
		}
		if len(c.segments) > 0 {
			unpin, err := e.log.Pin(c.segments[0].Number)
			if err != nil {
				return err
			}
			c.unpin = unpin
		}
		c.version = e.manifest.Current()
		return nil
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (c *cut) release() {
	c.version.Unref()
	c.unpin()
}

// write makes the directory. Steps: tables, log, manifest; FORMAT last, which says that it is whole.
func (c *cut) write(ctx context.Context, dir string) error {
	fsys := c.e.fs
	if err := fsys.MkdirAll(dir, dirPerm); err != nil {
		return err
	}
	if err := makeDirs(fsys, dir); err != nil {
		return err
	}
	edit := manifest.Edit{LogFloor: c.floor, NodeMeta: map[string]string{}}
	for key, value := range c.meta {
		if !strings.HasPrefix(key, metaPin) && !strings.HasPrefix(key, metaIngestAt) {
			edit.NodeMeta[key] = value
		}
	}
	// Nobody follows a checkpoint from before it was made; tables for that are not kept.
	edit.NodeMeta[metaFeedFrom] = strconv.FormatUint(uint64(c.seq)+1, 10)
	for level, tables := range c.version.Levels {
		for _, t := range tables {
			if err := ctx.Err(); err != nil {
				return err
			}
			name := path.Join(dir, compact.TableDir, compact.TableName(t.Num))
			if err := fsys.Link(c.e.tablePath(t.Num), name); err != nil && !(t.Quarantined && errors.Is(err, fs.ErrNotExist)) {
				return fmt.Errorf("link %s: %w", compact.TableName(t.Num), err)
			}
			edit.Added = append(edit.Added, manifest.Added{Level: level, Table: t})
		}
	}
	if err := c.copyLog(ctx, path.Join(dir, logDir)); err != nil {
		return err
	}
	for _, name := range []string{compact.TableDir, logDir} {
		if err := vfs.SyncDir(fsys, path.Join(dir, name)); err != nil {
			return err
		}
	}
	if err := c.writeManifest(path.Join(dir, manifestDir), edit); err != nil {
		return err
	}
	return writeFormat(fsys, dir)
}

// maxTablesPerEdit keeps edits far below the limit of a manifest frame.
const maxTablesPerEdit = 1000

// writeManifest makes the edit in a new manifest, in parts. Only whole levels' order matters, and any
// part of a level is in order.
func (c *cut) writeManifest(dir string, edit manifest.Edit) error {
	set, err := manifest.Create(c.e.fs, dir, manifest.Options{})
	if err != nil {
		return err
	}
	for err == nil && len(edit.Added) > maxTablesPerEdit {
		err = set.Apply(manifest.Edit{Added: edit.Added[:maxTablesPerEdit]})
		edit.Added = edit.Added[maxTablesPerEdit:]
	}
	if err == nil {
		err = set.Apply(edit)
	}
	return errors.Join(err, set.Close())
}

// copyLog copies the segments up to where they ended at the cut.
func (c *cut) copyLog(ctx context.Context, dir string) error {
	for _, s := range c.segments {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := commitlog.FileName(s.Number)
		if err := vfs.CopyPart(c.e.fs, path.Join(c.e.dir, logDir, name), path.Join(dir, name), s.Bytes); err != nil {
			return fmt.Errorf("copy %s: %w", name, err)
		}
	}
	return nil
}
