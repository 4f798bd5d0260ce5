package plan

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/pairdb/pairdb/libs/sidecar"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// view is what the own node said last. Nobody changes it.
type view struct {
	// heard: both the members and the work were told, and the health-agent was heard by the node.
	heard   bool
	members members
	// degraded are the words of the pod's own verdict.
	degraded []string
	// drain is the one that is not over, or nil; moves are those that are not over.
	drain *movev1.Drain
	moves []*movev1.Move
}

// views follows what the own node says.
type views struct {
	mu      sync.Mutex
	now     view
	members *adminv1.MembersResponse
	work    *migrationv1.WorkResponse
	changed chan struct{}
}

func newViews() *views { return &views{changed: make(chan struct{})} }

// get returns the view, and what is closed when there is a newer one.
func (v *views) get() (view, <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.now, v.changed
}

func (v *views) set(f func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f()
	v.now = view{
		heard:   v.members != nil && v.work != nil && v.members.GetAgeMs() >= 0,
		members: membersOf(v.members), drain: v.work.GetDrain(), moves: v.work.GetMoves(),
	}
	for _, r := range v.members.GetVerdict().GetDegraded() {
		v.now.degraded = append(v.now.degraded, r.GetName())
	}
	close(v.changed)
	v.changed = make(chan struct{})
}

// reconnect is the pause after a stream of the own node broke.
const reconnect = time.Second

// follow keeps a stream of the own node open until ctx ends.
func follow[M any](ctx context.Context, log *slog.Logger, what string, open func(ctx context.Context) (interface{ Recv() (*M, error) }, error), take func(*M)) {
	broken := false
	for ctx.Err() == nil {
		stream, err := open(ctx)
		for err == nil {
			var m *M
			if m, err = stream.Recv(); err == nil {
				if broken {
					broken = false
					log.Info("the node answers again", "what", what)
				}
				take(m)
			}
		}
		if ctx.Err() != nil {
			return
		}
		if !broken && !errors.Is(err, io.EOF) {
			broken = true
			log.Warn("the node does not answer", "what", what, "error", err)
		}
		_ = sidecar.Pause(ctx, reconnect)
	}
}

// run follows the node until ctx ends.
func (v *views) run(ctx context.Context, o *Options) {
	var group sync.WaitGroup
	group.Go(func() {
		follow(ctx, o.Log, "members", func(ctx context.Context) (interface {
			Recv() (*adminv1.WatchMembersResponse, error)
		}, error) {
			return o.Admin.WatchMembers(ctx, &adminv1.WatchMembersRequest{})
		}, func(m *adminv1.WatchMembersResponse) { v.set(func() { v.members = m.GetView() }) })
	})
	group.Go(func() {
		follow(ctx, o.Log, "work", func(ctx context.Context) (interface {
			Recv() (*migrationv1.WorkResponse, error)
		}, error) {
			return o.Migration.Work(ctx, &migrationv1.WorkRequest{})
		}, func(m *migrationv1.WorkResponse) { v.set(func() { v.work = m }) })
	})
	group.Wait()
}
