package movement

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/client"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
)

const (
	// writers write at the same time; each has keys of its own, so that it knows what they must have.
	writers = 4
	// stuck is how long a write may be refused until the test calls it lost.
	stuck = 45 * time.Second
	// lifetime of values that have one: they outlive the test.
	lifetime = 2 * time.Hour
)

// truth is what was acknowledged of a key.
type truth struct {
	// clock of everything that was written; nil: nothing was.
	clock map[string]uint64
	// values are the live ones, sorted; none of a key that was deleted.
	values []string
	// expires is between these Unix seconds; 0 is never.
	expiresFrom, expiresTo int64
	// open is what a write left that was never answered, instead; nil: all were.
	open *truth
}

// wrong says how a read differs from the truth; empty: it does not.
func (w *truth) wrong(v client.Value) string {
	if w == nil {
		w = &truth{}
	}
	if w.clock == nil && w.open == nil && v.Clock == nil && !v.Found {
		return ""
	}
	bad := w.differs(v)
	if bad != "" && w.open != nil && w.open.differs(v) == "" {
		return ""
	}
	return bad
}

func (w *truth) differs(v client.Value) string {
	var values []string
	if v.Found && v.Siblings == nil {
		values = append(values, string(v.Bytes))
	}
	for _, s := range v.Live() {
		values = append(values, string(s.GetValue()))
	}
	slices.Sort(values)
	if !slices.Equal(values, w.values) {
		return fmt.Sprintf("has %s, not %s", short(values), short(w.values))
	}
	clock := map[string]uint64{}
	for _, e := range v.Clock.GetEntries() {
		clock[e.GetNodeId()] = e.GetCounter()
	}
	if !maps.Equal(clock, w.clock) {
		return fmt.Sprintf("has clock %v, not %v", clock, w.clock)
	}
	expires := int64(0)
	if !v.ExpiresAt.IsZero() {
		expires = v.ExpiresAt.Unix()
	}
	if expires < w.expiresFrom || expires > w.expiresTo {
		return fmt.Sprintf("expires at %d, not within %d to %d", expires, w.expiresFrom, w.expiresTo)
	}
	return ""
}

// or is what is known when nobody knows whether a write was made; nil, nothing, when it was one of several.
func (w *truth) or(next *truth, steps int) *truth {
	if steps > 1 {
		return nil
	}
	if next.expiresFrom != 0 {
		next.expiresTo = next.expiresFrom + int64(stuck/time.Second)
	}
	return &truth{clock: w.clock, values: w.values, expiresFrom: w.expiresFrom, expiresTo: w.expiresTo, open: next}
}

// short are values without their filling.
func short(values []string) string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i], _, _ = strings.Cut(v, " ")
	}
	return fmt.Sprintf("%q", out)
}

// traffic writes known keys through nodes and remembers what was acknowledged.
type traffic struct {
	c *cluster
	// keys are numbered; perSecond is the rate of all writers together, 0 as fast as it goes.
	keys, perSecond int
	// route returns who is to get a write of the key; all of them, each acknowledged.
	route func(key string) []*node
	// still are the last keys, which are loaded and then left alone: what a node must have of them is known
	// at any moment.
	still int
	// filling is how long values are; 0 is 180 bytes.
	filling int
	// puts leaves everything else out: no deletion, no time to live, no siblings.
	puts bool

	cancel context.CancelFunc
	done   sync.WaitGroup

	mu     sync.Mutex
	truths []*truth
	writes int
	failed error
	took   []time.Duration
	waits  map[string]int // refusals by reason
}

// key is the name of a numbered key.
func key(i int) string { return fmt.Sprintf("key/%07d", i) }

// value is one that nobody else writes.
func (tr *traffic) value(writer, n int) string {
	filling := tr.filling
	if filling == 0 {
		filling = 180
	}
	return fmt.Sprintf("w%d-%d %s", writer, n, strings.Repeat("x", filling))
}

// load writes all keys once, in batches, to everybody that the route names.
func (tr *traffic) load() {
	t := tr.c.t
	t.Helper()
	begun := time.Now()
	tr.truths = make([]*truth, tr.keys)
	byNode := map[*node][]int{}
	for i := range tr.keys {
		id := coordinator(i % writers)
		tr.truths[i] = &truth{clock: map[string]uint64{id: 1}, values: []string{tr.value(i%writers, -i)}}
		for _, n := range tr.route(key(i)) {
			byNode[n] = append(byNode[n], i)
		}
	}
	var all sync.WaitGroup
	errs := make([]error, len(byNode))
	at := 0
	for n, keys := range byNode {
		slot := &errs[at]
		at++
		all.Go(func() { *slot = tr.loadNode(n, keys) })
	}
	all.Wait()
	require.NoError(t, errors.Join(errs...))
	fmt.Printf("%s: %d keys loaded in %s\n", t.Name(), tr.keys, time.Since(begun).Round(time.Millisecond))
}

func (tr *traffic) loadNode(n *node, keys []int) error {
	c, err := client.New(n.Addr, client.Options{Tenant: tenant, RetryFor: time.Minute})
	if err != nil {
		return err
	}
	defer c.Close()
	for part := range slices.Chunk(keys, 500) {
		var b client.Batch
		for _, i := range part {
			w := tr.truths[i]
			b.Put(key(i), []byte(w.values[0]), client.WithClock(vector(w.clock)))
		}
		ctx, cancel := context.WithTimeout(tr.c.t.Context(), 2*time.Minute)
		err := c.Write(ctx, &b)
		cancel()
		if err != nil {
			return fmt.Errorf("load %s: %w", n.Name, err)
		}
	}
	return nil
}

// coordinator is the name of a writer in clocks.
func coordinator(writer int) string { return fmt.Sprint("writer-", writer) }

func vector(clock map[string]uint64) client.Clock {
	out := &datav1.VectorClock{}
	for _, id := range slices.Sorted(maps.Keys(clock)) {
		out.Entries = append(out.Entries, &datav1.ClockEntry{NodeId: id, Counter: clock[id]})
	}
	return out
}

// begin starts the writers.
func (tr *traffic) begin() {
	ctx, cancel := context.WithCancel(context.Background())
	tr.cancel = cancel
	tr.waits = map[string]int{}
	for w := range writers {
		tr.done.Go(func() { tr.write(ctx, w) })
	}
	tr.c.t.Cleanup(func() { cancel(); tr.done.Wait() })
}

// end stops the writers, requires that none was refused for good, and says what it was like for them.
func (tr *traffic) end() {
	tr.c.t.Helper()
	tr.cancel()
	tr.done.Wait()
	require.NoError(tr.c.t, tr.failed)
	slices.Sort(tr.took)
	at := func(p float64) time.Duration {
		if len(tr.took) == 0 {
			return 0
		}
		return tr.took[min(int(p*float64(len(tr.took))), len(tr.took)-1)].Round(100 * time.Microsecond)
	}
	fmt.Printf("%s: %d writes, p50 %s, p99 %s, longest %s, refused %v\n", tr.c.t.Name(), tr.writes, at(0.5), at(0.99), at(1), tr.waits)
}

// write is the loop of one writer.
func (tr *traffic) write(ctx context.Context, w int) {
	random := rand.New(rand.NewPCG(uint64(w), 42))
	var tick <-chan time.Time
	if tr.perSecond > 0 {
		ticker := time.NewTicker(time.Second * writers / time.Duration(tr.perSecond))
		defer ticker.Stop()
		tick = ticker.C
	}
	for n := 1; ctx.Err() == nil; n++ {
		if tick != nil {
			select {
			case <-tick:
			case <-ctx.Done():
				return
			}
		}
		i := random.IntN((tr.keys-tr.still+writers-1-w)/writers)*writers + w
		if err := tr.change(ctx, w, n, i, random); err != nil {
			tr.mu.Lock()
			tr.failed = errors.Join(tr.failed, fmt.Errorf("%s of writer %d: %w", key(i), w, err))
			tr.mu.Unlock()
			return
		}
	}
}

// step is one write to one node.
type step func(ctx context.Context, n *node) error

// change does one of the things that happen to a key. Every write has a clock of its own, so that a
// repeat, also at another node, is the same write.
func (tr *traffic) change(ctx context.Context, w, n, i int, random *rand.Rand) error {
	before := tr.truths[i]
	if before == nil {
		before = &truth{}
	}
	next := &truth{clock: maps.Clone(before.clock)}
	if next.clock == nil {
		next.clock = map[string]uint64{}
	}
	id, k := coordinator(w), key(i)
	next.clock[id]++
	var steps []step
	put := func(v string, clock client.Clock, opts ...client.WriteOption) step {
		return func(ctx context.Context, n *node) error {
			_, err := n.client.Put(ctx, k, []byte(v), append(opts, client.WithClock(clock))...)
			return err
		}
	}
	dice := random.IntN(100)
	if tr.puts {
		dice = 0
	}
	switch {
	case dice < 60:
		next.values = []string{tr.value(w, n)}
		steps = append(steps, put(next.values[0], vector(next.clock)))
	case dice < 75:
		clock := vector(next.clock)
		steps = append(steps, func(ctx context.Context, n *node) error {
			_, err := n.client.Delete(ctx, k, client.WithClock(clock))
			return err
		})
	case dice < 85: // two that do not know of each other
		other := maps.Clone(before.clock)
		if other == nil {
			other = map[string]uint64{}
		}
		other[id+"-other"]++
		next.values = []string{tr.value(w, n), tr.value(w, n) + "other"}
		slices.Sort(next.values)
		steps = append(steps, put(next.values[0], vector(next.clock)), put(next.values[1], vector(other)))
		next.clock[id+"-other"] = other[id+"-other"]
	case dice < 95:
		next.values = []string{tr.value(w, n)}
		next.expiresFrom = time.Now().Add(lifetime).Unix()
		steps = append(steps, put(next.values[0], vector(next.clock), client.WithTTL(lifetime)))
	default: // as somebody does who read it elsewhere
		next.values = []string{tr.value(w, n)}
		s := &client.Sibling{Clock: vector(next.clock), Value: []byte(next.values[0])}
		steps = append(steps, func(ctx context.Context, n *node) error { return n.client.Repair(ctx, k, []*client.Sibling{s}) })
	}
	begun := time.Now()
	for _, to := range tr.route(k) {
		for _, s := range steps {
			if err := tr.until(ctx, to, s); err != nil {
				tr.set(i, before.or(next, len(steps)), begun)
				if ctx.Err() != nil {
					return nil
				}
				return err
			}
		}
	}
	if next.expiresFrom != 0 {
		next.expiresTo = time.Now().Add(lifetime).Unix() + 1
	}
	tr.set(i, next, begun)
	return nil
}

func (tr *traffic) set(i int, now *truth, begun time.Time) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.truths[i] = now
	tr.writes++
	tr.took = append(tr.took, time.Since(begun))
}

// until does a step until it is acknowledged: by the node, or by the one that it names as the owner.
func (tr *traffic) until(ctx context.Context, n *node, s step) error {
	deadline := time.Now().Add(stuck)
	pause := 5 * time.Millisecond
	for {
		// The write itself is not cut off, so that less is open.
		try, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		err := s(try, n)
		cancel()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: refused for %s: %w", n.Name, stuck, err)
		}
		var e *client.Error
		if !errors.As(err, &e) {
			return err
		}
		tr.mu.Lock()
		tr.waits[e.Reason]++
		tr.mu.Unlock()
		if e.Reason == "NOT_OWNER" {
			if owner := tr.c.named(e.Metadata["owner_addr"]); owner != nil && owner != n {
				n = owner
				continue
			}
		}
		wait := max(e.RetryAfter, pause)
		pause = min(2*pause, 200*time.Millisecond)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// among narrows a route down to some nodes.
func among(route func(string) []*node, nodes ...*node) func(string) []*node {
	return func(key string) []*node {
		return slices.DeleteFunc(slices.Clone(route(key)), func(n *node) bool { return !slices.Contains(nodes, n) })
	}
}

// settled requires that nodes have the keys that are left alone, while others are written.
func (tr *traffic) settled(at func(key string) []*node) {
	tr.c.t.Helper()
	first := key(tr.keys - tr.still)
	require.Empty(tr.c.t, tr.wrong(func(key string) []*node {
		if key < first {
			return nil
		}
		return at(key)
	}), "it answers and does not have what was there before it came")
}

// maxWrong is how many wrong keys are told.
const maxWrong = 5

// wrong compares keys with what nodes have; each node that at names is asked. It returns the first ones
// that differ.
func (tr *traffic) wrong(at func(key string) []*node) (bad []string) {
	byNode := map[*node][]int{}
	for i := range tr.keys {
		nodes := at(key(i))
		if len(nodes) == 0 || tr.truths[i] == nil {
			continue // nothing is asked, or claimed
		}
		for _, n := range nodes {
			byNode[n] = append(byNode[n], i)
		}
	}
	for n, keys := range byNode {
		for part := range slices.Chunk(keys, 1000) {
			names := make([]string, len(part))
			for j, i := range part {
				names[j] = key(i)
			}
			values, err := tr.read(n, names)
			if err != nil {
				return append(bad, fmt.Sprintf("%s: %v", n.Name, err))
			}
			for j, i := range part {
				if w := tr.truths[i].wrong(values[j]); w != "" {
					if bad = append(bad, fmt.Sprintf("%s at %s %s", key(i), n.Name, w)); len(bad) >= maxWrong {
						return bad
					}
				}
			}
		}
	}
	return bad
}

// read reads keys of a node. It is asked again for a while when it says that it may not answer yet: that is no
// wrong answer.
func (tr *traffic) read(n *node, names []string) ([]client.Value, error) {
	ctx, cancel := context.WithTimeout(tr.c.t.Context(), 20*time.Second)
	defer cancel()
	for {
		values, err := n.client.GetMany(ctx, names)
		var e *client.ItemError
		if !errors.As(err, &e) || e.Reason != "RANGE_MOVING" {
			return values, err
		}
		select {
		case <-time.After(max(e.RetryAfter, 50*time.Millisecond)):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// holds requires that nodes have the truth now.
func (tr *traffic) holds(at func(key string) []*node) {
	tr.c.t.Helper()
	require.Empty(tr.c.t, tr.wrong(at), "acknowledged and not so")
}

// comesTo waits until nodes have the truth, and returns how long it took.
func (tr *traffic) comesTo(limit time.Duration, what string, at func(key string) []*node) time.Duration {
	tr.c.t.Helper()
	begun := time.Now()
	var bad []string
	for {
		if bad = tr.wrong(at); len(bad) == 0 {
			break
		}
		if time.Since(begun) > limit {
			require.Empty(tr.c.t, bad, "%s: not within %s", what, limit)
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-tr.c.t.Context().Done():
		}
	}
	took := time.Since(begun)
	fmt.Printf("%s: %s: every key is right after %s\n", tr.c.t.Name(), what, took.Round(10*time.Millisecond))
	return took
}

// only routes everything to some nodes.
func only(nodes ...*node) func(string) []*node { return func(string) []*node { return nodes } }

// reasonOf returns the reason of a status, or its words.
func reasonOf(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return fmt.Sprint(err)
}

// refused requires that a call was refused with a reason.
func refused(t *testing.T, want string, err error) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, want, reasonOf(err), "%v", err)
}
