package jobs

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/pairdb/pairdb/libs/compact"
)

// Board holds the jobs of one node process. All methods are safe for concurrent use.
type Board struct {
	o       Options
	session uint64
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	wg      sync.WaitGroup // sweeper, executor, verifications, Lease calls

	mu     sync.Mutex
	closed bool
	caught bool // a worker of this session reported what no merge gives
	nextID uint64
	jobs   map[uint64]*job   // not terminal
	inputs map[uint64]uint64 // table number → job that has it
	done   finished
	// wake is closed and replaced when waiting Lease calls should look again.
	wake     chan struct{}
	workers  map[workerID]*worker
	external time.Time // when an external worker was last heard of
	absent   bool
	urgent   bool
	rate     int64
	reserved uint64 // bytes promised to attempts
	garbage  []string
	scrub    scrubState
	totals   Totals
	events   []Event
	todo     []func() // effects of the state change, run after mu

	deliverMu sync.Mutex // one deliverer at a time keeps events in order
}

// job is one offered plan. Guarded by Board.mu, but for plan, which is read-only.
type job struct {
	plan    *Plan
	release func() // a scrub's pin; nil for the engine's plans
	bytes   int64  // of all inputs

	state       State
	epoch       uint32
	failures    int
	lastFailure string
	notBefore   time.Time
	backoff     time.Duration
	blocked     bool // has had its event for missing headroom

	// The attempt, from beginLocked to endAttemptLocked.
	active     bool
	granting   bool // its directory is being made; no key is out yet
	worker     workerID
	granted    time.Time
	deadline   time.Time
	progressed time.Time
	doneBytes  int64
	reserved   uint64
	outputs    int
	outBytes   int64

	cancelled string     // why it must end as soon as it is not granting or verifying
	judgement *judgement // of the attempt that is being verified
}

// judgement is what the callers of Complete wait for. It belongs to one attempt: when it is done the
// job may have the next one already.
type judgement struct {
	done    chan struct{} // closed when verdict is set and all that follows from it is done
	verdict Verdict
}

func newJudgement() *judgement { return &judgement{done: make(chan struct{})} }

func (j *job) origin() Origin {
	if j.worker.local {
		return Local
	}
	return External
}

func (j *job) isScrub() bool { return j.plan.Job.Kind == compact.Scrub }

// NewBoard makes a board: it wipes what earlier processes left in staging/ (the caller holds the
// data directory's lock) and starts the sweeper and, if the mode allows, the local executor. Close
// ends them.
func NewBoard(o Options) (*Board, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	b := &Board{
		o:       o,
		jobs:    map[uint64]*job{},
		inputs:  map[uint64]uint64{},
		wake:    make(chan struct{}),
		workers: map[workerID]*worker{},
		rate:    o.Rate,
		session: o.Session,
	}
	for b.session == 0 {
		b.session = o.Rand.Uint64()
	}
	b.external = o.Now()
	b.scrub.last = b.external
	if err := b.wipeAll(); err != nil {
		return nil, fmt.Errorf("clean staging: %w", err)
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.wg.Go(b.sweepLoop)
	if o.Mode != ModeNever {
		b.wg.Go(b.localLoop)
	}
	return b, nil
}

// Session returns the random number that names this process's leases.
func (b *Board) Session() uint64 { return b.session }

// unlock releases mu, then runs the effects of what changed under it.
func (b *Board) unlock() {
	todo := b.todo
	b.todo = nil
	b.mu.Unlock()
	for _, f := range todo {
		f()
	}
	b.deliver()
}

// deliver hands the collected events out, in order.
func (b *Board) deliver() {
	b.deliverMu.Lock()
	defer b.deliverMu.Unlock()
	b.mu.Lock()
	events := b.events
	b.events = nil
	b.mu.Unlock()
	if b.o.Events == nil {
		return
	}
	for _, e := range events {
		b.o.Events(e)
	}
}

func (b *Board) eventLocked(kind EventKind, j *job, reason string) {
	e := Event{
		Kind: kind, Key: Key{b.session, j.plan.Job.ID, j.epoch}, Worker: j.worker.name, Origin: j.origin(),
		Reason: reason, Inputs: len(j.plan.Job.Inputs), BytesIn: j.bytes, Outputs: j.outputs, BytesOut: j.outBytes,
	}
	if !j.granted.IsZero() {
		e.Duration = b.o.Now().Sub(j.granted)
	}
	b.events = append(b.events, e)
}

func (b *Board) wakeLocked() {
	close(b.wake)
	b.wake = make(chan struct{})
}

// Offer queues a plan and returns the id of its job. From a nil error on, the plan is the board's
// until it calls Installer.Release.
func (b *Board) Offer(p *Plan) (uint64, error) {
	bytes, err := b.checkPlan(p)
	if err != nil {
		return 0, err
	}
	b.mu.Lock()
	defer b.unlock()
	switch {
	case b.closed:
		return 0, ErrClosed
	case len(b.jobs) >= b.o.MaxQueued:
		return 0, ErrQueueFull
	}
	for _, in := range p.Job.Inputs {
		other, ok := b.inputs[in.Num]
		if !ok {
			continue
		}
		if j := b.jobs[other]; j.isScrub() {
			b.cancelLocked(j, "its table is wanted for a merge")
		}
		if _, ok := b.inputs[in.Num]; ok {
			return 0, fmt.Errorf("%w: table %d is in job %d", ErrBusy, in.Num, other)
		}
	}
	j := b.addLocked(p, bytes)
	b.totals.Offered++
	b.eventLocked(EventQueued, j, p.Reason)
	b.wakeLocked()
	return p.Job.ID, nil
}

func (b *Board) addLocked(p *Plan, bytes int64) *job {
	b.nextID++
	p.Job.ID = b.nextID
	j := &job{plan: p, bytes: bytes}
	b.jobs[p.Job.ID] = j
	for _, in := range p.Job.Inputs {
		b.inputs[in.Num] = p.Job.ID
	}
	return j
}

// checkPlan refuses plans that can't be jobs and returns the size of the inputs.
func (b *Board) checkPlan(p *Plan) (int64, error) {
	job := &p.Job
	if job.Kind != compact.Merge {
		return 0, fmt.Errorf("%w: only merges are offered", ErrInvalidPlan)
	}
	if n := len(job.Inputs); n == 0 || n > compact.MaxInputs {
		return 0, fmt.Errorf("%w: %d inputs, 1 to %d possible", ErrInvalidPlan, n, compact.MaxInputs)
	}
	if p.MinSeq > p.MaxSeq {
		return 0, fmt.Errorf("%w: sequences from %d to %d", ErrInvalidPlan, p.MinSeq, p.MaxSeq)
	}
	var bytes int64
	seen := make(map[uint64]bool, len(job.Inputs))
	for _, in := range job.Inputs {
		if in.Size <= 0 || seen[in.Num] {
			return 0, fmt.Errorf("%w: table %d is empty or there twice", ErrInvalidPlan, in.Num)
		}
		seen[in.Num] = true
		bytes += in.Size
		if bytes > b.o.MaxInputBytes {
			return 0, fmt.Errorf("%w: more than %d bytes of inputs", ErrInvalidPlan, b.o.MaxInputBytes)
		}
	}
	if job.MaxOutputs <= 0 && job.Table.TargetBytes > 0 {
		// Output may be larger than input by headers and worse compression; two for the splits.
		job.MaxOutputs = int(bytes+bytes/10)/int(job.Table.TargetBytes) + 2
	}
	if job.MaxOutputs <= 0 || job.MaxOutputs > b.o.MaxOutputs {
		job.MaxOutputs = b.o.MaxOutputs
	}
	return bytes, nil
}

// Cancel takes back the jobs that match says yes to, and returns how many. A job whose outputs are
// being verified ends before they are installed; one that is being installed may still be. match
// must not call the board.
func (b *Board) Cancel(match func(*Plan) bool, reason string) int {
	b.mu.Lock()
	defer b.unlock()
	n := 0
	for _, id := range b.idsLocked() {
		if j := b.jobs[id]; match(j.plan) {
			b.cancelLocked(j, reason)
			n++
		}
	}
	return n
}

func (b *Board) cancelLocked(j *job, reason string) {
	if j.state == StateVerifying || j.granting {
		j.cancelled = reason
		return
	}
	b.cancelNowLocked(j, reason)
}

func (b *Board) cancelNowLocked(j *job, reason string) {
	b.totals.Cancelled++
	b.finishLocked(j, StateCancelled, EventCancelled, reason)
}

// finishLocked makes a job terminal: everything that it held is given back.
func (b *Board) finishLocked(j *job, s State, kind EventKind, reason string) {
	b.endAttemptLocked(j)
	j.state = s
	b.eventLocked(kind, j, reason)
	id := j.plan.Job.ID
	delete(b.jobs, id)
	for _, in := range j.plan.Job.Inputs {
		delete(b.inputs, in.Num)
	}
	if s == StateInstalled {
		b.done.add(Key{b.session, id, j.epoch})
	}
	b.todo = append(b.todo, func() {
		if j.release != nil {
			j.release()
			return
		}
		b.o.Installer.Release(j.plan, s, reason)
	})
	b.wakeLocked()
}

// endAttemptLocked gives back what an attempt holds, if there is one.
func (b *Board) endAttemptLocked(j *job) {
	if !j.active {
		return
	}
	b.reserved -= j.reserved
	j.active, j.granting, j.reserved = false, false, 0
	if w := b.workers[j.worker]; w != nil {
		w.leases--
	}
	if !j.isScrub() {
		dirs := b.attemptDirs(Key{b.session, j.plan.Job.ID, j.epoch})
		b.todo = append(b.todo, func() { b.wipe(dirs...) })
	}
}

// Holds reports whether a table is an input of a job that is not terminal. Whoever deletes tables
// asks, besides looking at the versions.
func (b *Board) Holds(number uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.inputs[number]
	return ok
}

// SetUrgent tells whether the engine is at its soft level-0 limit: then the local executor of
// ModeAuto works beside the external workers.
func (b *Board) SetUrgent(on bool) {
	b.mu.Lock()
	defer b.unlock()
	if b.urgent != on {
		b.urgent = on
		b.wakeLocked()
	}
}

// SetRate limits each external merge in bytes per second from its next heartbeat on; 0 is no limit.
func (b *Board) SetRate(bytesPerSecond int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rate = max(bytesPerSecond, 0)
}

// Close cancels all jobs, lets an installation that runs end, and returns when no goroutine and no
// pin of the board is left. It is idempotent.
func (b *Board) Close() error {
	b.mu.Lock()
	b.closed = true
	b.wakeLocked()
	b.unlock()
	b.cancel()
	b.wg.Wait()

	b.mu.Lock()
	for _, id := range b.idsLocked() {
		b.cancelLocked(b.jobs[id], "shutdown")
	}
	b.unlock()
	return nil
}

func (b *Board) idsLocked() []uint64 {
	ids := make([]uint64, 0, len(b.jobs))
	for id := range b.jobs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// finished remembers the keys that were installed, so that a repeated report gets its answer.
type finished struct {
	keys  map[Key]struct{}
	order []Key // ring of the last maxFinished
	next  int
}

// maxFinished bounds the memory of installed keys: a worker repeats a report within seconds, and
// after that FENCED does as well, since both tell it to forget the attempt.
const maxFinished = 1024

func (f *finished) add(k Key) {
	if f.keys == nil {
		f.keys = make(map[Key]struct{}, maxFinished)
	}
	f.keys[k] = struct{}{}
	if len(f.order) < maxFinished {
		f.order = append(f.order, k)
		return
	}
	delete(f.keys, f.order[f.next])
	f.order[f.next] = k
	f.next = (f.next + 1) % maxFinished
}

func (f *finished) has(k Key) bool {
	_, ok := f.keys[k]
	return ok
}
