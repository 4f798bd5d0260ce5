package suite

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/pairdb/pairdb/services/storage-node/bench/measure"
)

// Config says what to run.
type Config struct {
	Size    Size
	Rows    []Row
	Engines []string
	// Dir holds the data of all engines; it is made, and removed at the end.
	Dir string
	// Profiles is a directory for profiles of the processor, one per row, engine and round; "" is none.
	Profiles string
	// Progress gets lines for people.
	Progress io.Writer
}

// Result is what a run has found.
type Result struct {
	Size    Size
	Engines []string
	Started time.Time
	// Limits are the machine's own, measured in the same run.
	Limits []measure.Limit
	Took   time.Duration
	// Cells are all measurements that count, in the order of their making.
	Cells []Cell
	// Calibration is the median time of the calibration loop; Disturbed counts the measurements that
	// were thrown away because the loop beside them was off, Kept those that stayed although it was,
	// after the last repetition.
	Calibration     time.Duration
	Disturbed, Kept int
}

// Cell is one measurement with its place.
type Cell struct {
	Engine string
	Round  int
	Measurement
	// Calibration is the loop's time beside it, relative to the median of the run.
	Calibration float64
}

// disturbedBy is how far the calibration loop may be off its median. On a quiet machine it varies by some
// percent; a neighbour on the same core makes it twice as long.
const disturbedBy = 0.15

// runner is a run under way.
type runner struct {
	Config
	ctx       context.Context // the run's: a runner lives no longer than Run
	result    Result
	children  map[string]*process
	loop      *measure.Calibration
	loops     []time.Duration
	done, all int
	killed    int
}

// Run runs all rows with all engines: row by row, each row once per round, the engines in turn, in
// opposite order in the next round.
func Run(ctx context.Context, c Config) (Result, error) {
	r := &runner{ctx: ctx, Config: c, children: map[string]*process{}, loop: measure.NewCalibration()}
	r.result = Result{Size: c.Size, Engines: c.Engines, Started: time.Now()}
	r.all = len(c.Rows) * len(c.Engines) * c.Size.Rounds
	for range 5 {
		r.loops = append(r.loops, r.loop.Run())
	}
	var err error
	if r.result.Limits, err = measure.Limits(c.Dir, c.Size.Row/8, c.Size.data(large).Value(nil, 1, 0)); err == nil {
		err = r.rows()
	}
	for _, p := range r.children {
		if cerr := p.close(); err == nil {
			err = cerr // otherwise it is a consequence
		}
	}
	err = errors.Join(err, os.RemoveAll(c.Dir))
	r.result.Took = time.Since(r.result.Started)
	r.result.Calibration = r.median()
	return r.result, err
}

func (r *runner) rows() error {
	for _, row := range r.Rows {
		for round := range r.Size.Rounds {
			order := slices.Clone(r.Engines)
			if round%2 == 1 {
				slices.Reverse(order)
			}
			for _, engine := range order {
				if err := r.cell(row, engine, round); err != nil {
					return cmp.Or(r.ctx.Err(), err)
				}
			}
		}
	}
	return nil
}

// cell measures one engine in one row, again if it was disturbed.
func (r *runner) cell(row Row, engine string, round int) error {
	for attempt := 0; ; attempt++ {
		r.report(row, engine, round)
		before := r.loop.Run()
		measurements, err := r.measure(row, engine, round)
		if err != nil {
			return err
		}
		after := r.loop.Run()
		r.loops = append(r.loops, before, after)
		off := float64(before+after) / 2 / float64(r.median())
		if math.Abs(off-1) > disturbedBy {
			if attempt < r.Size.Repetitions {
				r.result.Disturbed++
				continue
			}
			r.result.Kept++
		}
		for _, m := range measurements {
			r.result.Cells = append(r.result.Cells, Cell{Engine: engine, Round: round, Measurement: m, Calibration: off})
		}
		r.done++
		return nil
	}
}

func (r *runner) median() time.Duration {
	sorted := slices.Sorted(slices.Values(r.loops))
	return sorted[len(sorted)/2]
}

func (r *runner) measure(row Row, engine string, round int) ([]Measurement, error) {
	dir := filepath.Join(r.Dir, engine)
	p := r.children[engine]
	if p == nil {
		var err error
		if p, err = startProcess(r.ctx, engine, dir, r.Size); err != nil {
			return nil, err
		}
		r.children[engine] = p
	}
	q := request{Row: row.Name}
	if r.Profiles != "" {
		q.Profile = filepath.Join(r.Profiles, fmt.Sprintf("%s.%s.%d.pprof", row.Name, engine, round+1))
	}
	if row.killed {
		r.killed++
		q.Killed = filepath.Join(dir, fmt.Sprintf("killed-%d", r.killed))
		if err := os.MkdirAll(dir, 0o770); err != nil {
			return nil, err
		}
		if err := killFilled(r.ctx, engine, q.Killed, r.Size); err != nil {
			return nil, fmt.Errorf("%s, %s: fill and kill: %w", row.Name, engine, err)
		}
		defer os.RemoveAll(q.Killed)
	}
	return p.run(q)
}

// report says on the progress line what runs and how long the rest may take.
func (r *runner) report(row Row, engine string, round int) {
	if r.Progress == nil {
		return
	}
	left := "?"
	if r.done > 0 {
		took := time.Since(r.result.Started)
		left = (took / time.Duration(r.done) * time.Duration(r.all-r.done)).Round(time.Second).String()
	}
	fmt.Fprintf(r.Progress, "%3d/%d  about %s left  %s, %s, round %d\n", r.done+1, r.all, left, row.Name, engine, round+1)
}
