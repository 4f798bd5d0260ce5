package engine

import (
	"errors"
	"fmt"
	"path"
	"slices"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// applyEdit makes a manifest edit durable and publishes the version that it leads to. Under the same
// hold of e.mu it calls before, which changes what belongs to the new state, and after, for what must
// not be seen earlier than the state; both may be nil. An error that leaves open whether the edit is
// durable poisons the engine.
func (e *Engine) applyEdit(edit manifest.Edit, before, after func()) error {
	if !e.opts.NoTableWarming {
		for _, added := range edit.Added {
			e.tables.warm(added.Table.Num)
		}
	}
	e.editMu.Lock()
	defer e.editMu.Unlock()
	if err := e.manifest.Apply(edit); err != nil {
		switch {
		case errors.Is(err, manifest.ErrPoisoned):
			return e.poison(fmt.Errorf("manifest: %w", err))
		case errors.Is(err, vfs.ErrNoSpace):
			e.noteSpace()
		}
		return err
	}
	e.mu.Lock()
	if before != nil {
		before()
	}
	for _, d := range edit.Deleted {
		if !slices.ContainsFunc(edit.Added, func(a manifest.Added) bool { return a.Table.Num == d.Num }) {
			delete(e.mu.kept, d.Num)
		}
	}
	e.installReadStateLocked()
	if after != nil {
		after()
	}
	e.mu.changed.Broadcast()
	e.mu.Unlock()
	e.updatePressure()
	return nil
}

// installer is what the job board sees of the engine.
type installer struct{ *Engine }

var _ jobs.Installer = installer{}

// Check implements jobs.Installer: the inputs must still stand where they stood.
func (i installer) Check(p *jobs.Plan) error { return i.checkPlan(p) }

func (e *Engine) checkPlan(p *jobs.Plan) error {
	if err := e.writable(); err != nil {
		return err
	}
	v := e.manifest.Current()
	defer v.Unref()
	for _, in := range p.Job.Inputs {
		t, level := v.Find(in.Num)
		switch {
		case t == nil || level != in.Level:
			return fmt.Errorf("%w: %s is not at level %d any more", jobs.ErrObsolete, compact.TableName(in.Num), in.Level)
		case t.Quarantined:
			return fmt.Errorf("%w: %s is quarantined", jobs.ErrObsolete, compact.TableName(in.Num))
		}
	}
	return nil
}

// Install implements jobs.Installer. Steps, each durable before the next: the outputs get numbers and
// names in sst/; the directories are synced; one edit puts them in place of the inputs: the commit
// point. A crash before it leaves files that no edit names, which go at the next open.
func (i installer) Install(p *jobs.Plan, outs []compact.Output, files []string, by jobs.Origin) error {
	e := i.Engine
	if err := e.checkPlan(p); err != nil {
		return err
	}
	r := p.Tag.(*running)
	edit := r.plan.Edit()
	tables, err := e.adopt(outs, files, by)
	if err != nil {
		e.removeAll(tables)
		return err
	}
	var bytes uint64
	for _, t := range tables {
		edit.Added = append(edit.Added, manifest.Added{Level: r.plan.OutputLevel, Table: t})
		bytes += t.Size
	}
	note := func() {
		e.noteKeptLocked(r, tables)
		if c := r.cleanup; c != nil {
			for _, t := range tables {
				c.cleaned[t.Num] = true
			}
			c.dropped, c.left = c.dropped+p.Stats.Dropped, c.left+p.Stats.DropLeft
		}
	}
	if err := e.applyEdit(edit, note, nil); err != nil {
		e.discard(err, tables)
		if errors.Is(err, manifest.ErrInvalidEdit) {
			return fmt.Errorf("%w: %w", jobs.ErrObsolete, err)
		}
		return err
	}
	e.stats.installs.Add(1)
	e.stats.dropped.Add(p.Stats.Dropped)
	e.stats.installBytes.Add(bytes)
	e.stats.jobBytesIn.Add(r.plan.Bytes())
	e.emit(Event{Kind: EventInstalled, Tables: len(tables), Bytes: int64(bytes), Reason: by.String() + ": " + r.plan.Reason})
	return nil
}

// adopt moves verified files into sst/ under new numbers. It returns the tables that were moved even
// with an error.
func (e *Engine) adopt(outs []compact.Output, files []string, by jobs.Origin) (tables []*manifest.Table, err error) {
	origin := manifest.OriginExternal
	if by == jobs.Local {
		origin = manifest.OriginLocal
	}
	for i, out := range outs {
		num := e.manifest.NewFile()
		if err := e.fs.Rename(files[i], e.tablePath(num)); err != nil {
			return tables, fmt.Errorf("rename output %d to %s: %w", out.Index, compact.TableName(num), err)
		}
		tables = append(tables, &manifest.Table{Num: num, Meta: out.Meta, Origin: origin})
	}
	if len(tables) == 0 {
		return nil, nil
	}
	if err := vfs.SyncDir(e.fs, e.tableDir()); err != nil {
		return tables, err
	}
	return tables, vfs.SyncDir(e.fs, path.Dir(files[0]))
}

func (e *Engine) removeAll(tables []*manifest.Table) {
	for _, t := range tables {
		e.removeTable(t.Num)
	}
}

// Quarantine implements jobs.Installer.
func (i installer) Quarantine(_ *jobs.Plan, corrupt []compact.CorruptInput) {
	for _, c := range corrupt {
		i.markQuarantined(c.Num, fmt.Errorf("%w: %s: %s", ErrCorrupt, compact.TableName(c.Num), c.Reason))
	}
}

// Release implements jobs.Installer.
func (i installer) Release(p *jobs.Plan, s jobs.State, reason string) {
	var err error
	if s != jobs.StateInstalled {
		err = errors.New(reason)
	}
	i.finish(p.Tag.(*running), s, err)
}
