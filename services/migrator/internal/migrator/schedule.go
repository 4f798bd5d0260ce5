package migrator

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/pairdb/pairdb/libs/sidecar"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	"github.com/pairdb/pairdb/services/migrator/internal/move"
)

// schedule has moves carried out: so many at once, in the order in which they were made. It belongs to
// one goroutine.
type schedule struct {
	m     *Migrator
	o     move.Options
	ended chan string // ids of runners that have ended
	wg    sync.WaitGroup

	all     []*movev1.Move          // as the node last said
	running map[string]*move.Runner // by id
	// over are runners that have ended, and the version that they had seen: older news starts none.
	over map[string]uint64
}

// carryOut does what the node says, until ctx ends; it waits for what it began.
func (m *Migrator) carryOut(ctx context.Context, id identity) error {
	s := &schedule{
		m: m, ended: make(chan string), running: map[string]*move.Runner{}, over: map[string]uint64{},
		o: move.Options{
			Migration: m.migration, Replica: m.replica, Self: id.Identity, Targets: m.o.Targets, Addr: m.members.Addr, Removed: m.members.Removed,
			Compare: comparison(id.NodeID), Limit: m.limit, GCGrace: id.grace, Log: m.o.Log, Metrics: m.o.Metrics.move,
			Tracer: m.o.Tracer, Times: m.o.Times,
		},
	}
	work := make(chan *migrationv1.WorkResponse)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.wg.Go(func() {
		if err := m.watchWork(ctx, work); err != nil {
			cancel(err)
		}
	})
	s.wg.Go(func() { s.forgotten(ctx) })
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case w := <-work:
			s.news(w.GetMoves())
		case id := <-s.ended:
			s.end(id)
		case <-ticker.C: // one may have caught up, and follows
		case <-ctx.Done():
		}
		if ctx.Err() == nil {
			s.start(ctx)
		}
		s.measure()
	}
	go func() {
		s.wg.Wait()
		close(s.ended)
	}()
	for id := range s.ended {
		s.end(id)
	}
	s.all = nil
	s.measure()
	return context.Cause(ctx)
}

// watchWork passes on what the node says there is to do. It ends with ctx, or with an error when this
// migrator may not ask.
func (m *Migrator) watchWork(ctx context.Context, out chan<- *migrationv1.WorkResponse) error {
	pause := minRetry
	for ctx.Err() == nil {
		feed, err := m.migration.Work(ctx, &migrationv1.WorkRequest{}, failFast)
		for err == nil {
			var w *migrationv1.WorkResponse
			if w, err = feed.Recv(); err != nil {
				break
			}
			pause = minRetry
			select {
			case out <- w:
			case <-ctx.Done():
			}
		}
		if ctx.Err() == nil {
			if err := denied(err); isDenied(err) {
				return err
			}
		}
		_ = sidecar.Pause(ctx, pause)
		pause = min(2*pause, maxRetry)
	}
	return nil
}

// news takes the list of all moves that are not over.
func (s *schedule) news(all []*movev1.Move) {
	s.all = all
	listed := make(map[string]bool, len(all))
	for _, m := range all {
		listed[m.GetId()] = true
		if r := s.running[m.GetId()]; r != nil {
			r.See(m)
		}
	}
	for id, r := range s.running {
		if !listed[id] {
			r.Gone()
		}
	}
	for id := range s.over {
		if !listed[id] {
			delete(s.over, id)
		}
	}
}

// end notes that a runner has ended.
func (s *schedule) end(id string) {
	if r := s.running[id]; r != nil {
		s.over[id] = r.Version()
		delete(s.running, id)
	}
}

// start starts what may be under way now and is not.
func (s *schedule) start(ctx context.Context) {
	var waiting []*movev1.Move
	busy := 0
	for _, m := range s.all {
		if r := s.running[m.GetId()]; r != nil {
			if !urgent(m) && !r.Following() {
				busy++
			}
			continue
		}
		if startable(m) && m.GetVersion() > s.over[m.GetId()] {
			waiting = append(waiting, m)
		}
	}
	slices.SortFunc(waiting, func(a, b *movev1.Move) int {
		return cmp.Or(cmp.Compare(a.GetCreatedAtMs(), b.GetCreatedAtMs()), cmp.Compare(a.GetId(), b.GetId()))
	})
	for _, m := range waiting {
		if !urgent(m) {
			if busy >= s.m.o.Moves {
				continue
			}
			busy++
		}
		s.run(ctx, m)
	}
}

func (s *schedule) run(ctx context.Context, m *movev1.Move) {
	r := move.New(s.o, m)
	s.running[m.GetId()] = r
	s.wg.Go(func() {
		r.Run(ctx)
		s.ended <- r.ID()
	})
}

// urgent says that requests wait for a move, or that it is as good as done: it needs no turn.
func urgent(m *movev1.Move) bool {
	return m.GetState() >= movev1.State_STATE_FENCED && m.GetState() <= movev1.State_STATE_COMMITTED
}

// startable says that there is something to do for a move.
func startable(m *movev1.Move) bool { return m.GetState() <= movev1.State_STATE_COMMITTED }

// measure tells what is under way.
func (s *schedule) measure() {
	s.m.o.Metrics.move.Moves(s.all)
	s.m.o.Metrics.running.Set(float64(len(s.running)))
	var most time.Duration
	for _, r := range s.running {
		if lag, ok := r.Lag(); ok {
			most = max(most, lag)
		}
	}
	s.m.o.Metrics.move.Lag(most)
}

const (
	// maxForgotten bounds the targets that are asked at once to forget moves.
	maxForgotten = 100
	// forgottenFor is how long after its end a move that was called off is told to its target: a migrator
	// that is away for longer leaves it to the next preparation of the range.
	forgottenFor = 24 * time.Hour
)

// forgotten has targets forget hand-overs that were called off while no migrator was there to tell them.
func (s *schedule) forgotten(ctx context.Context) {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	a, err := s.m.admin.Moves(call, &adminv1.MovesRequest{IncludeEnded: true})
	if err != nil {
		return // the next session asks again
	}
	n := 0
	for _, m := range a.GetMoves() {
		if m.GetState() != movev1.State_STATE_CANCELLED || !m.GetHandOver() || time.Since(time.UnixMilli(m.GetUpdatedAtMs())) > forgottenFor {
			continue
		}
		if n++; n > maxForgotten {
			return
		}
		s.wg.Go(func() { move.New(s.o, m).Run(ctx) })
	}
}
