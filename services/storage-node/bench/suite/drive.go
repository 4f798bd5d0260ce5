package suite

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pairdb/pairdb/services/storage-node/bench/measure"
)

// errDone ends a client that has done its part.
var errDone = errors.New("done")

// operation does one unit of the workload. errDone ends its client without counting; another error
// ends the row.
type operation func() error

// driven is what the clients of a row have done.
type driven struct {
	start   time.Time
	elapsed time.Duration
	ops     uint64
	latency *measure.Latency
	used    measure.Resources
}

// drive runs the operation of each client in a goroutine of its own until the time is over or it is
// done. One reading of the clock lies between two operations: it ends one and begins the next, so
// what the loop itself does, some 20 ns, is in the figures of all engines alike.
func drive(limit time.Duration, clients []operation) (driven, error) {
	latencies := make([]*measure.Latency, len(clients))
	for i := range latencies {
		latencies[i] = measure.NewLatency()
	}
	ops := make([]uint64, len(clients))
	errs := make([]error, len(clients))
	var stop atomic.Bool
	var wg sync.WaitGroup
	before := measure.Used()
	start := time.Now()
	for i, op := range clients {
		wg.Go(func() {
			latency, n := latencies[i], uint64(0)
			last := time.Since(start)
			for {
				if err := op(); err != nil {
					if !errors.Is(err, errDone) {
						errs[i] = err
						stop.Store(true)
					}
					break
				}
				now := time.Since(start)
				latency.Record(now - last)
				last = now
				n++
				if now >= limit || stop.Load() {
					break
				}
			}
			ops[i] = n
		})
	}
	wg.Wait()
	d := driven{start: start, elapsed: time.Since(start), latency: latencies[0]}
	d.used = measure.Used().Since(before)
	for i := range clients {
		d.ops += ops[i]
		if i > 0 {
			d.latency.Merge(latencies[i])
		}
	}
	return d, errors.Join(errs...)
}

// measurement returns the figures of d.
func (s *session) measurement(name string, d driven, userBytes uint64) Measurement {
	m := Measurement{
		Name: name, Ops: d.ops, Seconds: d.elapsed.Seconds(),
		P50: micros(d.latency.Quantile(50)), P99: micros(d.latency.Quantile(99)),
		P999: micros(d.latency.Quantile(99.9)), Max: micros(d.latency.Max()),
	}
	m.cost(d.used, s.inGo(), userBytes)
	return m
}
