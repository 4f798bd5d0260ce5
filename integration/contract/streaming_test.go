package contract

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/localpod"
)

// token is where a key stands, as coordinators compute it.
func token(text string) uint64 {
	sum := sha256.Sum256([]byte(text))
	return binary.BigEndian.Uint64(sum[:8])
}

// place is a virtual node: it is primary for the tokens up to its own, that one included.
type place struct {
	token uint64
	node  int
}

// layout is a coordinator's ring: places by token.
type layout []place

// places is how many each node has; coordinators have 150.
const places = 12

func layoutOf(nodes ...int) (out layout) {
	for _, n := range nodes {
		for v := range places {
			out = append(out, place{token(fmt.Sprintf("node-%d-vnode-%d", n, v)), n})
		}
	}
	slices.SortFunc(out, func(a, b place) int { return cmp.Compare(a.token, b.token) })
	return out
}

func (l layout) primary(t uint64) int {
	for _, p := range l {
		if t <= p.token {
			return p.node
		}
	}
	return l[0].node
}

// span is a range of tokens with both ends included; it wraps when first > last.
type span struct{ first, last uint64 }

// moved returns the ranges whose primary is another one in next, by who has them and who gets them.
func (l layout) moved(next layout) map[[2]int][]span {
	var ends []uint64
	for _, p := range slices.Concat(l, next) {
		ends = append(ends, p.token)
	}
	slices.Sort(ends)
	ends = slices.Compact(ends)
	out := map[[2]int][]span{}
	for i, last := range ends {
		first := ends[(i+len(ends)-1)%len(ends)] + 1
		if from, to := l.primary(last), next.primary(last); from != to {
			out[[2]int{from, to}] = append(out[[2]int{from, to}], span{first, last})
		}
	}
	return out
}

// fact is what a key must be.
type fact struct {
	value string // empty: deleted
	clock clock
}

// fleet is storage nodes, and a coordinator that keeps each key on its primary.
type fleet struct {
	t     *testing.T
	pods  *localpod.Pods
	nodes []*replica

	mu    sync.RWMutex // held for reading during a write, for writing when the ring changes
	ring  layout
	facts []fact

	stop context.CancelFunc
	done sync.WaitGroup
	errs chan error
}

const fleetKeys = 3000

func fleetKey(i int) string { return fmt.Sprintf("key-%05d", i) }

// write does one write of a key to its primary, and again until it is acknowledged: it has a clock of its
// own.
func (f *fleet) write(i int, random *rand.Rand) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	r := f.nodes[f.ring.primary(token("shop:"+fleetKey(i)))]
	next := fact{clock: maps.Clone(f.facts[i].clock)}
	if next.clock == nil {
		next.clock = clock{}
	}
	next.clock[fmt.Sprint("coordinator-", i%2)]++
	fields := map[string]any{"tenant_id": "shop", "key": fleetKey(i), "vector_clock": next.clock}
	method := "Delete"
	if dice := random.IntN(10); dice > 1 {
		method = "Write"
		if dice == 9 {
			method = "Repair"
		}
		next.value = fmt.Sprintf("%s-%d", fleetKey(i), random.Int64())
		fields["value"] = []byte(next.value)
	}
	deadline := time.Now().Add(40 * time.Second)
	for {
		a, err := r.call(context.Background(), method, fields)
		if err == nil && a.success() {
			f.facts[i] = next
			return nil
		}
		if time.Now().After(deadline) {
			if err == nil {
				err = errors.New(a.text("error_message"))
			}
			return fmt.Errorf("%s of %s: %w", method, fleetKey(i), err)
		}
		time.Sleep(20 * time.Millisecond) // a client's back-off
	}
}

// begin writes all the time.
func (f *fleet) begin() {
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = cancel
	for w := range 2 {
		f.done.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 7))
			for ctx.Err() == nil {
				if err := f.write(random.IntN(fleetKeys/2)*2+w, random); err != nil {
					f.errs <- err
					return
				}
				time.Sleep(3 * time.Millisecond) // the rate of a light load
			}
		})
	}
	f.t.Cleanup(func() { cancel(); f.done.Wait() })
}

func (f *fleet) end() {
	f.t.Helper()
	f.stop()
	f.done.Wait()
	select {
	case err := <-f.errs:
		require.NoError(f.t, err)
	default:
	}
}

// holds requires that every key is at its primary as it must be.
func (f *fleet) holds() {
	f.t.Helper()
	for i, want := range f.facts {
		if want.clock == nil {
			continue
		}
		n := f.ring.primary(token("shop:" + fleetKey(i)))
		got := f.nodes[n].read(fleetKey(i), grpc.WaitForReady(true))
		require.True(f.t, got.success(), got.text("error_message"))
		require.Equal(f.t, want.value, got.bytes(), "%s at node-%d", fleetKey(i), n)
		require.Equal(f.t, want.clock, got.clock("vector_clock"), "%s at node-%d", fleetKey(i), n)
	}
}

// startStreaming asks a node to stream to another one, until it answers.
func (f *fleet) startStreaming(from, to int, spans []span) {
	f.t.Helper()
	host, port, err := net.SplitHostPort(f.pods.All()[to].Addr)
	require.NoError(f.t, err)
	number, err := strconv.Atoi(port)
	require.NoError(f.t, err)
	r := f.nodes[from]
	m := r.message("StartStreamingRequest", map[string]any{
		"source_node_id": fmt.Sprint("node-", from), "target_node_id": fmt.Sprint("node-", to), "target_host": host, "target_port": int32(number),
	})
	list := m.Mutable(m.Descriptor().Fields().ByName("key_ranges")).List()
	for _, s := range spans {
		e := list.AppendMutable().Message()
		e.Set(e.Descriptor().Fields().ByName("start_hash"), protoreflect.ValueOf(s.first))
		e.Set(e.Descriptor().Fields().ByName("end_hash"), protoreflect.ValueOf(s.last))
	}
	out := answer{dynamicpb.NewMessage(r.file.Messages().ByName("StartStreamingResponse"))}
	ctx, cancel := context.WithTimeout(f.t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(f.t, r.conn.Invoke(ctx, "/storage.StorageNodeService/StartStreaming", m, out.Message, grpc.WaitForReady(true)))
	require.True(f.t, out.success(), out.text("message"))
}

func ends(from, to int) map[string]any {
	return map[string]any{"source_node_id": fmt.Sprint("node-", from), "target_node_id": fmt.Sprint("node-", to)}
}

// rearrange changes the ring as coordinators do: it streams what gets another primary, waits, changes the
// ring, and stops. meanwhile is called when the streams have begun.
func (f *fleet) rearrange(next layout, meanwhile func()) {
	f.t.Helper()
	begun := time.Now()
	moved := f.ring.moved(next)
	for pair, spans := range moved {
		f.startStreaming(pair[0], pair[1], spans)
		slices.Reverse(spans)
		f.startStreaming(pair[0], pair[1], spans) // it did not get the answer
	}
	if meanwhile != nil {
		meanwhile()
	}
	states := map[string]bool{}
	for pair := range moved {
		podtest.Eventually(f.t, time.Minute, fmt.Sprintf("the stream %v is complete", pair), func() bool {
			a, err := f.nodes[pair[0]].call(f.t.Context(), "GetStreamStatus", ends(pair[0], pair[1]))
			if err != nil {
				return false // a coordinator asks again
			}
			states[a.text("state")] = true
			require.Contains(f.t, []string{"copying", "streaming", "syncing", "completed"}, a.text("state"))
			require.True(f.t, a.get("active").Bool())
			return a.text("state") == "completed"
		})
	}
	complete := time.Since(begun)
	f.mu.Lock()
	f.ring = next
	f.mu.Unlock()
	for pair := range moved {
		a := f.nodes[pair[0]].ok("GetStreamStatus", ends(pair[0], pair[1]), grpc.WaitForReady(true))
		require.Equal(f.t, "completed", a.text("state"))
		require.True(f.t, a.get("active").Bool(), "it forwards until it is stopped")
		for range 2 {
			require.True(f.t, f.nodes[pair[0]].ok("StopStreaming", ends(pair[0], pair[1])).success())
		}
		require.True(f.t, f.nodes[pair[1]].ok("NotifyStreamingComplete", ends(pair[0], pair[1])).success())
	}
	for pair := range moved {
		podtest.Eventually(f.t, time.Minute, fmt.Sprintf("the stream %v is over", pair), func() bool {
			a, err := f.nodes[pair[0]].call(f.t.Context(), "GetStreamStatus", ends(pair[0], pair[1]))
			return err == nil && !a.get("active").Bool() && a.text("state") == "completed"
		})
	}
	fmt.Printf("%s: %d streams complete after %s, over after %s, states %v\n", f.t.Name(), len(moved), complete.Round(time.Millisecond),
		time.Since(begun).Round(time.Millisecond), slices.Sorted(maps.Keys(states)))
}

// A coordinator that adds, removes and replaces nodes must find every key, deletion and repair at the new
// primary, whatever is restarted while it streams. Its nodes know of each other from it alone.
func TestCoordinatorChangesItsRing(t *testing.T) {
	pods, _ := podtest.Start(t, localpod.Options{Nodes: 5, NoCompactor: true, NoHealthAgent: true})
	all := pods.All()
	f := &fleet{t: t, pods: pods, nodes: replicas(t, all), ring: layoutOf(0, 1, 2), facts: make([]fact, fleetKeys), errs: make(chan error, 2)}
	random := rand.New(rand.NewPCG(1, 1))
	for i := range f.facts {
		require.NoError(t, f.write(i, random))
	}
	f.begin()

	f.rearrange(layoutOf(0, 1, 2, 3), nil)  // add one
	f.rearrange(layoutOf(0, 2, 3), func() { // remove one: it is the source of everything
		require.NoError(t, all[1].Node.Kill())
		require.NoError(t, all[1].Migrator.Kill())
	})
	f.rearrange(layoutOf(0, 2, 4), func() { // replace one
		require.NoError(t, all[4].Node.Kill())
		require.NoError(t, all[3].Migrator.Kill())
	})
	f.end()
	f.holds()
}

// A stream that a coordinator never ends forwards for ever, also after everything was started anew.
func TestStreamForwardsUntilItIsStopped(t *testing.T) {
	pods, _ := podtest.Start(t, localpod.Options{Nodes: 2, NoCompactor: true, NoHealthAgent: true})
	nodes := replicas(t, pods.All())
	f := &fleet{t: t, pods: pods, nodes: nodes}
	c := &coordinator{id: "coordinator-a", nodes: nodes[:1]}
	require.Equal(t, 1, c.put("before", "1"))
	f.startStreaming(0, 1, []span{{5, 5}}) // the whole ring
	status := func() string {
		a, err := nodes[0].call(t.Context(), "GetStreamStatus", ends(0, 1))
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint(a.text("state"), " ", a.get("active").Bool())
	}
	completed := func() bool { return status() == "completed true" }
	podtest.Eventually(t, 30*time.Second, "the stream is complete", completed)
	arrives := func(key, want string) {
		t.Helper()
		podtest.Eventually(t, 20*time.Second, key+" arrives", func() bool {
			a, err := nodes[1].call(t.Context(), "Read", map[string]any{"tenant_id": "shop", "key": key})
			return err == nil && a.success() && a.bytes() == want && len(a.clock("vector_clock")) > 0
		})
	}
	arrives("before", "1")
	require.Equal(t, 1, c.put("after", "2"))
	arrives("after", "2")
	vc := nodes[0].read("before").clock("vector_clock")
	vc[c.id]++
	require.True(t, nodes[0].ok("Delete", map[string]any{"tenant_id": "shop", "key": "before", "vector_clock": vc}).success())
	arrives("before", "")
	repair := map[string]any{"tenant_id": "shop", "key": "repaired", "value": []byte("3"), "vector_clock": clock{"elsewhere": 4}}
	require.True(t, nodes[0].ok("Repair", repair).success())
	arrives("repaired", "3")

	for i, pod := range pods.All() {
		pod.Halt()
		require.NoError(t, pod.Start())
		podtest.Eventually(t, 30*time.Second, "the node is back", func() bool { return pod.IsReady(t.Context()) })
		require.Eventually(t, func() bool { return c.put("again", fmt.Sprint(i)) == 1 }, 10*time.Second, 50*time.Millisecond)
		arrives("again", fmt.Sprint(i))
		require.True(t, completed(), status())
	}

	require.True(t, nodes[0].ok("StopStreaming", ends(0, 1)).success())
	podtest.Eventually(t, 20*time.Second, "the stream is over", func() bool { return status() == "completed false" })
	incoming := func() float64 { return podtest.Value(t, pods.All()[1].OpsAddr, "pairdb_replica_ingest_streams") }
	podtest.Eventually(t, 20*time.Second, "nothing comes in any more", func() bool { return incoming() == 0 })
	require.Equal(t, 1, c.put("late", "4"))
	require.Zero(t, incoming(), "it forwards still")
	require.Empty(t, nodes[1].read("late").clock("vector_clock"), "it forwards still")

	// Wanted again, it is another stream, which brings what was missed.
	f.startStreaming(0, 1, []span{{5, 5}})
	podtest.Eventually(t, 30*time.Second, "the stream is complete", completed)
	arrives("late", "4")
}

// Keys that a coordinator has copied are acknowledged by the target, or the answer is an error.
func TestCoordinatorCopiesKeys(t *testing.T) {
	pods, _ := podtest.Start(t, localpod.Options{Nodes: 2, NoCompactor: true, Env: []string{"PAIRDB_REPLICATION_FACTOR=1"}})
	nodes := replicas(t, pods.All())
	c := &coordinator{id: "coordinator-a", nodes: nodes[:1]}
	for i := range 50 {
		require.Equal(t, 1, c.put(fmt.Sprintf("item/%02d", i), fiftyBytes(i)))
	}
	copied := func(fields map[string]any) answer {
		t.Helper()
		fields["tenant_id"], fields["target_node_id"] = "shop", "node-1"
		var a answer
		podtest.Eventually(t, 30*time.Second, "the members know each other", func() bool {
			a = nodes[0].ok("ReplicateData", fields)
			return a.success() || a.code() != 1
		})
		return a
	}
	a := copied(map[string]any{"key_range_start": "item/10", "key_range_end": "item/20"})
	require.True(t, a.success(), a.text("error_message"))
	require.EqualValues(t, 10, a.get("keys_replicated").Int())
	for i := range 50 {
		got := nodes[1].read(fmt.Sprintf("item/%02d", i))
		require.Equal(t, i >= 10 && i < 20, got.bytes() == fiftyBytes(i), "item %d", i)
		if i >= 10 && i < 20 {
			require.Equal(t, nodes[0].read(fmt.Sprintf("item/%02d", i)).clock("vector_clock"), got.clock("vector_clock"), "with its clock")
		}
	}
	unknown := nodes[0].ok("ReplicateData", map[string]any{"tenant_id": "shop", "target_node_id": "node-9"})
	require.False(t, unknown.success())
	require.Equal(t, 1, unknown.code())
	require.NotEmpty(t, unknown.text("error_message"))
}

func fiftyBytes(i int) string { return fmt.Sprintf("value-%050d", i) }
