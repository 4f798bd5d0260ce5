package server

import (
	"context"
	"fmt"
	"strings"
	"time"

	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"

	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// answerMargin is how long before its deadline a call that waits answers how far it is: time for the
// answer to get back.
const answerMargin = 200 * time.Millisecond

// ReplicateData copies keys to another member and waits until the target has them and both sides were
// compared. Clocks always travel: a value without one would be another write.
func (g contractService) ReplicateData(ctx context.Context, r *storagenodev1.ReplicateDataRequest) (*storagenodev1.ReplicateDataResponse, error) {
	b, err := g.backend(r)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, what := range contractSelections(r) {
		id, err := g.copy(ctx, b.Moves, r.GetTargetNodeId(), what)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	n, err := g.copied(ctx, b.Moves, ids)
	if err != nil {
		return nil, err
	}
	return &storagenodev1.ReplicateDataResponse{Success: true, KeysReplicated: n}, nil
}

// contractSelections returns what a coordinator wants to have copied: single keys besides a range, and
// the range unless there are keys and no range.
func contractSelections(r *storagenodev1.ReplicateDataRequest) (out []*movev1.Selection) {
	start, end := r.GetKeyRangeStart(), r.GetKeyRangeEnd()
	if len(r.GetKeys()) > 0 {
		out = append(out, &movev1.Selection{Tenant: r.GetTenantId(), Keys: r.GetKeys()})
	}
	if len(out) == 0 || start != "" || end != "" {
		what := &movev1.Selection{Tenant: r.GetTenantId()}
		if start != "" || end != "" {
			what.Range = &datav1.KeyRange{Start: start, End: end}
		}
		out = append(out, what)
	}
	return out
}

// copy makes a move of a selection, or finds the one that is under way: a caller whose deadline has
// passed calls again and waits for the rest.
func (g contractService) copy(ctx context.Context, r *moves.Registry, target string, what *movev1.Selection) (id string, err error) {
	if what.GetTenant() == "" {
		return "", &store.Error{Reason: store.ReasonTenant, Message: "tenant_id is empty"}
	}
	order := contractMoveID("copy", []byte(target), []byte(what.GetTenant()), []byte(what.GetRange().GetStart()),
		[]byte(what.GetRange().GetEnd()), []byte(strings.Join(what.GetKeys(), "\x00")))
	g.s.ordering.Lock()
	defer g.s.ordering.Unlock()
	last, n := latest(r.View().Moves, order)
	if last != nil && last.Active() && last.State != moves.Failed {
		return last.ID, nil
	}
	made, err := adminService{s: g.s}.Replicate(ctx, &adminv1.ReplicateRequest{
		Id: fmt.Sprint(order, n+1), What: what, Targets: []*movev1.Target{{NodeId: target}},
		Mode: movev1.Mode_MODE_ONCE, Purpose: movev1.Purpose_PURPOSE_REPLICATE,
	})
	if err != nil {
		return "", err
	}
	return made.GetMoves()[0].GetId(), nil
}

// copied waits until moves are over and returns how many records their targets have.
func (g contractService) copied(ctx context.Context, r *moves.Registry, ids []string) (n int64, err error) {
	ctx, cancel := g.patience(ctx, 0)
	defer cancel()
	for {
		v := r.View()
		waits := ""
		n = 0
		for _, id := range ids {
			m, err := r.Get(id)
			if err != nil {
				return 0, err
			}
			switch m.State {
			case moves.Released:
				n += m.Progress.CopiedRecords
			case moves.Failed, moves.Cancelled:
				return 0, &store.Error{Reason: store.ReasonMoveState, Message: fmt.Sprintf("%s is %s after %d records: %s", id, m.State, m.Progress.CopiedRecords, m.Reason)}
			default:
				waits = fmt.Sprintf("%s is %s with %d records at the target: it goes on, and the same call waits for it", id, m.State, m.Progress.CopiedRecords)
			}
		}
		if waits == "" {
			return n, nil
		}
		select {
		case <-v.Changed:
		case <-ctx.Done():
			if g.s.leaving.Err() != nil {
				return 0, ErrStopping
			}
			return 0, fmt.Errorf("%w: %s", context.DeadlineExceeded, waits)
		}
	}
}

// patience is how long a call may wait: until shortly before its deadline, at most limit unless that is
// 0, and not while the node shuts down.
func (g contractService) patience(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	until, bounded := ctx.Deadline()
	until = until.Add(-answerMargin)
	if t := time.Now().Add(limit); limit > 0 && (!bounded || t.Before(until)) {
		until, bounded = t, true
	}
	cancelDeadline := context.CancelFunc(func() {})
	if bounded {
		ctx, cancelDeadline = context.WithDeadline(ctx, until)
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(g.s.leaving, cancel)
	return ctx, func() { stop(); cancel(); cancelDeadline() }
}
