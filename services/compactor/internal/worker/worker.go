package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/sidecar"
	"github.com/pairdb/pairdb/libs/tracing"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/wire"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
)

// Formats are the table formats that this binary reads and writes.
var Formats = []uint32{1}

// Times of the conversation with the node.
const (
	// leaseTimeout ends a long poll that hangs; the node answers within 20 s.
	leaseTimeout = 30 * time.Second
	// minRetry to maxRetry is the back-off after a call that failed.
	minRetry = 100 * time.Millisecond
	maxRetry = 2 * time.Second
	// abandonTimeout bounds giving a job back: after it the lease runs out by itself.
	abandonTimeout = 3 * time.Second
)

// failFast makes a call fail at once while the node can't be reached, with the reason (no such
// socket, refused) instead of a deadline; every caller here tries again by itself.
var failFast = grpc.WaitForReady(false)

// Options configure a Worker. All fields are required but Metrics and Tracer.
type Options struct {
	// Client calls the node. Node asks who it is: a quick answer where Lease may wait for 20 s.
	Client compactionv1.CompactionServiceClient
	Node   nodev1.NodeServiceClient
	// FS holds Dir, the node's data directory.
	FS  vfs.FS
	Dir string
	// Name tells workers apart for people.
	Name string
	// Slots is how many jobs run at once.
	Slots int
	Log   *slog.Logger
	// Metrics count; nil: nobody looks.
	Metrics *Metrics
	// Tracer makes a span for each attempt; nil: none.
	Tracer trace.Tracer
}

// Worker does jobs. Run it once.
type Worker struct {
	o     Options
	free  chan struct{} // a token per free slot
	wg    sync.WaitGroup
	state atomic.Pointer[string] // why the node can't be reached; nil: it can
}

// New returns a worker.
func New(o Options) *Worker {
	if o.Metrics == nil {
		o.Metrics = NewMetrics()
	}
	if o.Tracer == nil {
		o.Tracer = noop.NewTracerProvider().Tracer("")
	}
	o.Metrics.slots.Set(float64(o.Slots))
	w := &Worker{o: o, free: make(chan struct{}, o.Slots)}
	for range o.Slots {
		w.free <- struct{}{}
	}
	starting := "the node has not answered yet"
	w.state.Store(&starting)
	return w
}

// Unreachable returns why the node can't be reached, or "".
func (w *Worker) Unreachable() string {
	if why := w.state.Load(); why != nil {
		return *why
	}
	return ""
}

// errShutdown ends attempts because the worker ends.
var errShutdown = errors.New("the worker ends")

// Run works until ctx ends, then gives back what it holds and returns nil. It returns an error only
// if the node says that this worker may not ask.
func (w *Worker) Run(ctx context.Context) error {
	attempts, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer func() {
		stop(errShutdown)
		w.wg.Wait()
	}()
	retry := minRetry
	for {
		n, ok := w.takeSlots(ctx)
		if !ok {
			return nil
		}
		jobs, leased, err := w.lease(ctx, n)
		if ctx.Err() == nil {
			w.o.Metrics.polled(len(jobs), err)
		}
		for range n - len(jobs) {
			w.free <- struct{}{}
		}
		for _, j := range jobs {
			w.wg.Go(func() {
				defer func() { w.free <- struct{}{} }()
				w.do(attempts, j, leased)
			})
		}
		if w.reached(err); err == nil {
			retry = minRetry
			continue
		}
		if code := status.Code(err); code == codes.PermissionDenied || code == codes.Unauthenticated || code == codes.InvalidArgument {
			return fmt.Errorf("lease: %w", err)
		}
		if sidecar.Pause(ctx, retry) != nil {
			return nil
		}
		retry = min(2*retry, maxRetry)
	}
}

// takeSlots waits for a free slot and takes all that are free.
func (w *Worker) takeSlots(ctx context.Context) (int, bool) {
	select {
	case <-w.free:
	case <-ctx.Done():
		return 0, false
	}
	if ctx.Err() != nil {
		w.free <- struct{}{}
		return 0, false
	}
	n := 1
	for {
		select {
		case <-w.free:
			n++
		default:
			return n, true
		}
	}
}

// lease asks for up to n jobs. leased links to what the node did to lease them.
func (w *Worker) lease(ctx context.Context, n int) (jobs []*compactionv1.Job, leased []trace.Link, err error) {
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	if w.Unreachable() != "" {
		if err := w.greet(ctx); err != nil {
			return nil, nil, err
		}
	}
	var header metadata.MD
	r, err := w.o.Client.Lease(ctx, &compactionv1.LeaseRequest{
		Worker: w.o.Name, FreeSlots: int32(n), TotalSlots: int32(w.o.Slots), Formats: Formats,
	}, failFast, grpc.Header(&header))
	if err != nil {
		return nil, nil, err
	}
	if jobs := r.GetJobs(); len(jobs) <= n {
		return jobs, tracing.FromAnswer(header), nil
	}
	return nil, nil, fmt.Errorf("%w: %d jobs for %d slots", wire.ErrInvalid, len(r.GetJobs()), n)
}

// greet asks the node who it is, so that it counts as reached before there is work.
func (w *Worker) greet(ctx context.Context) error {
	id, err := w.o.Node.Identity(ctx, &nodev1.IdentityRequest{}, failFast)
	if status.Code(err) == codes.PermissionDenied {
		return nil // it answers; whether we may lease is the next question
	}
	if err == nil {
		w.o.Log.Info("node found", "node_id", id.GetNodeId(), "version", id.GetVersion(), "session", id.GetSession())
		w.reached(nil)
	}
	return err
}

// reached notes and logs changes of whether the node can be reached.
func (w *Worker) reached(err error) {
	if err == nil {
		if w.state.Swap(nil) != nil {
			w.o.Log.Info("node reached")
		}
		w.o.Metrics.connected.Set(1)
		return
	}
	if status.Code(err) == codes.Canceled {
		return // our own end
	}
	why := err.Error()
	if w.state.Swap(&why) == nil {
		w.o.Log.Warn("node lost", "error", err)
	}
	w.o.Metrics.connected.Set(0)
}

// do runs one job from what came over the wire to its end.
func (w *Worker) do(ctx context.Context, j *compactionv1.Job, leased []trace.Link) {
	grant, err := wire.GrantFromProto(j)
	if err != nil {
		w.o.Log.Error("job refused", "job", j.GetKey().GetId(), "error", err)
		w.abandon(ctx, wire.KeyFromProto(j.GetKey()), compactionv1.AbandonRequest_REASON_UNSUPPORTED_FORMAT, err, nil)
		return
	}
	// A trace of its own: one lease may be of several jobs, and is over long before them.
	ctx, span := w.o.Tracer.Start(ctx, "attempt", trace.WithNewRoot(), trace.WithLinks(leased...), trace.WithAttributes(
		attribute.String("pairdb.job", compact.AttemptName(grant.Key.ID, grant.Key.Epoch)),
		attribute.String("pairdb.job_kind", kindName(grant.Job.Kind)), attribute.Int("pairdb.job_inputs", len(grant.Job.Inputs)),
	))
	defer span.End()
	a := newAttempt(w, grant)
	if id := span.SpanContext().TraceID(); id.IsValid() {
		a.log = a.log.With("trace_id", id.String())
	}
	a.run(ctx)
}

// abandon gives a job back. If that fails, its lease runs out.
func (w *Worker) abandon(ctx context.Context, k wire.Key, reason compactionv1.AbandonRequest_Reason, why error, corrupt []compact.CorruptInput) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTimeout)
	defer cancel()
	w.o.Metrics.abandons.WithLabelValues(abandonNames[reason]).Inc()
	damaged, err := wire.CorruptToProto(corrupt)
	if err == nil {
		_, err = w.o.Client.Abandon(ctx, &compactionv1.AbandonRequest{
			Key: wire.KeyToProto(k), Reason: reason, Detail: wire.Text(why.Error()), Corrupt: damaged,
		}, failFast)
	}
	if err != nil {
		w.o.Log.Warn("job could not be given back; its lease will run out", "job", k.ID, "epoch", k.Epoch, "error", err)
	}
}

func (w *Worker) tablePath(number uint64) string {
	return path.Join(w.o.Dir, compact.TableDir, compact.TableName(number))
}

func (w *Worker) outputPath(k wire.Key, index int) string {
	return path.Join(w.o.Dir, compact.StagingDir, compact.AttemptName(k.ID, k.Epoch), compact.OutputName(index))
}
