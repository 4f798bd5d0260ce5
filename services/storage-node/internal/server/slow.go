package server

import (
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/stages"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// slowPerSecond bounds the lines about slow requests of one listener: a disk that hangs makes all of them
// slow, and the log is on a disk.
const slowPerSecond = 10

// slowLog tells of requests that took too long.
type slowLog struct {
	over       time.Duration // 0: off
	revealKeys bool
	out        *slog.Logger
	limit      *rate.Limiter
	suppressed atomic.Int64
}

func newSlowLog(o Options) slowLog {
	return slowLog{over: o.SlowRequest, revealKeys: o.LogKeys, out: o.Log, limit: rate.NewLimiter(slowPerSecond, slowPerSecond)}
}

// log writes one line about a slow request, or counts it.
func (l *slowLog) log(c *call, method string, s subject, code codes.Code, took time.Duration, t *stages.Trail) {
	if !l.limit.Allow() {
		l.suppressed.Add(1)
		return
	}
	attrs := append([]slog.Attr{slog.String("method", method)}, s.log(l.revealKeys)...)
	attrs = append(attrs, slog.String("code", code.String()), slog.Duration("took", took))
	if passed := passedStages(t); len(passed) > 0 {
		attrs = append(attrs, slog.GroupAttrs("stages", passed...))
	}
	if n := t.Lookups(); n != (stages.Lookups{}) {
		attrs = append(attrs, slog.GroupAttrs("lookups",
			slog.Int64("row_cache", n.Rows), slog.Int64("memtables", n.Memtables), slog.Int64("tables", n.Tables), slog.Int64("tables_skipped", n.Skipped)))
	}
	attrs = append(attrs, c.g.about(c)...)
	if n := l.suppressed.Swap(0); n > 0 {
		attrs = append(attrs, slog.Int64("suppressed", n))
	}
	l.out.LogAttrs(c, slog.LevelWarn, "slow request", attrs...)
}

// passedStages lists how long the stages of a trail took, in their order.
func passedStages(t *stages.Trail) []slog.Attr {
	var out []slog.Attr
	for s := range stages.Count {
		if p := t.Passed(s); p.Times > 0 {
			out = append(out, slog.Duration(s.String(), p.Took))
		}
	}
	return out
}

// log lists what a subject is for the log: the key is told by its hash, unless it may be revealed.
func (s subject) log(revealKeys bool) []slog.Attr {
	if !s.known {
		return nil
	}
	out := []slog.Attr{slog.String("tenant", clipped(s.tenant, store.MaxTenantBytes))}
	switch {
	case s.key == "":
	case revealKeys:
		out = append(out, slog.String("key", clipped(s.key, store.MaxKeyBytes)))
	default:
		out = append(out, slog.String("key_hash", ikey.KeyHash(s.key)))
	}
	return append(out, slog.Int("keys", s.keys), slog.Int("value_bytes", s.bytes))
}
