package manifest

import (
	"fmt"
	"maps"

	"github.com/pairdb/pairdb/libs/ikey"
)

// state is everything that a manifest says. The tables are kept by number, so that replaying an
// edit costs what the edit touches.
type state struct {
	tables   map[uint64]Added
	logFloor uint64
	nextFile uint64
	lastSeq  ikey.Seq
	nodeMeta map[string]string
}

func newState() *state {
	return &state{tables: make(map[uint64]Added), nextFile: 1, nodeMeta: make(map[string]string)}
}

// change is an edit after it was found to fit a state: what leaves, and what stands where
// afterwards.
type change struct {
	edit *Edit
	gone map[uint64]Added
	puts map[uint64]Added
}

// resolve checks e against the state and copies its tables. It changes nothing.
func (s *state) resolve(e *Edit) (*change, error) {
	c := &change{edit: e, gone: make(map[uint64]Added), puts: make(map[uint64]Added)}
	for _, d := range e.Deleted {
		at, ok := s.tables[d.Num]
		if _, twice := c.gone[d.Num]; !ok || twice || at.Level != d.Level {
			return nil, fmt.Errorf("%w: table %06d to delete is not at level %d", ErrInvalidEdit, d.Num, d.Level)
		}
		c.gone[d.Num] = at
	}
	for _, a := range e.Added {
		if err := c.add(s, a); err != nil {
			return nil, fmt.Errorf("%w: table %06d to add at level %d: %w", ErrInvalidEdit, a.Table.Num, a.Level, err)
		}
	}
	for _, num := range e.Quarantined {
		if err := c.mark(s, num, true); err != nil {
			return nil, err
		}
	}
	for _, num := range e.Released {
		if err := c.mark(s, num, false); err != nil {
			return nil, err
		}
	}
	if len(e.NodeMeta) > 0 {
		if err := checkNodeMeta(mergeMeta(s.nodeMeta, e.NodeMeta)); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalidEdit, err)
		}
	}
	return c, nil
}

func (c *change) add(s *state, a Added) error {
	if a.Level < 0 || a.Level >= NumLevels {
		return fmt.Errorf("there are %d levels", NumLevels)
	}
	if err := a.Table.check(); err != nil {
		return err
	}
	t := *a.Table
	t.file = nil
	if at, ok := s.tables[t.Num]; ok {
		old, moves := c.gone[t.Num]
		if !moves {
			return fmt.Errorf("it is at level %d already", at.Level)
		}
		if old.Table.Size != t.Size || old.Table.Digest != t.Digest {
			return fmt.Errorf("it moves, but size or digest differ")
		}
		t.file = old.Table.file
	}
	if _, twice := c.puts[t.Num]; twice {
		return fmt.Errorf("it is added twice")
	}
	c.puts[t.Num] = Added{Level: a.Level, Table: &t}
	return nil
}

func (c *change) mark(s *state, num uint64, quarantined bool) error {
	at, ok := c.puts[num]
	if !ok {
		at, ok = s.tables[num]
		if _, left := c.gone[num]; !ok || left {
			return fmt.Errorf("%w: table %06d to mark is not there", ErrInvalidEdit, num)
		}
	}
	t := *at.Table
	t.Quarantined = quarantined
	c.puts[num] = Added{Level: at.Level, Table: &t}
	return nil
}

// apply makes the change. Numbers only rise.
func (s *state) apply(c *change) {
	for num := range c.gone {
		delete(s.tables, num)
	}
	for num, a := range c.puts {
		s.tables[num] = a
		s.nextFile = max(s.nextFile, num+1)
		s.lastSeq = max(s.lastSeq, a.Table.MaxSeq)
	}
	s.logFloor = max(s.logFloor, c.edit.LogFloor)
	s.nextFile = max(s.nextFile, c.edit.NextFile)
	s.lastSeq = max(s.lastSeq, c.edit.LastSeq)
	if len(c.edit.NodeMeta) > 0 {
		s.nodeMeta = mergeMeta(s.nodeMeta, c.edit.NodeMeta)
	}
}

func mergeMeta(old, set map[string]string) map[string]string {
	m := maps.Clone(old)
	for k, v := range set {
		if v == "" {
			delete(m, k)
		} else {
			m[k] = v
		}
	}
	return m
}

// levels sorts all tables into their levels.
func (s *state) levels() (levels [NumLevels][]*Table) {
	for _, a := range s.tables {
		levels[a.Level] = append(levels[a.Level], a.Table)
	}
	return levels
}

// next builds the version after the change; only the levels that it touches are made anew.
func (c *change) next(v *Version) (*Version, error) {
	var touched [NumLevels]bool
	for _, a := range c.gone {
		touched[a.Level] = true
	}
	for _, a := range c.puts {
		touched[a.Level] = true
	}
	n := &Version{Levels: v.Levels, bytes: v.bytes}
	for level := range touched {
		if !touched[level] {
			continue
		}
		tables := make([]*Table, 0, len(v.Levels[level])+len(c.puts))
		for _, t := range v.Levels[level] {
			_, gone := c.gone[t.Num]
			_, put := c.puts[t.Num]
			if !gone && !put {
				tables = append(tables, t)
			}
		}
		for _, a := range c.puts {
			if a.Level == level {
				tables = append(tables, a.Table)
			}
		}
		n.Levels[level] = tables
		n.sortLevel(level)
		n.sumLevel(level)
		if err := checkOrder(level, n.Levels[level]); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalidEdit, err)
		}
	}
	return n, nil
}

// snapshot returns edits that make the state from nothing.
func (s *state) snapshot(v *Version) []*Edit {
	last := &Edit{LogFloor: s.logFloor, NextFile: s.nextFile, LastSeq: s.lastSeq, NodeMeta: s.nodeMeta}
	edits, e := []*Edit(nil), &Edit{}
	for level, tables := range v.Levels {
		for _, t := range tables {
			if len(e.Added) == tablesPerSnapshot {
				edits, e = append(edits, e), &Edit{}
			}
			e.Added = append(e.Added, Added{Level: level, Table: t})
		}
	}
	last.Added = e.Added
	return append(edits, last)
}
