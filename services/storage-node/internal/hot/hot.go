package hot

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pairdb/pairdb/libs/ikey"
)

const (
	// Every is how many operations there are for one that is looked at: the cost of a look, some 500 ns,
	// becomes 8 ns an operation (BenchmarkLook, BenchmarkRead).
	Every = 64
	// Window is how long operations count in full; they are forgotten after twice as long.
	Window = 2 * time.Minute
	// MaxKeys is how many keys of a list can be had.
	MaxKeys = 100

	counted = 512 // counters of a sketch
	kept    = 128 // largest values
	// alwaysBytes: an operation with so large a value takes far longer than a look.
	alwaysBytes = 256 << 10
)

// Options configure a Tracker; zero values mean the default.
type Options struct {
	// Every is Every, a power of two; 1 looks at all operations.
	Every uint32
	// Window is Window.
	Window time.Duration
	// Now is time.Now.
	Now func() time.Time
	// Chance is rand.Uint32.
	Chance func() uint32
}

// Tracker looks at the operations of a node. Its methods are safe for concurrent use; those of a nil
// Tracker do nothing.
type Tracker struct {
	o    Options
	mask uint32 // o.Every - 1
	born time.Time

	reads, writes side

	mu       sync.Mutex // guards what follows
	turns    turns
	now, old *largest
	name     []byte
}

// side is the sketches of reads, or of writes.
type side struct {
	mu       sync.Mutex // guards what follows
	turns    turns
	now, old *sketch
	name     []byte // reused
}

// New returns a tracker that has seen nothing.
func New(o Options) *Tracker {
	if o.Every == 0 {
		o.Every = Every
	}
	if o.Window == 0 {
		o.Window = Window
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Chance == nil {
		o.Chance = rand.Uint32
	}
	start := turns{began: o.Now()}
	return &Tracker{
		o: o, mask: o.Every - 1, born: start.began, turns: start, now: newLargest(kept), old: newLargest(kept),
		reads:  side{turns: start, now: newSketch(counted), old: newSketch(counted)},
		writes: side{turns: start, now: newSketch(counted), old: newSketch(counted)},
	}
}

// Read takes note of a read of a key whose value has so many bytes, 0 for one that is not there. It keeps
// neither tenant nor key.
func (t *Tracker) Read(tenant, key string, valueBytes int) {
	if t != nil && (valueBytes >= alwaysBytes || t.o.Chance()&t.mask == 0) {
		t.look(&t.reads, tenant, key, valueBytes)
	}
}

// Write takes note of a write of a key with so many bytes, 0 for a delete. It keeps neither tenant nor key.
func (t *Tracker) Write(tenant, key string, valueBytes int) {
	if t != nil && (valueBytes >= alwaysBytes || t.o.Chance()&t.mask == 0) {
		t.look(&t.writes, tenant, key, valueBytes)
	}
}

// look counts an operation. One with a large value is always looked at; to be counted it needs the same
// chance as all others.
func (t *Tracker) look(s *side, tenant, key string, valueBytes int) {
	now := t.o.Now()
	if valueBytes < alwaysBytes || t.o.Chance()&t.mask == 0 {
		s.mu.Lock()
		s.turn(now, t.o.Window)
		s.name = ikey.AppendEngineKey(s.name[:0], tenant, key)
		s.now.add(s.name, valueBytes)
		s.mu.Unlock()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turnLocked(now)
	t.name = ikey.AppendEngineKey(t.name[:0], tenant, key)
	t.now.add(t.name, valueBytes)
}

// turns is when windows began.
type turns struct{ began time.Time }

// next reports how many windows are over, 2 for more, and begins the current one.
func (t *turns) next(now time.Time, window time.Duration) int {
	n := int(now.Sub(t.began) / window)
	if n <= 0 {
		return 0
	}
	t.began = t.began.Add(time.Duration(n) * window)
	return min(n, 2)
}

func (s *side) turn(now time.Time, window time.Duration) {
	for range s.turns.next(now, window) {
		s.now, s.old = s.old, s.now
		s.now.reset()
	}
}

func (t *Tracker) turnLocked(now time.Time) {
	for range t.turns.next(now, t.o.Window) {
		t.now, t.old = t.old, t.now
		t.now.reset()
	}
}

// Key is one key of a list.
type Key struct {
	Tenant, Key string
	// Operations is the estimate for the time that the report covers; 0 in the list of large values.
	Operations uint64
	// ValueBytes is the size of its value when it was last looked at.
	ValueBytes int
}

// Report is what the tracker has seen.
type Report struct {
	// Covers is how long ago the oldest operation can have been.
	Covers time.Duration
	// Reads and Writes have the most frequent keys first, Largest the largest values.
	Reads, Writes, Largest []Key
}

// Top returns up to limit keys of each list, at most MaxKeys.
func (t *Tracker) Top(limit int) Report {
	if t == nil {
		return Report{}
	}
	limit = min(max(limit, 0), MaxKeys)
	now := t.o.Now()
	r := Report{Reads: t.reads.top(now, t.o, limit), Writes: t.writes.top(now, t.o, limit)}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turnLocked(now)
	r.Covers = min(now.Sub(t.turns.began)+t.o.Window, now.Sub(t.born))
	seen := map[string]int{}
	for _, l := range []*largest{t.old, t.now} {
		for _, s := range l.smallest {
			seen[s.name] = s.bytes // as it was last seen
		}
	}
	for name, bytes := range seen {
		tenant, key := split(name)
		r.Largest = append(r.Largest, Key{Tenant: tenant, Key: key, ValueBytes: bytes})
	}
	slices.SortFunc(r.Largest, func(a, b Key) int {
		return cmp.Or(cmp.Compare(b.ValueBytes, a.ValueBytes), byName(a, b))
	})
	r.Largest = r.Largest[:min(limit, len(r.Largest))]
	return r
}

// top adds both windows up: a key that has no counter in one of them may have been there as often as its
// smallest counter says.
func (s *side) top(now time.Time, o Options, limit int) []Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn(now, o.Window)
	type sum struct {
		count, over uint64
		value       int
	}
	sums := map[string]sum{}
	for i, w := range []*sketch{s.old, s.now} {
		other := []*sketch{s.now, s.old}[i]
		for _, c := range w.smallest {
			x, ok := sums[c.name]
			if _, both := other.byName[c.name]; !ok && !both {
				x.count, x.over = other.floor(), other.floor()
			}
			sums[c.name] = sum{x.count + c.count, x.over + c.over, c.value}
		}
	}
	var out []Key
	for name, x := range sums {
		if 2*x.over >= x.count {
			continue // as likely by chance
		}
		tenant, key := split(name)
		out = append(out, Key{Tenant: tenant, Key: key, Operations: x.count * uint64(o.Every), ValueBytes: x.value})
	}
	slices.SortFunc(out, func(a, b Key) int { return cmp.Or(cmp.Compare(b.Operations, a.Operations), byName(a, b)) })
	return out[:min(limit, len(out))]
}

func byName(a, b Key) int {
	return cmp.Or(strings.Compare(a.Tenant, b.Tenant), strings.Compare(a.Key, b.Key))
}

// split takes a name apart again.
func split(name string) (tenant, key string) {
	tenant, key, _ = strings.Cut(name, string(rune(ikey.Separator)))
	return tenant, key
}
