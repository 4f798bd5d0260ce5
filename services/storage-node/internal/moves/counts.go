package moves

import "time"

// Result is how a move ended.
type Result uint8

// The results.
const (
	Completed Result = iota
	CalledOff
	Stuck
	resultCount
)

// Results are all of them.
var Results = []Result{Completed, CalledOff, Stuck}

// String returns the word for a result, as in metrics.
func (r Result) String() string { return [...]string{"completed", "cancelled", "failed"}[r] }

// Counts are numbers for metrics.
type Counts struct {
	// Active counts moves that are not over, by state.
	Active [Cancelled + 1]int
	// Ended counts moves since the process started, by purpose and result; one that fails counts each time.
	Ended [PurposeStream + 1][resultCount]int64
	// Bytes were sent since the process started, as the migrator said.
	Bytes int64
	// Lag is the largest of those that follow, 0 for none.
	Lag time.Duration
	// Draining: a drain is not over.
	Draining bool
}

// Counts returns numbers for metrics.
func (r *Registry) Counts() Counts {
	s := r.state.Load()
	c := Counts{Bytes: r.bytes.Load(), Draining: s.active != nil}
	for _, m := range s.moves {
		if !m.Active() {
			continue
		}
		c.Active[m.State]++
		if lag, ok := m.Lag(r.o.Now()); ok {
			c.Lag = max(c.Lag, lag)
		}
	}
	for p := range c.Ended {
		for i := range c.Ended[p] {
			c.Ended[p][i] = r.ended[p][i].Load()
		}
	}
	return c
}

// count notes a change.
func (r *Registry) count(c Change) {
	m := c.After
	if m == nil || c.Before == nil {
		return
	}
	if sent := m.Progress.sent() - c.Before.Progress.sent(); sent > 0 {
		r.bytes.Add(sent)
	}
	if c.Before.State == m.State {
		return
	}
	switch m.State {
	case Released:
		r.ended[m.Purpose][Completed].Add(1)
	case Cancelled:
		r.ended[m.Purpose][CalledOff].Add(1)
	case Failed:
		r.ended[m.Purpose][Stuck].Add(1)
	}
}

// sent is what went to the target.
func (p *Progress) sent() int64 { return p.CopiedBytes + p.TailedBytes + p.ResentBytes }
