package engine

import (
	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// TableInfo describes one table of the current version.
type TableInfo struct {
	Level int
	Num   uint64
	// Name is the file's name in sst/.
	Name string
	sstable.Meta
	Origin      manifest.Origin
	Quarantined bool
	// Open says that the table cache has a reader of it.
	Open bool
}

// Tables returns the tables of the current version, from level 0 (newest first) down, deeper levels
// in key order. It opens none of them.
func (e *Engine) Tables() ([]TableInfo, error) {
	s, err := e.acquireFixed()
	if err != nil {
		return nil, err
	}
	defer s.unref()
	out := make([]TableInfo, 0, s.version.Count())
	for level, tables := range s.levels {
		if level == 0 {
			tables = s.l0
		}
		for _, t := range tables {
			out = append(out, TableInfo{Level: level, Num: t.Num, Name: compact.TableName(t.Num), Meta: t.Meta,
				Origin: t.Origin, Quarantined: t.Quarantined, Open: t.slot.reader.Load() != nil})
		}
	}
	return out, nil
}

// Quarantined returns the tables that were found damaged: reads that need them fail.
func (e *Engine) Quarantined() ([]TableInfo, error) {
	all, err := e.Tables()
	if err != nil {
		return nil, err
	}
	var out []TableInfo
	for _, t := range all {
		if t.Quarantined {
			out = append(out, t)
		}
	}
	return out, nil
}

// LevelInfo sums up one level.
type LevelInfo struct {
	Tables int
	Bytes  uint64
}

// ReadMetrics is the state of the read side.
type ReadMetrics struct {
	Levels [manifest.NumLevels]LevelInfo
	// TableProbes counts tables that point reads searched, FilterSkips those a filter ruled out.
	TableProbes, FilterSkips uint64
	// MergedReads counts point reads that joined fragments, CorruptReads reads that met damage.
	MergedReads, CorruptReads uint64
	// OpenTables is the number of open readers, TableOpens how many were opened since the start.
	OpenTables int64
	TableOpens uint64
	// ReadStates, Iterators and Snapshots pin memtables and files.
	ReadStates, Iterators int64
	Snapshots             int
}

// readMetrics reads the counters; they are not of one instant.
func (r *reads) readMetrics() ReadMetrics {
	m := ReadMetrics{
		TableProbes:  r.counts.tableProbes.Load(),
		FilterSkips:  r.counts.filterSkips.Load(),
		MergedReads:  r.counts.mergedReads.Load(),
		CorruptReads: r.counts.corruptReads.Load(),
		OpenTables:   r.tables.files.Load(),
		TableOpens:   r.tables.opens.Load(),
		ReadStates:   r.states.Load(),
		Iterators:    r.iters.Load(),
		Snapshots:    r.snapshots.count(),
	}
	if s, err := r.acquireFixed(); err == nil {
		for level, tables := range s.version.Levels {
			m.Levels[level] = LevelInfo{Tables: len(tables), Bytes: s.version.Bytes(level)}
		}
		s.unref()
	}
	return m
}
