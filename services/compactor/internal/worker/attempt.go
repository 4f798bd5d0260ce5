package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/sidecar"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/wire"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
)

// burstBytes is what an attempt may read or write at once under a rate: a few blocks.
const burstBytes = 1 << 20

var (
	// errStopped ends an attempt because the node said so.
	errStopped = errors.New("stopped by the node")
	// errLost ends an attempt because the node was silent for a lease.
	errLost = errors.New("the node is silent for a lease")
	// errPanic ends an attempt whose merge panicked; the others go on.
	errPanic = errors.New("merge panicked")
)

// attempt is one leased job.
type attempt struct {
	w       *Worker
	g       wire.Grant
	log     *slog.Logger
	limit   *rate.Limiter
	done    atomic.Int64
	files   files
	started time.Time
}

func newAttempt(w *Worker, g wire.Grant) *attempt {
	a := &attempt{
		w: w, g: g, started: time.Now(), limit: rate.NewLimiter(rate.Inf, burstBytes),
		log: w.o.Log.With("job", g.Key.ID, "epoch", g.Key.Epoch, "kind", kindName(g.Job.Kind)),
	}
	a.setRate(g.Job.MaxBytesPerSecond)
	return a
}

func kindName(k compact.Kind) string {
	if k == compact.Scrub {
		return "scrub"
	}
	return "merge"
}

func (a *attempt) setRate(bytesPerSecond int64) {
	if bytesPerSecond <= 0 {
		a.limit.SetLimit(rate.Inf)
		return
	}
	a.limit.SetLimit(rate.Limit(bytesPerSecond))
}

// run does the attempt and reports. It returns when all its files are closed and its heartbeats
// have ended.
func (a *attempt) run(ctx context.Context) {
	m := a.w.o.Metrics
	m.running.Inc()
	defer m.running.Dec()
	a.log.Debug("job started", "inputs", len(a.g.Job.Inputs), "output_level", a.g.Job.OutputLevel)

	ctx, stop := context.WithCancelCause(ctx)
	var beats sync.WaitGroup
	beats.Go(func() { a.heartbeats(ctx, stop) })
	report, corrupt, err := a.traced(ctx)
	result := ""
	if err == nil {
		result, err = a.complete(ctx, report)
	}
	if err != nil {
		result = a.giveUp(ctx, err, corrupt)
	}
	a.ended(ctx, result, report.GetStats())
	stop(nil)
	beats.Wait()
	m.count(a, report.GetStats(), result)
	a.log.Info("job ended", "result", result, "took", time.Since(a.started),
		"bytes_read", report.GetStats().GetBytesRead(), "bytes_written", report.GetStats().GetBytesWritten())
}

// traced is merge with a span.
func (a *attempt) traced(ctx context.Context) (report *compactionv1.CompleteRequest, corrupt []compact.CorruptInput, err error) {
	ctx, span := a.w.o.Tracer.Start(ctx, kindName(a.g.Job.Kind))
	defer span.End()
	report, corrupt, err = a.merge(ctx)
	if err != nil {
		span.SetStatus(otelcodes.Error, err.Error())
	}
	return report, corrupt, err
}

// ended says in the span of the attempt how it ended.
func (a *attempt) ended(ctx context.Context, result string, s *compactionv1.JobStats) {
	span := trace.SpanFromContext(ctx)
	span.SetAttributes(attribute.String("pairdb.job_result", result),
		attribute.Int64("pairdb.bytes_read", int64(s.GetBytesRead())), attribute.Int64("pairdb.bytes_written", int64(s.GetBytesWritten())))
	if result != "installed" {
		span.SetStatus(otelcodes.Error, result)
	}
}

// merge runs the job. All files are closed when it returns: an output that is open is refused.
func (a *attempt) merge(ctx context.Context) (report *compactionv1.CompleteRequest, corrupt []compact.CorruptInput, err error) {
	defer func() {
		if p := recover(); p != nil {
			a.log.Error("merge panicked", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("%w: %v", errPanic, p)
		}
		err = errors.Join(err, a.files.close())
	}()
	outs, stats, corrupt, err := compact.Run(ctx, a.g.Job, compact.Env{
		OpenInput: func(in compact.Input) (vfs.File, error) {
			f, err := a.w.o.FS.Open(a.w.tablePath(in.Num))
			return a.files.add(f, err, true)
		},
		OpenOutput: func(index int) (vfs.File, error) {
			f, err := a.w.o.FS.OpenReadWrite(a.w.outputPath(a.g.Key, index))
			return a.files.add(f, err, false)
		},
		Progress: func(done int64) { a.done.Store(done) },
		Throttle: a.throttle,
	})
	if err != nil {
		return nil, corrupt, err
	}
	report = &compactionv1.CompleteRequest{Key: wire.KeyToProto(a.g.Key), Stats: wire.StatsToProto(stats)}
	if report.Outputs, err = wire.OutputsToProto(outs); err != nil {
		return nil, nil, err
	}
	report.Corrupt, err = wire.CorruptToProto(corrupt)
	return report, nil, err
}

// throttle takes n bytes out of the rate, about half a second's worth at a time, so that a change
// of the rate is felt soon.
func (a *attempt) throttle(ctx context.Context, n int) error {
	for n > 0 {
		part := min(n, burstBytes)
		if limit := a.limit.Limit(); limit < 2*burstBytes {
			part = min(part, max(int(limit)/2, 512))
		}
		if err := a.wait(ctx, part); err != nil {
			return err
		}
		n -= part
	}
	return ctx.Err()
}

// wait takes n bytes out of the rate; without one it costs nothing.
func (a *attempt) wait(ctx context.Context, n int) error {
	if a.limit.Limit() == rate.Inf {
		return nil
	}
	began := time.Now()
	err := a.limit.WaitN(ctx, n)
	a.w.o.Metrics.throttled.Add(time.Since(began).Seconds())
	return err
}

// heartbeats keeps the lease until ctx ends; it stops the attempt when the node says so, or when
// the node has been silent for a lease.
func (a *attempt) heartbeats(ctx context.Context, stop context.CancelCauseFunc) {
	timer := time.NewTimer(a.g.Heartbeat)
	defer timer.Stop()
	last := time.Now()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		r, err := a.heartbeat(ctx)
		if ctx.Err() != nil {
			return
		}
		a.w.o.Metrics.beat(r, err)
		a.w.reached(err)
		timer.Reset(a.g.Heartbeat)
		switch {
		case err != nil && time.Since(last) >= a.g.Lease:
			stop(errLost)
			return
		case err != nil: // sooner than usual: a restarted node says at once that the lease is void
			timer.Reset(min(a.g.Heartbeat, maxRetry))
		case r.GetVerdict() == compactionv1.HeartbeatResponse_VERDICT_CONTINUE:
			last = time.Now()
			a.setRate(r.GetMaxBytesPerSecond())
		default:
			stop(fmt.Errorf("%w: %s", errStopped, r.GetReason()))
			return
		}
	}
}

func (a *attempt) heartbeat(ctx context.Context) (*compactionv1.HeartbeatResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, a.g.Heartbeat)
	defer cancel()
	return a.w.o.Client.Heartbeat(ctx, &compactionv1.HeartbeatRequest{
		Key: wire.KeyToProto(a.g.Key), DoneBytes: a.done.Load(),
	}, failFast)
}

var verdictNames = map[compactionv1.CompleteResponse_Verdict]string{
	compactionv1.CompleteResponse_VERDICT_INSTALLED:         "installed",
	compactionv1.CompleteResponse_VERDICT_ALREADY_INSTALLED: "installed",
	compactionv1.CompleteResponse_VERDICT_REJECTED:          "rejected",
	compactionv1.CompleteResponse_VERDICT_FENCED:            "fenced",
}

// complete reports until there is a verdict or the attempt is stopped. A report may be repeated: a
// node that has it already says so, a restarted one says that the key is fenced.
func (a *attempt) complete(ctx context.Context, report *compactionv1.CompleteRequest) (string, error) {
	retry := minRetry
	for {
		r, err := a.w.o.Client.Complete(ctx, report, failFast)
		if err == nil {
			name, ok := verdictNames[r.GetVerdict()]
			if !ok {
				name = "unknown"
			}
			if r.GetReason() != "" {
				a.log.Warn("report not taken", "verdict", name, "reason", r.GetReason())
			}
			return name, nil
		}
		switch status.Code(err) {
		case codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
			return "", fmt.Errorf("complete: %w", err)
		}
		if sidecar.Pause(ctx, retry) != nil {
			return "", context.Cause(ctx)
		}
		retry = min(2*retry, maxRetry)
	}
}

// giveUp ends an attempt that failed, says so to the node if it wants to hear it, and returns the
// word for metrics.
func (a *attempt) giveUp(ctx context.Context, err error, corrupt []compact.CorruptInput) string {
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, errStopped), errors.Is(cause, errLost):
		a.log.Warn("job dropped", "reason", cause)
		return "stopped"
	case errors.Is(cause, errShutdown):
		a.w.abandon(ctx, a.g.Key, compactionv1.AbandonRequest_REASON_SHUTDOWN, errShutdown, nil)
		return "shutdown"
	}
	reason := compactionv1.AbandonRequest_REASON_IO_ERROR
	switch {
	case errors.Is(err, vfs.ErrNoSpace):
		reason = compactionv1.AbandonRequest_REASON_NO_SPACE
	case errors.Is(err, sstable.ErrNewerFormat):
		reason = compactionv1.AbandonRequest_REASON_UNSUPPORTED_FORMAT
	case len(corrupt) > 0:
		reason = compactionv1.AbandonRequest_REASON_CORRUPT_INPUT
	}
	a.log.Error("job failed", "error", err)
	a.w.abandon(ctx, a.g.Key, reason, err, corrupt)
	return "failed"
}
