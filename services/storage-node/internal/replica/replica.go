package replica

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// Engine is what this package needs of the engine: keys are engine keys, values encoded records.
type Engine interface {
	NewBatch() store.Batch
	Submit(b store.Batch) (ikey.Seq, error)
	WaitDurable(seq ikey.Seq) error
	Get(key, dst []byte) (value []byte, found bool, err error)
	NewSnapshot() store.Snapshot
	Tail(from ikey.Seq) (store.Tail, error)
	// VisibleSeq is the newest durable sequence.
	VisibleSeq() ikey.Seq
	ApproximateBytes(start, end []byte) (uint64, error)
	// PinTail, UnpinTail and PinnedTail hold the commit log under a name, durably.
	PinTail(name string, from ikey.Seq) error
	UnpinTail(name string) error
	PinnedTail(name string) (from ikey.Seq, ok bool)
	TailPins() []string
	// CheckRoom refuses what others send when the disk has little room left.
	CheckRoom() error
}

// Clock is the part of the store that sees the times and dots of records from elsewhere.
type Clock interface {
	// Observe makes later timestamps of this node larger than ts, unless that is too far ahead.
	Observe(ts uint64)
	// Actor is the name under which this process writes, CheckRecord refuses a record that claims writes
	// of it that were never made.
	Actor() string
	CheckRecord(r causal.Record) error
}

// Tenants tells which tenants there are.
type Tenants interface {
	// Lives returns the lives that tenants have now.
	Lives() Lives
	// Floor returns the sequence up to which changes of a tenant are of an earlier life; 0: none is.
	Floor(tenant []byte) ikey.Seq
}

// Lives are the lives of tenants at one moment.
type Lives interface {
	// Enter says that records of a tenant are about to be written; ok is false when the tenant is dropped,
	// or, and then again is true, has another life than then. What was entered is left once, and a drop
	// waits for that.
	Enter(tenant string) (stay Stay, ok, again bool)
}

// Stay is what Enter gave.
type Stay interface{ Leave() }

// Owners decides which records may come in.
type Owners interface {
	// Ingest has apply bring in records, if those with the tokens may come in, and waits for its end before
	// it answers that none is under way.
	Ingest(tokens []uint64, apply func() error) error
}

// anybody lets everything in.
type anybody struct{}

func (anybody) Ingest(_ []uint64, apply func() error) error { return apply() }

// Options configure a Replica. Zero values mean the default named with each field.
type Options struct {
	// ClusterID is of this node and of all that may call it; Incarnation is that of its data directory.
	ClusterID, Incarnation string
	// GCGrace is for how long tombstones are kept: data that was read before is refused. Required.
	GCGrace time.Duration
	// DigestBytesPerSecond bounds what all scans for digests read together: 32 MiB for each processor; below 0:
	// nothing does.
	DigestBytesPerSecond int64
	// Now is wall time, time.Now.
	Now func() time.Time
	// Owners decides which records may come in: all of them.
	Owners Owners
	// Refusal says why the node takes no data now; "": it does. Never, by default.
	Refusal func() string
}

// Replica moves records in and out of a node. It is safe for concurrent use.
type Replica struct {
	// Immutable.
	e       Engine
	clock   Clock
	tenants Tenants
	o       Options

	scans    chan struct{} // held by who scans for digests; capacity maxScans
	pace     pace
	trees    trees
	standing standings
	newest   samples
	counts   counts

	mu     sync.Mutex
	agreed map[string]Lives // guarded by mu: by peer, as of the last exchange of tenants
	// pinMoved is when the pin of a move moved last; guarded by mu.
	pinMoved map[string]time.Time
}

// maxAgreed bounds the peers that are remembered; more than a cluster has.
const maxAgreed = 4096

// Agree notes that tenants were exchanged with a peer: what it sends from now on, until the next exchange,
// is of the lives that tenants have now.
func (r *Replica) Agree(peer string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.agreed == nil || len(r.agreed) >= maxAgreed {
		r.agreed = map[string]Lives{}
	}
	r.agreed[peer] = r.tenants.Lives()
}

// lives returns those that were agreed on with a peer, for want of them those of now.
func (r *Replica) lives(peer string) Lives {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l, ok := r.agreed[peer]; ok {
		return l
	}
	return r.tenants.Lives()
}

// maxScans is how many scans for digests run at once; others wait.
const maxScans = 2

// New returns a Replica over an open engine, which stays the caller's to close after the last call has
// returned.
func New(e Engine, clock Clock, tenants Tenants, o Options) *Replica {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.DigestBytesPerSecond == 0 {
		o.DigestBytesPerSecond = int64(runtime.GOMAXPROCS(0)) * 32 << 20
	}
	if o.Owners == nil {
		o.Owners = anybody{}
	}
	if o.Refusal == nil {
		o.Refusal = func() string { return "" }
	}
	r := &Replica{e: e, clock: clock, tenants: tenants, o: o, scans: make(chan struct{}, maxScans)}
	r.pace.bytesPerSecond, r.standing.r = o.DigestBytesPerSecond, r
	return r
}

// Record is one as it is stored: an engine key, and siblings encoded.
type Record struct{ Key, Value []byte }

func (r *Record) bytes() int { return len(r.Key) + len(r.Value) }

// CheckCluster refuses callers of another cluster.
func (r *Replica) CheckCluster(clusterID string) error {
	if clusterID != r.o.ClusterID {
		return refuse(store.ReasonOtherCluster, "the caller is of cluster %q, this node of %q", clusterID, r.o.ClusterID)
	}
	return nil
}

// Description is what other nodes are told of this one.
type Description struct {
	ClusterID, Incarnation string
	// Refusal is why it can't be sent data now; "": it can.
	Refusal string
	GCGrace time.Duration
}

// Describe returns what other nodes are told of this one.
func (r *Replica) Describe() Description {
	return Description{ClusterID: r.o.ClusterID, Incarnation: r.o.Incarnation, Refusal: r.Refusal(), GCGrace: r.o.GCGrace}
}

// Refusal returns why the node can't be sent data now; "": it can.
func (r *Replica) Refusal() string {
	if why := r.o.Refusal(); why != "" {
		return why
	}
	if err := r.e.CheckRoom(); err != nil {
		return err.Error()
	}
	return ""
}

// Counts are what went in and out since the process began.
type Counts struct {
	ExportedRecords, ExportedBytes uint64
	FollowedRecords, FollowedBytes uint64
	IngestedRecords, IngestedBytes uint64
	// SkippedRecords were of tenants that are dropped, or live another life.
	SkippedRecords uint64
	// DigestedRecords and DigestedBytes were hashed.
	DigestedRecords, DigestedBytes uint64
	FetchedRecords, FetchedBytes   uint64
	// RenewedTrees had what has changed since hashed, instead of everything.
	RenewedTrees uint64
	// Streams of records that come in now, Trees that are kept, Standing ones that are kept up.
	Streams, Trees, Standing int
}

type counts struct {
	exportedRecords, exportedBytes atomic.Uint64
	followedRecords, followedBytes atomic.Uint64
	ingestedRecords, ingestedBytes atomic.Uint64
	skippedRecords                 atomic.Uint64
	digestedRecords, digestedBytes atomic.Uint64
	fetchedRecords, fetchedBytes   atomic.Uint64
	renewedTrees                   atomic.Uint64
	streams                        atomic.Int64
}

// Counts returns what went in and out.
func (r *Replica) Counts() Counts {
	c := &r.counts
	return Counts{
		ExportedRecords: c.exportedRecords.Load(), ExportedBytes: c.exportedBytes.Load(),
		FollowedRecords: c.followedRecords.Load(), FollowedBytes: c.followedBytes.Load(),
		IngestedRecords: c.ingestedRecords.Load(), IngestedBytes: c.ingestedBytes.Load(),
		SkippedRecords:  c.skippedRecords.Load(),
		DigestedRecords: c.digestedRecords.Load(), DigestedBytes: c.digestedBytes.Load(),
		FetchedRecords: c.fetchedRecords.Load(), FetchedBytes: c.fetchedBytes.Load(),
		RenewedTrees: c.renewedTrees.Load(), Streams: int(c.streams.Load()), Trees: r.trees.count(), Standing: r.standing.count(),
	}
}

func refuse(reason store.Reason, format string, args ...any) error {
	return &store.Error{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// corrupted names the key by its hash, since the error is logged.
func corrupted(key []byte, err error) error {
	return &store.Error{Reason: store.ReasonCorruptedData, Message: fmt.Sprintf("record of key %s: %v", ikey.Hash(key), err), Err: err}
}

// pace spreads what is read over time; all who call share it.
type pace struct {
	bytesPerSecond int64

	mu   sync.Mutex
	free time.Time // when everything that was taken is paid for
}

const (
	// maxBurst is what may be taken at once: little more than a timer may be late. Requests wait for a
	// processor while a scan has it.
	maxBurst = 4 * time.Millisecond
	// bytesPerPace are read between two pauses, within a fraction of a millisecond.
	bytesPerPace = 64 << 10
)

// take waits until n more bytes may be read.
func (p *pace) take(ctx context.Context, now time.Time, n int) error {
	if p.bytesPerSecond < 0 {
		return ctx.Err()
	}
	p.mu.Lock()
	if earliest := now.Add(-maxBurst); p.free.Before(earliest) {
		p.free = earliest
	}
	p.free = p.free.Add(time.Duration(float64(n) / float64(p.bytesPerSecond) * float64(time.Second)))
	wait := p.free.Sub(now)
	p.mu.Unlock()
	if wait <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
