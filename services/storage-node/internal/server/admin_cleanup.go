package server

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/ring"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
	"github.com/pairdb/pairdb/services/storage-node/internal/ownership"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// snapshotRetry is after how long a cleanup that a snapshot held up may be tried again.
const snapshotRetry = 10 * time.Second

// Cleanup removes what the node holds of ranges that are not its own any more. It refuses while that could
// be the only copy: see unsafeResidue.
func (a adminService) Cleanup(r *adminv1.CleanupRequest, stream grpc.ServerStreamingServer[adminv1.CleanupProgress]) error {
	b, err := a.s.backend()
	if err != nil {
		return err
	}
	if r.GetMaxBytesPerSecond() < 0 {
		return &store.Error{Reason: store.ReasonRange, Message: fmt.Sprintf("%d bytes per second", r.GetMaxBytesPerSecond())}
	}
	if err := b.Ownership.Damage(); err != nil {
		return err
	}
	view := b.Ownership.View()
	last := &adminv1.CleanupProgress{Ranges: hashRangesToProto(view.CleanupNeeded()), Finished: true}
	if err := unsafeResidue(view, b.Moves.List(true), b.isUp, time.Now()); err != nil {
		return err
	}
	if len(last.Ranges) == 0 {
		return stream.Send(last)
	}
	tables, err := b.Engine.Tables()
	if err != nil {
		return err
	}
	total := overlapping(tables, nil, nil)
	if r.GetDryRun() {
		last.TotalBytes = total
		return stream.Send(last)
	}
	var p progress
	var dropped progress // its done is the number of records
	p.set(0, total)
	err = p.report(stream.Context(), func(ctx context.Context) error {
		return b.Ownership.Cleanup(ctx, func(ctx context.Context, residues []ownership.Residue) error {
			// What is to go is what there is now: it may be more than was looked at.
			view := b.Ownership.View()
			view.Residue = residues
			if err := unsafeResidue(view, b.Moves.List(true), b.isUp, time.Now()); err != nil {
				return err
			}
			return b.Engine.Cleanup(ctx, ResidueCuts(residues), r.GetMaxBytesPerSecond(), func(c engine.CleanupProgress) {
				p.set(int64(c.Bytes), max(total, int64(c.Bytes)))
				dropped.set(int64(c.Dropped), 0)
			})
		})
	}, func(done, total int64) error {
		records, _ := dropped.get()
		return stream.Send(&adminv1.CleanupProgress{Ranges: last.Ranges, DoneBytes: done, TotalBytes: total, DroppedRecords: records})
	})
	if err != nil {
		return err
	}
	done, total := p.get()
	last.DroppedRecords, _ = dropped.get()
	last.DoneBytes, last.TotalBytes = max(done, total), max(done, total)
	return stream.Send(last)
}

// ResidueCuts returns what a cleanup drops.
func ResidueCuts(residues []ownership.Residue) (cuts []compact.HashCut) {
	for _, r := range residues {
		for _, x := range r.Ranges {
			cuts = append(cuts, compact.HashCut{Range: x, Seq: ikey.Seq(r.Sequence)})
		}
	}
	return cuts
}

// unsafeResidue refuses a cleanup that could remove the only copy of something. The node's residue may go
// where another node is known to have all of it:
//
//   - what it gave away by a hand-over, which ends with the target having everything up to the fence;
//   - what a move of it was verified to have brought to another node that is up, or a repair to have
//     exchanged with one, since the node lost it.
//
// A range that was lost by declarations alone (a node that joined at once) is in neither case before it
// was replicated or repaired. And as long as a move reads from the residue, nothing goes at all.
func unsafeResidue(v ownership.View, all []*moves.Move, up func(nodeID string) bool, now time.Time) error {
	for _, e := range v.Residue {
		safe := v.Given
		for _, m := range all {
			ranges := m.What.HashRanges
			if len(ranges) == 0 {
				ranges = []ring.HashRange{{}}
			}
			if m.Active() {
				if ring.Overlaps(ranges, e.Ranges) {
					return &store.Error{Reason: store.ReasonCleanupUnsafe, RetryAfter: snapshotRetry,
						Message: fmt.Sprintf("move %s (%s) still reads ranges that are to go", m.ID, m.State)}
				}
				continue
			}
			everything := m.What.Tenant == "" && m.What.Start == "" && m.What.End == "" && len(m.What.Keys) == 0
			since := e.Since.UnixMilli()
			given := m.HandOver && (m.State == moves.Committed || m.State == moves.Released) && m.UpdatedAt >= since
			if verified := m.VerifiedAt > 0 && m.VerifiedAt >= since; everything && up(m.Target.NodeID) && (given || verified) {
				safe = ring.Union(safe, ranges)
			}
		}
		if open := ring.Subtract(e.Ranges, safe); len(open) > 0 {
			return &store.Error{Reason: store.ReasonCleanupUnsafe, Message: fmt.Sprintf(
				"%d ranges, the first from %016x to %016x, were lost %v ago and not brought to another node since: repair them with one that owns them, then clean up",
				len(open), open[0].Start, open[0].End, now.Sub(e.Since).Round(time.Second))}
		}
	}
	return nil
}

// isUp reports whether a member is declared up.
func (b *Backend) isUp(nodeID string) bool {
	m := memberOf(b.Members.View(), nodeID)
	return m != nil && m.Declared.State == membership.Up
}
