package ownership

import (
	"context"
	"math"
	"time"

	"github.com/pairdb/pairdb/libs/ring"
)

// dropRetry is after how long a drop that failed is tried again: what stops one, a full disk or a
// snapshot, does not go away within a second.
const dropRetry = 10 * time.Second

// want has the residue of ranges dropped in the background.
func (r *Registry) want(ranges []ring.HashRange) {
	r.mu.Lock()
	if !ring.Covers(r.wanted, ranges) {
		r.wanted = ring.Union(r.wanted, ranges)
	}
	r.mu.Unlock()
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

func (r *Registry) takeWanted() []ring.HashRange {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.wanted
	r.wanted = nil
	return out
}

// Run drops residue that is in the way of ranges that come back, until ctx ends.
func (r *Registry) Run(ctx context.Context) {
	for {
		select {
		case <-r.kick:
		case <-ctx.Done():
			return
		}
		wanted := r.takeWanted()
		if len(wanted) == 0 {
			continue
		}
		err := r.makeWay(ctx, wanted)
		if err == nil || ctx.Err() != nil {
			continue
		}
		r.o.Log.Error("residue could not be dropped", "error", err, "retry", r.o.retry)
		select {
		case <-time.After(r.o.retry):
			r.want(wanted)
		case <-ctx.Done():
			return
		}
	}
}

// makeWay makes ranges free of residue: what is harmless belongs to them again, the rest is dropped.
func (r *Registry) makeWay(ctx context.Context, ranges []ring.HashRange) error {
	return r.drop(ctx, ranges, true, r.o.Cleaner.Drop)
}

// Cleanup calls drop with all residue, one call at a time, and forgets it when drop returns nil. Ranges
// that come back meanwhile are refused until then, and those of a drop that failed until they were
// dropped: whoever has doubts asks the View before.
func (r *Registry) Cleanup(ctx context.Context, drop func(ctx context.Context, residues []Residue) error) error {
	return r.drop(ctx, []ring.HashRange{{}}, false, drop)
}

// drop has the residue in ranges dropped, and forgets it.
func (r *Registry) drop(ctx context.Context, ranges []ring.HashRange, keepHarmless bool, drop func(context.Context, []Residue) error) error {
	if err := r.cleaning.Acquire(ctx, 1); err != nil {
		return err
	}
	defer r.cleaning.Release(1)
	var going []Residue
	err := r.change(ctx, func(next *state) ([]string, error) {
		for _, e := range next.ground.residueIn(ranges) {
			if keepHarmless && e.harmless(r.o.Now(), r.o.Grace, r.o.MaxClockSkew) {
				next.ground.dropResidue(e.Ranges, math.MaxUint64)
				continue
			}
			going = append(going, e.Residue)
			e.dropping = true
			next.ground.addResidue(e)
		}
		return nil, nil
	})
	if err != nil || len(going) == 0 {
		return err
	}
	begin := r.o.Now()
	for _, e := range going {
		if err := r.o.Forget(ctx, e.Ranges); err != nil {
			return err
		}
	}
	if err := drop(ctx, going); err != nil {
		return err
	}
	err = r.change(ctx, func(next *state) ([]string, error) {
		for _, e := range going {
			next.ground.dropResidue(e.Ranges, e.Sequence)
		}
		return nil, nil
	})
	if err == nil {
		r.o.Log.Info("residue dropped", "residues", len(going), "took", r.o.Now().Sub(begin))
	}
	return err
}

// settle makes harmless residue a part of ranges again. What is not harmless is dropped in the background,
// and settle refused until then.
func (r *Registry) settle(next *state, ranges []ring.HashRange) error {
	var old []ring.HashRange
	for _, e := range next.ground.residueIn(ranges) {
		if !e.harmless(r.o.Now(), r.o.Grace, r.o.MaxClockSkew) {
			old = ring.Union(old, e.Ranges)
		}
	}
	if len(old) > 0 {
		r.want(old)
		return errDropping
	}
	next.ground.dropResidue(ranges, math.MaxUint64)
	return nil
}
