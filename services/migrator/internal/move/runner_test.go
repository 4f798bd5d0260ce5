package move

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/sidecar"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

func (w *world) fill(n int) {
	w.t.Helper()
	for i := range n {
		require.NoError(w.t, w.source.write(fmt.Sprintf("key-%03d", i), fmt.Sprint("value ", i)))
	}
}

// writing writes to the source, as clients do, until the returned function is called or the source has
// given the range away. What is refused is not counted: only what was acknowledged must not be lost.
func (w *world) writing() (stop func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			_ = w.source.write(fmt.Sprintf("key-%03d", i%60), fmt.Sprint("again ", i))
			_ = sidecar.Pause(ctx, time.Millisecond)
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

// complete checks that a hand-over is over, and nothing that was acknowledged is lost.
func (w *world) complete() {
	w.t.Helper()
	require.Equal(w.t, movev1.State_STATE_RELEASED, w.source.current().GetState(), "%v", w.source.current())
	require.True(w.t, w.target.isOwner())
	require.Empty(w.t, w.source.lacks(&w.target.records))
	require.ErrorContains(w.t, w.source.write("late", "x"), "given")
}

// A hand-over must end with everything at the target, and the source refusing.
func TestHandOverBringsEverythingAndRedirects(t *testing.T) {
	w := newWorld(t, handOver())
	w.fill(50)
	stop := w.writing()
	w.begin().end(t)
	stop()
	w.complete()
	require.Greater(t, w.source.current().GetEpoch(), uint64(5), "above all that is known")
	require.Positive(t, w.source.current().GetVerifiedAtMs())
}

// Whatever call fails, hangs or is the last one of a migrator, at whatever step: nothing acknowledged is
// lost, Accept comes when all is there, Give after it (the fakes check both), and the move ends.
func TestHandOverSurvivesAFaultAtEachCall(t *testing.T) {
	for _, k := range []kind{lost, answer, hang, die, dying} {
		t.Run(string(k), func(t *testing.T) {
			t.Parallel()
			step := 1
			if testing.Short() {
				step = 7
			}
			for at := 0; ; at += step {
				require.Less(t, at, 1000, "the fault fires for ever")
				if !handOverWithFault(t, k, at) {
					require.Greater(t, at, 20, "the fault has struck nothing")
					return
				}
			}
		})
	}
}

// handOverWithFault reports whether the fault has fired.
func handOverWithFault(t *testing.T, k kind, at int) bool {
	t.Helper()
	fired := false
	t.Run(fmt.Sprint(at), func(t *testing.T) {
		w := newWorld(t, handOver())
		w.fill(20)
		died := make(chan struct{})
		w.fault = &fault{kind: k, at: at, die: func() { close(died) }}
		stop := w.writing()
		defer stop()
		p := w.begin()
		select {
		case <-p.done:
		case <-died:
			p.kill()
			w.fault.revive()
			w.begin().end(t)
		case <-time.After(time.Minute):
			p.kill()
			t.Fatal("the runner does not end: ", w.source.current(), w.fault.where)
		}
		stop()
		w.complete()
		fired = w.fault.hasFired()
		if t.Failed() {
			t.Log("struck: ", w.fault.where)
		}
	})
	return fired && !t.Failed()
}

// copies are moves of every other kind.
func copies(p movev1.Purpose, mode movev1.Mode) *movev1.Move {
	return &movev1.Move{Purpose: p, Mode: mode, What: &movev1.Selection{}}
}

// A copy ends when both sides were compared; the source goes on serving.
func TestCopyEndsVerifiedAndTheSourceServes(t *testing.T) {
	w := newWorld(t, copies(movev1.Purpose_PURPOSE_REPLICATE, movev1.Mode_MODE_ONCE))
	w.fill(50)
	w.source.dropped = map[string]bool{"gone here": true}
	w.target.dropped = map[string]bool{"gone there": true}
	w.begin().end(t)
	m := w.source.current()
	require.Equal(t, movev1.State_STATE_RELEASED, m.GetState(), "%v", m)
	require.Positive(t, m.GetVerifiedAtMs())
	require.Equal(t, int64(50), m.GetProgress().GetCopiedRecords())
	require.Equal(t, m.GetProgress().GetCopiedBytes(), m.GetProgress().GetTotalBytes())
	require.Empty(t, w.source.lacks(&w.target.records))
	require.NoError(t, w.source.write("later", "x"))
	require.False(t, w.target.prepared, "nobody was asked to prepare")
	require.Len(t, w.source.dropped, 2, "what was dropped anywhere is dropped everywhere")
	require.Len(t, w.target.dropped, 2)
}

// A target that follows must get what is written, for as long as it takes, and end only when it is told;
// everything that was written before is there then. Its slot is free for others meanwhile.
func TestFollowGoesOnUntilItIsFinished(t *testing.T) {
	w := newWorld(t, copies(movev1.Purpose_PURPOSE_REPLICATE, movev1.Mode_MODE_FOLLOW))
	w.fill(20)
	p := w.begin()
	require.Eventually(t, p.r.Following, time.Minute, time.Millisecond)
	require.Positive(t, w.source.current().GetVerifiedAtMs())
	require.NoError(t, w.source.write("while it follows", "x"))
	require.Eventually(t, func() bool { return w.target.get("t\x00while it follows") != nil }, time.Minute, time.Millisecond)
	require.Equal(t, movev1.State_STATE_TAILING, w.source.current().GetState())
	lag, ok := p.r.Lag()
	require.True(t, ok)
	require.Less(t, lag, 10*time.Second)
	require.Eventually(t, func() bool { return w.source.current().GetProgress().GetTailedRecords() == 1 }, time.Minute, time.Millisecond)

	p.kill() // and a restart in between
	p = w.begin()
	require.NoError(t, w.source.write("last", "x"))
	w.source.alter(func(m *movev1.Move) { m.Finishing, m.VerifiedAtMs = true, 0 })
	p.end(t)
	require.Equal(t, movev1.State_STATE_RELEASED, w.source.current().GetState())
	require.Positive(t, w.source.current().GetVerifiedAtMs())
	require.Empty(t, w.source.lacks(&w.target.records))
}

// A repair exchanges both ways and copies nothing else.
func TestRepairComparesBothWays(t *testing.T) {
	w := newWorld(t, copies(movev1.Purpose_PURPOSE_REPAIR, movev1.Mode_MODE_ONCE))
	w.fill(20)
	require.NoError(t, w.target.join([]byte("t\x00only there"), w.source.get("t\x00key-001")))
	w.begin().end(t)
	require.Equal(t, movev1.State_STATE_RELEASED, w.source.current().GetState())
	require.Empty(t, w.source.lacks(&w.target.records))
	require.Empty(t, w.target.lacks(&w.source.records))
	require.Zero(t, w.source.current().GetProgress().GetCopiedRecords())
}

// A move may be called off at any moment before the target has accepted: the source serves, the target is
// not prepared any more. Called off too late it goes on: there is no other truth.
func TestCancelInEveryState(t *testing.T) {
	for _, at := range []movev1.State{
		movev1.State_STATE_PLANNED, movev1.State_STATE_PINNED, movev1.State_STATE_COPYING, movev1.State_STATE_TAILING,
		movev1.State_STATE_VERIFYING, movev1.State_STATE_FENCED, movev1.State_STATE_ACCEPTED,
	} {
		t.Run(stateName(at), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, handOver())
			w.fill(20)
			stop := w.writing()
			defer stop()
			// It is cancelled as soon as the node has come to the state, by whoever watches the node.
			go func() {
				for w.source.current().GetState() < at {
					time.Sleep(50 * time.Microsecond)
				}
				w.source.cancel()
			}()
			w.begin().end(t)
			stop()
			w.consistent()
		})
	}
}

// consistent checks that a move is over and that exactly one side serves.
func (w *world) consistent() {
	w.t.Helper()
	switch st := w.source.current().GetState(); st {
	case movev1.State_STATE_RELEASED:
		w.complete()
	case movev1.State_STATE_CANCELLED:
		require.False(w.t, w.target.isOwner())
		require.NoError(w.t, w.source.write("after", "x"))
		w.target.set(func() { require.False(w.t, w.target.prepared, "the target refuses requests for nothing") })
	default:
		w.t.Fatal("not over: ", w.source.current())
	}
}

// Whatever fails while a hand-over is called off inside of its fence, exactly one side serves afterwards.
func TestCancelInTheFenceSurvivesAFaultAtEachCall(t *testing.T) {
	for _, k := range []kind{lost, answer, hang, dying} {
		t.Run(string(k), func(t *testing.T) {
			t.Parallel()
			for at := 20; ; at += 3 {
				fired := false
				t.Run(fmt.Sprint(at), func(t *testing.T) {
					w := newWorld(t, handOver())
					w.fill(10)
					died := make(chan struct{})
					w.fault = &fault{kind: k, at: at, die: func() { close(died) }}
					stop := w.writing()
					defer stop()
					over := make(chan struct{})
					defer func() { <-over }()
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					go func() {
						defer close(over)
						for w.source.current().GetState() < movev1.State_STATE_FENCED && ctx.Err() == nil {
							time.Sleep(50 * time.Microsecond)
						}
						w.source.cancel()
					}()
					p := w.begin()
					select {
					case <-p.done:
					case <-died:
						p.kill()
						w.fault.revive()
						w.begin().end(t)
					}
					stop()
					fired = w.fault.hasFired()
					w.fault.revive()
					if w.source.current().GetState() == movev1.State_STATE_CANCELLED && k == dying {
						w.begin().end(t) // the list of work says nothing any more: a new migrator asks for what was forgotten
					}
					w.consistent()
				})
				if !fired {
					return
				}
				require.Less(t, at, 1000)
			}
		})
	}
}

// What a person must solve is said and tried no more; what was solved goes on where it stood.
func TestWhatAPersonMustSolveFailsWithItsReason(t *testing.T) {
	for _, c := range []struct {
		name, want string
		breaks     func(w *world)
		solved     func(w *world)
	}{
		{"another cluster", "OTHER_CLUSTER", func(w *world) { w.target.cluster = "other" }, func(w *world) { w.target.set(func() { w.target.cluster = "c" }) }},
		{"another node", "answers as node n3, n2 is meant", func(w *world) { w.target.id = "n3" }, func(w *world) { w.target.set(func() { w.target.id = "n2" }) }},
		{"another format", "formats [2]", func(w *world) { w.target.formats = []uint32{2} }, func(w *world) { w.target.set(func() { w.target.formats = []uint32{1, 2} }) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, handOver())
			w.fill(10)
			c.breaks(w)
			w.begin().end(t)
			m := w.source.current()
			require.Equal(t, movev1.State_STATE_FAILED, m.GetState(), "%v", m)
			require.Contains(t, m.GetReason(), c.want)
			c.solved(w)
			w.source.alter(func(m *movev1.Move) { m.State, m.ResumeState = m.GetResumeState(), 0 })
			w.begin().end(t)
			w.complete()
		})
	}
}

// What passes by itself must be waited for, and said, for however long: a full disk is made room on.
func TestATargetThatRefusesIsWaitedFor(t *testing.T) {
	w := newWorld(t, handOver())
	w.fill(10)
	w.target.refusal = "disk full"
	p := w.begin()
	require.Eventually(t, func() bool { return w.source.current().GetReason() != "" }, time.Minute, time.Millisecond)
	require.Contains(t, w.source.current().GetReason(), "disk full")
	require.Equal(t, movev1.State_STATE_PLANNED, w.source.current().GetState())
	w.target.set(func() { w.target.refusal = "" })
	p.end(t)
	w.complete()
	require.Empty(t, w.source.current().GetReason(), "nothing is wrong any more")
}

// A log that is gone leaves a hole in what the target got: the move must begin from a new pin, and what
// changed in the hole must be there.
func TestALostPlaceInTheLogBeginsAnew(t *testing.T) {
	w := newWorld(t, copies(movev1.Purpose_PURPOSE_REPLICATE, movev1.Mode_MODE_FOLLOW))
	w.fill(10)
	p := w.begin()
	require.Eventually(t, p.r.Following, time.Minute, time.Millisecond)
	p.kill()
	require.NoError(t, w.source.write("in the hole", "x"))
	w.source.mu.Lock()
	w.source.broken, w.source.log = true, nil
	w.source.mu.Unlock()
	p = w.begin()
	require.Eventually(t, func() bool { return w.target.get("t\x00in the hole") != nil && p.r.Following() }, time.Minute, time.Millisecond)
	require.Positive(t, w.source.current().GetProgress().GetResentBytes())
	require.Positive(t, testutil.ToFloat64(p.r.o.Metrics.resent))
	w.source.alter(func(m *movev1.Move) { m.Finishing, m.VerifiedAtMs = true, 0 })
	p.end(t)
	require.Empty(t, w.source.lacks(&w.target.records))
}

// A target whose data directory was wiped has nothing of what it acknowledged: it must get all again.
func TestAWipedTargetGetsEverythingAgain(t *testing.T) {
	w := newWorld(t, copies(movev1.Purpose_PURPOSE_REPLICATE, movev1.Mode_MODE_FOLLOW))
	w.fill(30)
	p := w.begin()
	require.Eventually(t, p.r.Following, time.Minute, time.Millisecond)
	w.target.set(func() { w.target.m, w.target.incarnation = nil, "i2" })
	p.kill()
	p = w.begin()
	require.Eventually(t, func() bool { return w.source.lacks(&w.target.records) == "" && p.r.Following() }, time.Minute, time.Millisecond)
	p.kill()
}

// old is a node that knows the established contract only.
type old struct {
	storagenodev1.UnimplementedStorageNodeServiceServer
	mu   sync.Mutex
	keys map[string]string // guarded by mu
}

func (o *old) HealthCheck(context.Context, *storagenodev1.HealthCheckRequest) (*storagenodev1.HealthCheckResponse, error) {
	return &storagenodev1.HealthCheckResponse{Healthy: true, Status: "healthy"}, nil
}

func (o *old) Repair(_ context.Context, r *storagenodev1.RepairRequest) (*storagenodev1.RepairResponse, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.keys[r.GetKey()] = string(r.GetValue())
	return &storagenodev1.RepairResponse{Success: true}, nil
}

func (o *old) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.keys)
}

// A target of the established contract gets everything, and the move says that nobody has compared it; it
// must never pass for verified, nor become an owner.
func TestATargetOfTheEstablishedContractIsSentToAndNotVerified(t *testing.T) {
	for _, m := range []*movev1.Move{
		copies(movev1.Purpose_PURPOSE_REPLICATE, movev1.Mode_MODE_ONCE), copies(movev1.Purpose_PURPOSE_STREAM, movev1.Mode_MODE_FOLLOW),
	} {
		t.Run(m.GetMode().String(), func(t *testing.T) {
			o := &old{keys: map[string]string{}}
			m.Target = &movev1.Target{NodeId: "n2", Addr: serve(t, func(s *grpc.Server) { storagenodev1.RegisterStorageNodeServiceServer(s, o) })}
			w := newWorld(t, m)
			w.fill(30)
			p := w.begin()
			if m.GetMode() == movev1.Mode_MODE_FOLLOW {
				require.Eventually(t, p.r.Following, time.Minute, time.Millisecond)
				require.NoError(t, w.source.write("while it follows", "x"))
				require.Eventually(t, func() bool { return o.count() == 31 }, time.Minute, time.Millisecond)
				require.Contains(t, w.source.current().GetReason(), "not verified: ")
				w.source.alter(func(m *movev1.Move) { m.Finishing = true })
			}
			p.end(t)
			require.GreaterOrEqual(t, o.count(), 30)
			require.Equal(t, movev1.State_STATE_RELEASED, w.source.current().GetState())
			require.Zero(t, w.source.current().GetVerifiedAtMs())
			require.Contains(t, w.source.current().GetReason(), "not verified: ")
		})
	}
	m := handOver()
	m.Target = &movev1.Target{NodeId: "n2", Addr: serve(t, func(s *grpc.Server) { storagenodev1.RegisterStorageNodeServiceServer(s, &old{}) })}
	w := newWorld(t, m)
	w.begin().end(t)
	require.Equal(t, movev1.State_STATE_FAILED, w.source.current().GetState())
	require.Contains(t, w.source.current().GetReason(), "does not know ReplicaService")
}

// Requests must not be refused for long: a hand-over that can't be finished inside of its fence is taken
// back, the source serves, and it is tried again.
func TestAFenceThatTakesTooLongIsLifted(t *testing.T) {
	w := newWorld(t, handOver())
	w.o.Times.Fence = 100 * time.Millisecond
	w.o.Times.Stall = 10 * time.Second
	w.fill(20)
	stop := w.writing()
	defer stop()
	w.stuck()
	p := w.begin()
	// Writes are refused inside of the fence, and taken again.
	require.Eventually(t, func() bool {
		m := w.source.current()
		return m.GetState() == movev1.State_STATE_VERIFYING && strings.Contains(m.GetReason(), "took too long")
	}, time.Minute, time.Millisecond, "%v", w.source.current())
	require.NoError(t, w.source.write("served", "x"))
	w.target.set(func() { w.target.deaf = false })
	p.end(t)
	stop()
	w.complete()
}

// A target that refuses to accept leaves everything as it was.
func TestATargetThatRefusesToAcceptLeavesTheSourceServing(t *testing.T) {
	w := newWorld(t, handOver())
	w.fill(20)
	w.target.refuseAccept = true
	p := w.begin()
	require.Eventually(t, func() bool { return strings.Contains(w.source.current().GetReason(), "has not accepted") }, time.Minute, time.Millisecond)
	require.Eventually(t, func() bool { return w.source.write("served", "x") == nil }, time.Minute, time.Millisecond)
	w.target.set(func() { w.target.refuseAccept = false })
	p.end(t)
	w.complete()
}

// A target that dies for good when it may have accepted must not take the range along: it is served again once the members
// say that it was removed, and not before. It may come back.
func TestATargetThatIsRemovedBeforeItSaysWhatItDidLeavesTheSourceServing(t *testing.T) {
	w := newWorld(t, handOver())
	w.fill(20)
	w.target.dead = true
	var removed atomic.Bool
	w.o.Removed = func(id string) bool { return id == "n2" && removed.Load() }
	p := w.begin()
	require.Eventually(t, func() bool { return strings.Contains(w.source.current().GetReason(), "it is dead") }, time.Minute, time.Millisecond)
	require.Error(t, w.source.write("refused", "x"))
	p.kill()
	require.Equal(t, movev1.State_STATE_FENCED, w.source.current().GetState())
	p = w.begin() // which only knows that there is an epoch
	require.Eventually(t, func() bool { return strings.Contains(w.source.current().GetReason(), "it is dead") }, time.Minute, time.Millisecond)
	require.Equal(t, movev1.State_STATE_FENCED, w.source.current().GetState())
	removed.Store(true)
	require.Eventually(t, func() bool { return w.source.write("served", "x") == nil }, time.Minute, time.Millisecond)
	p.kill()
}

// A migrator that ends while its range is fenced must not leave the requests refused until the next one.
func TestAMigratorThatIsToldToEndLiftsItsFence(t *testing.T) {
	w := newWorld(t, handOver())
	w.o.Times.Stall = 10 * time.Second
	w.fill(20)
	w.stuck()
	p := w.begin()
	require.Eventually(t, func() bool { return w.source.current().GetState() == movev1.State_STATE_FENCED }, time.Minute, time.Millisecond)
	p.kill() // as SIGTERM does: calls still go through
	require.Equal(t, movev1.State_STATE_VERIFYING, w.source.current().GetState())
	require.NoError(t, w.source.write("served", "x"))
}

// What is sent again after a death must stay small, and be counted where it is known.
func TestACopyGoesOnFromItsCursor(t *testing.T) {
	w := newWorld(t, copies(movev1.Purpose_PURPOSE_REPLICATE, movev1.Mode_MODE_ONCE))
	const keys, size = 400, 20 << 10
	value := strings.Repeat("v", size)
	for i := range keys {
		require.NoError(t, w.source.write(fmt.Sprintf("key-%03d", i), value))
	}
	w.source.size = 2
	w.source.mv.MaxBytesPerSecond = 16 << 20
	p := w.begin()
	require.Eventually(t, func() bool { return len(w.source.current().GetCopyCursor()) > 0 }, time.Minute, time.Millisecond)
	p.kill()
	w.target.set(func() { require.Less(t, w.target.ingested, int64(keys*size)) })
	w.begin().end(t)
	require.Equal(t, movev1.State_STATE_RELEASED, w.source.current().GetState())
	w.target.set(func() {
		require.Less(t, w.target.ingested, int64(keys*(size+100))*105/100, "at most a twentieth is sent again")
	})
	require.Positive(t, w.source.current().GetProgress().GetResumes())
}

// The limit of a move must hold for what its target gets.
func TestTheLimitOfAMoveHolds(t *testing.T) {
	w := newWorld(t, copies(movev1.Purpose_PURPOSE_REPLICATE, movev1.Mode_MODE_ONCE))
	const keys, size, limit = 100, 20 << 10, 4 << 20
	value := strings.Repeat("v", size)
	for i := range keys {
		require.NoError(t, w.source.write(fmt.Sprintf("key-%03d", i), value))
	}
	w.source.mv.MaxBytesPerSecond = limit
	began := time.Now()
	p := w.begin()
	w.waitState(movev1.State_STATE_TAILING)
	took := time.Since(began)
	require.Greater(t, took.Seconds(), 0.9*keys*size/limit)
	p.end(t)
	require.Positive(t, w.source.current().GetProgress().GetBytesPerSecond())
}
