package kubetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/ring"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
)

const (
	tenant = "kubetest"
	// writers write at once, each to keys of its own, so that it knows what they must hold. The last one is a
	// coordinator, which writes to every owner; the others write through the service.
	writers = 5
	// perSecond is the rate of each writer: the load must not be what keeps two cores from restarting pods.
	perSecond = 40
	// stuck is how long one write may be refused until the test calls it failed.
	stuck = 90 * time.Second
	// service is the address of the ClusterIP service in clients of this test.
	service = "service"
)

// truth is what a key must hold: exactly what was acknowledged, since no writer leaves a write open.
type truth struct {
	clock  map[string]uint64
	values []string // the live ones, sorted; none: it was deleted
}

func (w truth) String() string { return fmt.Sprintf("%q under %v", w.values, w.clock) }

// seen is what a read says, in the same words.
func seen(v client.Value) truth {
	w := truth{clock: map[string]uint64{}}
	for _, e := range v.Clock.GetEntries() {
		w.clock[e.GetNodeId()] = e.GetCounter()
	}
	for _, s := range v.Live() {
		w.values = append(w.values, string(s.GetValue()))
	}
	if v.Found && v.Siblings == nil {
		w.values = append(w.values, string(v.Bytes))
	}
	slices.Sort(w.values)
	return w
}

func vector(clock map[string]uint64) client.Clock {
	out := &datav1.VectorClock{}
	for _, id := range slices.Sorted(maps.Keys(clock)) {
		out.Entries = append(out.Entries, &datav1.ClockEntry{NodeId: id, Counter: clock[id]})
	}
	return out
}

// load writes, deletes and writes twice, and remembers what was acknowledged.
type load struct {
	// dial connects to a pod, or to one that the service chooses.
	dial  func(ctx context.Context, to string) (net.Conn, error)
	keys  int
	round int
	// quorum: two owners acknowledge each write, so that none of them alone has it when its disk is lost.
	quorum bool

	cancel context.CancelFunc
	done   sync.WaitGroup

	mu      sync.Mutex
	members []string // who owns what, by the ring
	clients map[string]*client.Client
	truths  []truth
	writes  int
	refused map[string]int // by reason; each was repeated to success
	longest time.Duration
	failed  error
}

func newLoad(dial func(context.Context, string) (net.Conn, error), keys int, members ...string) *load {
	return &load{dial: dial, keys: keys, members: members, clients: map[string]*client.Client{}, truths: make([]truth, keys)}
}

func (l *load) close() {
	for _, c := range l.clients {
		_ = c.Close() // it holds nothing back
	}
}

// client returns the client of a pod, or of the service.
func (l *load) client(to string) *client.Client {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.clients[to]; c != nil {
		return c
	}
	c, err := client.New("passthrough:///"+to, client.Options{Tenant: tenant, RetryFor: -1, Timeout: 5 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(l.dial)}})
	if err != nil {
		panic(err) // the options are ours
	}
	l.clients[to] = c
	return c
}

// owners returns the pods that are to have a key.
func (l *load) owners(key string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	members := make([]ring.Member, len(l.members))
	for i, id := range l.members {
		members[i] = ring.Member{NodeID: id, VirtualNodes: 150}
	}
	return ring.New(members, 3).Replicas(ring.Token(tenant, key))
}

// now says who the members are from now on.
func (l *load) now(members ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.members = members
}

func key(i int) string { return fmt.Sprintf("key/%06d", i) }

// begin starts the writers.
func (l *load) begin(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel, l.writes, l.longest, l.refused = cancel, 0, 0, map[string]int{}
	l.round++
	for w := range writers {
		l.done.Go(func() { l.writer(ctx, w) })
	}
	t.Cleanup(func() { cancel(); l.done.Wait() })
}

// end stops the writers after the write that each is at, and requires that every write came to success.
func (l *load) end(t *testing.T) {
	t.Helper()
	l.cancel()
	l.done.Wait()
	fmt.Printf("%s: %d writes acknowledged; refused and repeated to success: %v; the longest took %s\n", t.Name(), l.writes, l.refused, l.longest.Round(time.Millisecond))
	require.NoError(t, l.failed)
	require.Positive(t, l.writes)
}

func (l *load) writer(ctx context.Context, w int) {
	random := rand.New(rand.NewPCG(uint64(w), uint64(l.round)))
	tick := time.NewTicker(time.Second / perSecond)
	defer tick.Stop()
	own := (l.keys - w + writers - 1) / writers
	for n := 0; ; n++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		i := random.IntN(own)*writers + w
		begun := time.Now()
		next, err := l.change(w, n, i, random.IntN(100))
		l.mu.Lock()
		if err != nil {
			l.failed = errors.Join(l.failed, fmt.Errorf("%s of writer %d: %w", key(i), w, err))
			l.mu.Unlock()
			return
		}
		l.truths[i] = next
		l.writes++
		l.longest = max(l.longest, time.Since(begun))
		l.mu.Unlock()
	}
}

// change does one of the things that happen to a key. Every write has a clock of its own: a repeat of it, also at
// another node, is the same write.
func (l *load) change(w, n, i, dice int) (truth, error) {
	id := fmt.Sprint("writer-", w)
	before := l.truths[i] // no other writer has this key
	next := truth{clock: map[string]uint64{id: before.clock[id] + 1}}
	if other := before.clock[id+"-other"]; other > 0 {
		next.clock[id+"-other"] = other
	}
	value := fmt.Sprintf("writer %d, round %d, write %d", w, l.round, n)
	put := func(value string, clock client.Clock) write {
		return func(ctx context.Context, c *client.Client) error {
			_, err := c.Put(ctx, key(i), []byte(value), client.WithClock(clock))
			return err
		}
	}
	clock := vector(next.clock)
	var writes []write
	switch {
	case dice < 70 || before.clock == nil:
		next.values = []string{value}
		writes = []write{put(value, clock)}
	case dice < 85:
		writes = []write{func(ctx context.Context, c *client.Client) error {
			_, err := c.Delete(ctx, key(i), client.WithClock(clock))
			return err
		}}
	default: // somebody else wrote at the same time: siblings
		other := maps.Clone(before.clock)
		other[id+"-other"]++
		next.clock[id+"-other"] = other[id+"-other"]
		next.values = []string{value, value + ", the other"}
		writes = []write{put(value, clock), put(next.values[1], vector(other))}
	}
	for _, f := range writes {
		if err := l.acknowledged(w, key(i), f); err != nil {
			return truth{}, err
		}
	}
	return next, nil
}

// write is one write to one node.
type write func(context.Context, *client.Client) error

// targets returns whom a writer writes a key to, and how many of them have to acknowledge it.
func (l *load) targets(w int, key string) (to []string, wanted int) {
	switch {
	case l.quorum:
		return l.owners(key), 2
	case w == writers-1:
		to = l.owners(key)
		return to, len(to)
	}
	return []string{fmt.Sprint(service, w)}, 1
}

// acknowledged repeats a write until as many nodes as its writer wants have acknowledged it.
func (l *load) acknowledged(w int, key string, f write) error {
	deadline := time.Now().Add(stuck)
	has := map[string]bool{}
	for {
		to, wanted := l.targets(w, key) // they change while nodes come and go
		for _, at := range to {
			if !has[at] {
				next, pause, err := l.try(at, f)
				if err != nil && next != "" && next != at { // the owner that it names
					next, pause, err = l.try(next, f)
				}
				switch {
				case err != nil && next == "":
					return fmt.Errorf("at %s: not to be repeated: %w", at, err)
				case err != nil && time.Now().After(deadline):
					return fmt.Errorf("at %s: refused for %s: %w", at, stuck, err)
				case err != nil:
					<-time.After(pause) // what a client does
					continue
				}
				has[at] = true
			}
			if wanted--; wanted == 0 {
				return nil
			}
		}
	}
}

// try makes a write once. After a refusal it returns where to try again, the node itself or the owner that it
// names, and when; "" for a refusal that a client may not repeat.
func (l *load) try(to string, f write) (next string, pause time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err = f(ctx, l.client(to)); err == nil {
		return "", 0, nil
	}
	owner, _, moved := client.Owner(err)
	if !moved && !client.Retryable(err) && client.Code(err) != codes.DeadlineExceeded {
		return "", 0, err
	}
	reason := client.Reason(err)
	if reason == "" {
		reason = client.Code(err).String()
	}
	l.mu.Lock()
	l.refused[reason]++
	l.mu.Unlock()
	if moved && owner != "" {
		return owner, 0, err
	}
	var e *client.Error
	if errors.As(err, &e) {
		pause = e.RetryAfter
	}
	return to, max(pause, 50*time.Millisecond), err
}

// maxWrong is how many wrong keys are told.
const maxWrong = 5

// wrong returns the first keys that their owners do not hold as acknowledged.
func (l *load) wrong(ctx context.Context) (bad []string) {
	at := map[string][]int{}
	for i := range l.keys {
		if l.truths[i].clock == nil {
			continue // never written
		}
		for _, pod := range l.owners(key(i)) {
			at[pod] = append(at[pod], i)
		}
	}
	for pod, keys := range at {
		for part := range slices.Chunk(keys, 500) {
			names := make([]string, len(part))
			for j, i := range part {
				names[j] = key(i)
			}
			values, err := l.client(pod).GetMany(ctx, names)
			if err != nil {
				return append(bad, fmt.Sprintf("%s: %v", pod, err))
			}
			for j, i := range part {
				if got := seen(values[j]); got.String() != l.truths[i].String() {
					if bad = append(bad, fmt.Sprintf("%s at %s: %s, acknowledged was %s", key(i), pod, got, l.truths[i])); len(bad) >= maxWrong {
						return bad
					}
				}
			}
		}
	}
	return bad
}

// holds requires that every owner comes to hold exactly what was acknowledged, and says how long that took.
func (l *load) holds(t *testing.T, limit time.Duration) {
	t.Helper()
	begun := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	again := time.NewTicker(500 * time.Millisecond)
	defer again.Stop()
	var last []string
	for {
		bad := l.wrong(ctx)
		if len(bad) == 0 {
			break
		}
		if ctx.Err() == nil {
			last = bad
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			require.Empty(t, last, "not within %s", limit)
			t.Fatalf("not compared within %s", limit)
		}
	}
	fmt.Printf("%s: every owner has all %d keys right after %s\n", t.Name(), l.keys, time.Since(begun).Round(10*time.Millisecond))
}
