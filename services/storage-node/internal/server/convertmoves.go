package server

import (
	"fmt"
	"strings"

	"github.com/pairdb/pairdb/libs/ring"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

func badMove(format string, args ...any) error {
	return &store.Error{Reason: store.ReasonMove, Message: fmt.Sprintf(format, args...)}
}

// MoveToProto converts a move. addr is where its target is, for one that was made without an address.
func MoveToProto(m *moves.Move, source, addr string) *movev1.Move {
	if m.Target.Addr != "" {
		addr = m.Target.Addr
	}
	return &movev1.Move{
		Id: m.ID, Version: m.Version, Purpose: movev1.Purpose(m.Purpose), Mode: movev1.Mode(m.Mode), What: selectionToProto(&m.What),
		SourceNodeId: source, Target: &movev1.Target{NodeId: m.Target.NodeID, Addr: addr}, HandOver: m.HandOver,
		MaxBytesPerSecond: m.MaxBytesPerSecond, State: movev1.State(m.State), ResumeState: movev1.State(m.ResumeState), Reason: m.Reason,
		Parent: m.Parent, PinnedSequence: m.PinnedSequence, CopyCursor: m.CopyCursor, TailSequence: m.TailSequence,
		FenceSequence: m.FenceSequence, Epoch: m.Epoch, VerifiedAtMs: m.VerifiedAt, Progress: progressToProto(&m.Progress),
		CreatedAtMs: m.CreatedAt, UpdatedAtMs: m.UpdatedAt, Finishing: m.Finishing, Cancelling: m.Cancelling,
	}
}

// DrainToProto converts a drain; nil for none.
func DrainToProto(d *moves.Drain) *movev1.Drain {
	if d == nil {
		return nil
	}
	return &movev1.Drain{
		Id: d.ID, Version: d.Version, State: movev1.DrainState(d.State), Reason: d.Reason, ForceReason: d.ForceReason,
		MovesDone: int32(d.MovesDone), MovesTotal: int32(d.MovesTotal), CreatedAtMs: d.CreatedAt, UpdatedAtMs: d.UpdatedAt,
	}
}

func selectionToProto(s *moves.Selection) *movev1.Selection {
	out := &movev1.Selection{Tenant: s.Tenant, Keys: s.Keys, HashRanges: hashRangesToProto(s.HashRanges)}
	if s.Start != "" || s.End != "" {
		out.Range = &datav1.KeyRange{Start: s.Start, End: s.End}
	}
	return out
}

func hashRangesToProto(in []ring.HashRange) []*datav1.HashRange {
	if len(in) == 0 {
		return nil
	}
	block := make([]datav1.HashRange, len(in))
	out := make([]*datav1.HashRange, len(in))
	for i, r := range in {
		block[i].Start, block[i].End = r.Start, r.End
		out[i] = &block[i]
	}
	return out
}

// selectionFromProto converts a selection. What is over the limits is refused before anything of its size
// is made; the rest is for the registry to refuse.
func selectionFromProto(p *movev1.Selection) (moves.Selection, error) {
	if n := len(p.GetKeys()); n > moves.MaxKeys {
		return moves.Selection{}, badMove("selection: %d keys, at most %d are allowed", n, moves.MaxKeys)
	}
	if n := len(p.GetHashRanges()); n > moves.MaxHashRanges {
		return moves.Selection{}, badMove("selection: %d hash ranges, at most %d are allowed", n, moves.MaxHashRanges)
	}
	s := moves.Selection{Tenant: p.GetTenant(), Start: p.GetRange().GetStart(), End: p.GetRange().GetEnd()}
	for _, k := range p.GetKeys() {
		s.Keys = append(s.Keys, strings.Clone(k))
	}
	for _, r := range p.GetHashRanges() {
		s.HashRanges = append(s.HashRanges, ring.HashRange{Start: r.GetStart(), End: r.GetEnd()})
	}
	return s, nil
}

func progressToProto(p *moves.Progress) *movev1.Progress {
	return &movev1.Progress{
		CopiedRecords: p.CopiedRecords, CopiedBytes: p.CopiedBytes, TailedRecords: p.TailedRecords, TailedBytes: p.TailedBytes,
		TotalBytes: p.TotalBytes, ResentBytes: p.ResentBytes, BytesPerSecond: p.BytesPerSecond, RemainingSeconds: p.RemainingSeconds,
		LagRecords: p.LagRecords, LagMs: p.LagMS, ComparedKeys: p.ComparedKeys, RepairedKeys: p.RepairedKeys, Resumes: p.Resumes,
	}
}

// progressFromProto returns nil for none.
func progressFromProto(p *movev1.Progress) *moves.Progress {
	if p == nil {
		return nil
	}
	return &moves.Progress{
		CopiedRecords: p.GetCopiedRecords(), CopiedBytes: p.GetCopiedBytes(), TailedRecords: p.GetTailedRecords(), TailedBytes: p.GetTailedBytes(),
		TotalBytes: p.GetTotalBytes(), ResentBytes: p.GetResentBytes(), BytesPerSecond: p.GetBytesPerSecond(), RemainingSeconds: p.GetRemainingSeconds(),
		LagRecords: p.GetLagRecords(), LagMS: p.GetLagMs(), ComparedKeys: p.GetComparedKeys(), RepairedKeys: p.GetRepairedKeys(), Resumes: p.GetResumes(),
	}
}

// small converts an enum of the wire to one of ours, 0 for what can't be one.
func small[T ~uint8](n int32) (T, error) {
	if n < 0 || n > 200 {
		return 0, badMove("the number %d is unknown", n)
	}
	return T(n), nil
}
