package store

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pairdb/pairdb/libs/causal"
)

// Options configure a store. Zero values mean the default named with each field.
type Options struct {
	// NodeID names the node in clocks; required. With the incarnation it must fit into 128 bytes.
	NodeID string
	// Incarnation tells this process from every other one that had or has the same node id. Leave
	// it empty: New draws it. Tests set it.
	Incarnation string
	// Now is wall time, time.Now.
	Now func() time.Time
	// MaxClockSkew is how far ahead the timestamp of a repaired sibling may be: one minute, far
	// above what NTP leaves and far below any grace.
	MaxClockSkew time.Duration
	// GCGrace is for how long the engine keeps expired values: none. What is remembered of requests is
	// kept for its day alone.
	GCGrace time.Duration
	// Limits bound siblings and clocks: causal.DefaultLimits.
	Limits causal.Limits
	// MayPrune reports whether entries of the clock that is stored under an engine key may be forgotten when
	// they are old: a replica which has not what they stand for would take what they supersede for news. It is
	// asked for large clocks only, under the key's lock. Default: they always may.
	MayPrune func(engineKey []byte) bool
	// EngineBatchBytes is the engine's limit of one batch: 48 MiB. It must hold the 16 MiB of an
	// atomic batch together with what is stored beside it: clocks and siblings.
	EngineBatchBytes int
	// Tenants decides which requests are taken up: all of them.
	Tenants Tenants
	// Owners decides which keys are served here: all of them.
	Owners Owners
	// AckBeforeDurable answers writes when they are applied, for the sync modes that promise no
	// more.
	AckBeforeDurable bool

	// stripeBits: 65,536 locks make two of a thousand keys in flight share one in fewer than one of a
	// hundred cases, for half a MiB. Tests, which make many stores, have fewer.
	stripeBits int
}

const defaultStripeBits = 16

// Store serves the keys of tenants from an engine. All methods are safe for concurrent use.
type Store struct {
	// Immutable.
	e        Engine
	trailing trailing // e, if it can; or nil
	opts     Options
	now      func() time.Time
	actor    string
	seed     maphash.Seed

	hlc     *causal.HLC
	counter atomic.Uint64 // of the newest dot
	scratch sync.Pool     // *scratch
	stripes stripes
	counts  counts
	// refusing is until when writes are refused, in nanoseconds since the Unix epoch; 0: they are not.
	refusing atomic.Int64
}

// incarnationChars of base 36 hold 51 bits: a node that is started ten thousand times draws one
// twice with a probability of one in fifty million.
const incarnationChars = 10

// New returns a store over an open engine. The engine stays the caller's to close, after the last
// call has returned.
func New(e Engine, o Options) (*Store, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MaxClockSkew == 0 {
		o.MaxClockSkew = time.Minute
	}
	if o.Limits == (causal.Limits{}) {
		o.Limits = causal.DefaultLimits
	}
	if o.EngineBatchBytes == 0 {
		o.EngineBatchBytes = 48 << 20
	}
	if o.stripeBits == 0 {
		o.stripeBits = defaultStripeBits
	}
	if o.Tenants == nil {
		o.Tenants = everyone{}
	}
	if o.NodeID == "" {
		return nil, errors.New("store: node id is required")
	}
	if o.Incarnation == "" {
		o.Incarnation = newIncarnation()
	}
	actor := o.NodeID + "/" + o.Incarnation
	if len(actor) > causal.MaxNodeIDBytes {
		return nil, fmt.Errorf("store: actor %q has %d bytes, at most %d fit into a clock", actor, len(actor), causal.MaxNodeIDBytes)
	}
	s := &Store{e: e, opts: o, now: o.Now, actor: actor, seed: maphash.MakeSeed(), hlc: causal.NewHLC(o.Now), stripes: newStripes(o.stripeBits)}
	s.trailing, _ = e.(trailing)
	s.scratch.New = func() any { return &scratch{batch: e.NewBatch()} }
	return s, nil
}

func newIncarnation() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	n := binary.LittleEndian.Uint64(b[:])
	s := fmt.Sprintf("%0*s", incarnationChars, strconv.FormatUint(n, 36))
	return s[len(s)-incarnationChars:]
}

// Actor returns the name under which this process writes into clocks.
func (s *Store) Actor() string { return s.actor }

// stripes are the locks of keys, by the upper bits of their hash. Whoever takes several takes them
// in ascending order.
type stripes struct {
	locks []sync.Mutex
	shift int
}

func newStripes(bits int) stripes {
	return stripes{locks: make([]sync.Mutex, 1<<bits), shift: 64 - bits}
}

func (l *stripes) of(hash uint64) int { return int(hash >> l.shift) }

// lock takes the stripes of items, which are sorted by hash.
func (l *stripes) lock(items []item) {
	last := -1
	for i := range items {
		if n := l.of(items[i].hash); n != last {
			l.locks[n].Lock()
			last = n
		}
	}
}

func (l *stripes) unlock(items []item) {
	last := -1
	for i := range items {
		if n := l.of(items[i].hash); n != last {
			l.locks[n].Unlock()
			last = n
		}
	}
}
