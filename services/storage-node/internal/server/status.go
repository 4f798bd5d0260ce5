package server

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/pairdb/pairdb/libs/compact"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/cache"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
)

// Status answers in every phase; what only the engine knows is missing while there is none.
func (a adminService) Status(context.Context, *adminv1.StatusRequest) (*adminv1.StatusResponse, error) {
	state, reason := a.s.node.State()
	resp := &adminv1.StatusResponse{
		NodeId: a.s.node.ID, Version: a.s.node.Version, State: state.String(), Reason: reason,
		UptimeSeconds: int64(time.Since(a.s.node.Started).Seconds()), WritePressure: "none",
	}
	for _, r := range a.s.node.Vitals().Degraded {
		resp.Degraded = append(resp.Degraded, strings.ToValidUTF8(r.String(), "?"))
	}
	resp.Degraded = append(resp.Degraded, a.s.node.Warnings...)
	b := a.s.open.Load()
	if b == nil {
		return resp, nil
	}
	m := b.Engine.Metrics()
	tables, err := b.Engine.Tables()
	if err != nil {
		return resp, nil // closing: the rest is not known any more
	}
	describePressure(resp, state, &m)
	describeTree(resp, &m, tables)
	describeMemory(resp, &m)
	describeBoard(resp, &m, b.LocalMode)
	for _, p := range b.Members.Problems() {
		resp.Degraded = append(resp.Degraded, p.Name+": "+printable(p.Detail))
	}
	return resp, nil
}

func describePressure(resp *adminv1.StatusResponse, state State, m *engine.Metrics) {
	p := m.Pressure
	resp.WritePressure, resp.WritePressureReason = writePressure(p), p.Reason
	if p.Refuse && state == StateServing {
		resp.State, resp.Reason = "read-only", p.Reason
	}
	resp.VisibleSequence = m.VisibleSeq
	resp.Disk = &adminv1.Disk{
		TotalBytes: int64(m.DiskTotalBytes), FreeBytes: int64(m.DiskFreeBytes), ReservedBytes: int64(m.Board.ReservedBytes),
	}
}

// writePressure returns the word for what happens to writes.
func writePressure(p engine.Pressure) string {
	switch {
	case p.Refuse:
		return "refused"
	case p.Delay > 0:
		return "delayed"
	case p.MaxBatchBytes > 0:
		return "throttled" // large ones are refused
	}
	return "none"
}

func describeTree(resp *adminv1.StatusResponse, m *engine.Metrics, tables []engine.TableInfo) {
	entries := make([]int64, len(m.Levels))
	for _, t := range tables {
		entries[t.Level] += int64(t.Entries)
		if t.Quarantined {
			resp.Quarantined = append(resp.Quarantined, &adminv1.QuarantinedTable{Number: t.Num, Reason: t.Name + " is damaged"})
		}
	}
	for level, l := range m.Levels {
		resp.Levels = append(resp.Levels, &adminv1.Level{
			Level: int32(level), Tables: int64(l.Tables), SizeBytes: int64(l.Bytes), TargetBytes: int64(l.TargetBytes),
			Score: l.Score, Entries: entries[level],
		})
	}
}

func describeMemory(resp *adminv1.StatusResponse, m *engine.Metrics) {
	resp.Memtables = &adminv1.Memtables{
		ActiveBytes: m.MemtableBytes, ImmutableCount: int64(m.Immutables), ImmutableBytes: m.ImmutableBytes,
	}
	resp.CommitLog = &adminv1.CommitLog{Segments: int64(m.LogSegments), SizeBytes: int64(m.LogLiveBytes)}
	for _, c := range []struct {
		name string
		m    cache.Metrics
	}{{"row", m.RowCache}, {"block", m.BlockCache}} {
		resp.Caches = append(resp.Caches, &adminv1.Cache{
			Name: c.name, SizeBytes: c.m.Bytes, CapacityBytes: c.m.CapacityBytes, Entries: c.m.Entries,
			Hits: int64(c.m.Hits), Misses: int64(c.m.Misses),
		})
	}
}

func describeBoard(resp *adminv1.StatusResponse, m *engine.Metrics, localMode string) {
	t := m.Board.Totals
	resp.Compaction = &adminv1.CompactionTotals{
		InstalledExternal: int64(t.InstalledExternal), InstalledLocal: int64(t.InstalledLocal), TrivialMoves: int64(m.Moves),
		Rejected: int64(t.Rejected), Expired: int64(t.Expired), Quarantined: int64(t.Quarantined),
		DebtBytes: m.DebtBytes, LocalMode: localMode,
	}
	for _, w := range m.Board.Workers {
		resp.Workers = append(resp.Workers, &adminv1.Worker{
			Id: w.Name, Slots: int32(w.TotalSlots), Leased: int32(w.Leases), LastSeenMsAgo: w.Idle.Milliseconds(),
		})
	}
	for i := range m.Board.Jobs {
		resp.Jobs = append(resp.Jobs, jobToProto(&m.Board.Jobs[i]))
	}
}

func jobToProto(j *jobs.JobStatus) *adminv1.Job {
	kind := "merge"
	if j.Scrub {
		kind = "scrub"
	}
	return &adminv1.Job{
		Id: j.Key.ID, Epoch: j.Key.Epoch, Kind: kind, State: j.State.String(), Worker: j.Worker, Attempts: int32(j.Attempts),
		FromLevel: int32(j.InputLevel), ToLevel: int32(j.OutputLevel), InputBytes: j.InputBytes, DoneBytes: j.DoneBytes,
		InputTables: int32(len(j.Inputs)),
	}
}

// Tables lists the live tables from level 0 down.
func (a adminService) Tables(context.Context, *adminv1.TablesRequest) (*adminv1.TablesResponse, error) {
	b, err := a.s.backend()
	if err != nil {
		return nil, err
	}
	tables, err := b.Engine.Tables()
	if err != nil {
		return nil, err
	}
	resp := &adminv1.TablesResponse{Tables: make([]*adminv1.Table, len(tables))}
	for i, t := range tables {
		resp.Tables[i] = &adminv1.Table{
			Number: t.Num, Level: int32(t.Level), SizeBytes: int64(t.Size), Entries: int64(t.Entries), Tombstones: int64(t.Tombstones),
			Smallest: printable(string(t.Smallest.User)), Largest: printable(string(t.Largest.User)),
			MinSequence: uint64(t.MinSeq), MaxSequence: uint64(t.MaxSeq), Origin: t.Origin.String(), Quarantined: t.Quarantined,
		}
	}
	return resp, nil
}

// printable escapes what a terminal should not get. The separator of tenant and key becomes a slash,
// which no tenant needs.
func printable(s string) string {
	tenant, key, ok := strings.Cut(s, "\x00")
	if ok {
		return printable(tenant) + "/" + printable(key)
	}
	quoted := strconv.Quote(s)
	return quoted[1 : len(quoted)-1]
}

// tableNumber returns the number in the name of a table file, 0 if it is none.
func tableNumber(file string) uint64 {
	name := strings.TrimPrefix(file, compact.TableDir+"/")
	n, err := strconv.ParseUint(strings.TrimSuffix(name, ".sst"), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
