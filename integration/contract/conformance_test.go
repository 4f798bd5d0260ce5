package contract

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/localpod"
)

// clock is a vector clock as a coordinator keeps it.
type clock map[string]int64

// join raises every entry to the larger one.
func (c clock) join(o clock) {
	for id, n := range o {
		c[id] = max(c[id], n)
	}
}

// replica is a storage node as a coordinator reaches it: plaintext, no metadata, default limits, and
// messages that were built from the table.
type replica struct {
	t    *testing.T
	file protoreflect.FileDescriptor
	conn *grpc.ClientConn
}

// replicas connects to each pod.
func replicas(t *testing.T, pods []*localpod.Pod) []*replica {
	t.Helper()
	file := storage.descriptor(t)
	var out []*replica
	for _, pod := range pods {
		conn, err := grpc.NewClient(pod.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, conn.Close()) })
		out = append(out, &replica{t: t, file: file, conn: conn})
	}
	return out
}

// message makes a message with the given fields; a clock becomes a VectorClock.
func (r *replica) message(name string, fields map[string]any) *dynamicpb.Message {
	m := dynamicpb.NewMessage(r.file.Messages().ByName(protoreflect.Name(name)))
	for key, v := range fields {
		d := m.Descriptor().Fields().ByName(protoreflect.Name(key))
		require.NotNil(r.t, d, "%s.%s", name, key)
		c, ok := v.(clock)
		if !ok {
			m.Set(d, protoreflect.ValueOf(v))
			continue
		}
		vector := m.Mutable(d).Message()
		entries := vector.Mutable(vector.Descriptor().Fields().ByName("entries")).List()
		for id, n := range c {
			e := entries.AppendMutable().Message()
			e.Set(e.Descriptor().Fields().ByName("coordinator_node_id"), protoreflect.ValueOf(id))
			e.Set(e.Descriptor().Fields().ByName("logical_timestamp"), protoreflect.ValueOf(n))
		}
	}
	return m
}

// answer reads the fields of a message by name.
type answer struct{ *dynamicpb.Message }

func (a answer) get(name string) protoreflect.Value {
	return a.Get(a.Descriptor().Fields().ByName(protoreflect.Name(name)))
}

func (a answer) text(name string) string { return a.get(name).String() }
func (a answer) bytes() string           { return string(a.get("value").Bytes()) }
func (a answer) success() bool           { return a.get("success").Bool() }
func (a answer) code() int               { return int(a.get("error_code").Enum()) }

func (a answer) clock(name string) clock {
	out := clock{}
	m := a.get(name).Message()
	entries := m.Get(m.Descriptor().Fields().ByName("entries")).List()
	for i := range entries.Len() {
		e := entries.Get(i).Message()
		out[e.Get(e.Descriptor().Fields().ByName("coordinator_node_id")).String()] = e.Get(e.Descriptor().Fields().ByName("logical_timestamp")).Int()
	}
	return out
}

// call calls a method with the given fields.
func (r *replica) call(ctx context.Context, method string, fields map[string]any, o ...grpc.CallOption) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	d := r.file.Services().ByName("StorageNodeService").Methods().ByName(protoreflect.Name(method))
	out := answer{dynamicpb.NewMessage(d.Output())}
	err := r.conn.Invoke(ctx, "/storage.StorageNodeService/"+method, r.message(string(d.Input().Name()), fields), out.Message, o...)
	return out, err
}

// ok is call for one whose status must be OK.
func (r *replica) ok(method string, fields map[string]any, o ...grpc.CallOption) answer {
	r.t.Helper()
	out, err := r.call(r.t.Context(), method, fields, o...)
	require.NoError(r.t, err, method)
	return out
}

func (r *replica) read(key string, o ...grpc.CallOption) answer {
	r.t.Helper()
	return r.ok("Read", map[string]any{"tenant_id": "shop", "key": key}, o...)
}

// stream returns all that a range holds, by key.
func (r *replica) stream(start, end string) (out []answer) {
	r.t.Helper()
	s, err := r.conn.NewStream(r.t.Context(), &grpc.StreamDesc{ServerStreams: true}, "/storage.StorageNodeService/StreamKeys")
	require.NoError(r.t, err)
	require.NoError(r.t, s.SendMsg(r.message("StreamKeysRequest", map[string]any{
		"tenant_id": "shop", "key_range_start": start, "key_range_end": end, "batch_size": int32(100),
	})))
	require.NoError(r.t, s.CloseSend())
	for {
		entry := answer{dynamicpb.NewMessage(r.file.Messages().ByName("KeyValueEntry"))}
		err := s.RecvMsg(entry.Message)
		if errors.Is(err, io.EOF) {
			return out
		}
		require.NoError(r.t, err)
		out = append(out, entry)
	}
}

// coordinator keeps keys on all of its replicas, the way that existing ones do.
type coordinator struct {
	id       string
	nodes    []*replica
	requests int // each has its own idempotency key
}

// seen reads a key everywhere and returns what the replicas that answer know of it together: the value
// of the largest clock, empty if there is none, and the joined clock.
func (c *coordinator) seen(key string) (value string, joined clock, answered int) {
	joined = clock{}
	var best clock
	for _, r := range c.nodes {
		a, err := r.call(r.t.Context(), "Read", map[string]any{"tenant_id": "shop", "key": key})
		if err != nil || !a.success() {
			continue
		}
		answered++
		mine := a.clock("vector_clock")
		newer := maps.Clone(best)
		if newer == nil {
			newer = clock{}
		}
		newer.join(mine)
		if best == nil || maps.Equal(newer, mine) {
			value, best = a.bytes(), mine
		}
		joined.join(mine)
	}
	return value, joined, answered
}

// write sends a value with a clock to every replica and returns how many acknowledged it.
func (c *coordinator) write(key, value string, vc clock) (acknowledged int) {
	c.requests++
	for _, r := range c.nodes {
		a, err := r.call(r.t.Context(), "Write", map[string]any{
			"tenant_id": "shop", "key": key, "value": []byte(value), "vector_clock": vc, "idempotency_key": fmt.Sprint(c.id, "/", c.requests),
		})
		if err == nil && a.success() {
			acknowledged++
		}
	}
	return acknowledged
}

// put reads, raises its own entry, and writes.
func (c *coordinator) put(key, value string) (acknowledged int) {
	_, vc, _ := c.seen(key)
	vc[c.id]++
	return c.write(key, value, vc)
}

// A coordinator that knows nothing of this node but the table must be able to do its work on it.
func TestCoordinatorWorksUnmodified(t *testing.T) {
	pods, _ := podtest.Start(t, localpod.Options{Nodes: 3, NoCompactor: true})
	nodes := replicas(t, pods.All())
	a, b := &coordinator{id: "coordinator-a", nodes: nodes}, &coordinator{id: "coordinator-b", nodes: nodes}

	value, vc, answered := a.seen("cart")
	require.Equal(t, 3, answered, "a key that is not there is an answer of each replica")
	require.Empty(t, value)
	require.Empty(t, vc)
	require.Equal(t, 3, a.put("cart", "apples"))
	require.Equal(t, 3, b.put("cart", "apples, pears"))
	for _, r := range nodes {
		got := r.read("cart")
		require.True(t, got.success())
		require.Equal(t, "apples, pears", got.bytes())
		require.Equal(t, clock{"coordinator-a": 1, "coordinator-b": 1}, got.clock("vector_clock"))
	}

	// Both read the same and write: neither value may be lost, and the next write merges.
	_, vcA, _ := a.seen("cart")
	vcB := maps.Clone(vcA)
	vcA["coordinator-a"]++
	vcB["coordinator-b"]++
	require.Equal(t, 3, a.write("cart", "from a", vcA))
	require.Equal(t, 3, b.write("cart", "from b", vcB))
	for i, pod := range pods.All() {
		native, err := podtest.Client(t, pod.Addr, client.Options{Tenant: "shop"}).Get(t.Context(), "cart")
		require.NoError(t, err)
		require.Len(t, native.Siblings, 2)
		got := nodes[i].read("cart")
		require.Contains(t, []string{"from a", "from b"}, got.bytes())
		require.Equal(t, clock{"coordinator-a": 2, "coordinator-b": 2}, got.clock("vector_clock"), "the joined clock")
	}
	require.Equal(t, 3, a.put("cart", "from both"))
	for i, pod := range pods.All() {
		native, err := podtest.Client(t, pod.Addr, client.Options{Tenant: "shop"}).Get(t.Context(), "cart")
		require.NoError(t, err)
		require.Empty(t, native.Siblings)
		require.Equal(t, "from both", nodes[i].read("cart").bytes())
	}

	// Late, repeated and reordered writes are done, and change nothing.
	require.Equal(t, 3, b.write("cart", "from b", vcB))
	require.Equal(t, 3, b.write("cart", "very late", clock{"coordinator-b": 1}))
	value, vc, _ = a.seen("cart")
	require.Equal(t, "from both", value)

	vc["coordinator-a"]++
	for _, r := range nodes {
		deleted := r.ok("Delete", map[string]any{"tenant_id": "shop", "key": "cart", "vector_clock": vc})
		require.True(t, deleted.success())
		require.Equal(t, vc, deleted.clock("updated_vector_clock"))
	}
	value, vc, answered = b.seen("cart")
	require.Equal(t, 3, answered)
	require.Empty(t, value)
	require.NotEmpty(t, vc, "the deletion has a clock, which the next write supersedes")
	require.Equal(t, 3, b.put("cart", "again"))
	require.Equal(t, "again", nodes[2].read("cart").bytes())

	walkRanges(t, a)
	for i, r := range nodes {
		health := r.ok("HealthCheck", nil)
		require.True(t, health.get("healthy").Bool())
		facts := health.get("metrics").Map()
		require.Equal(t, fmt.Sprint("node-", i), facts.Get(protoreflect.ValueOfString("node_id").MapKey()).String())
	}
}

// walkRanges lists and streams keys.
func walkRanges(t *testing.T, c *coordinator) {
	t.Helper()
	var want []string
	for i := range 50 {
		key := fmt.Sprintf("item/%02d", i)
		want = append(want, key)
		require.Equal(t, 3, c.put(key, strings.Repeat("v", 2000)))
	}
	r := c.nodes[1]
	var listed []string
	for start, more := "item/", true; more; {
		page := r.ok("GetKeyRange", map[string]any{"tenant_id": "shop", "key_range_start": start, "key_range_end": "item0", "max_keys": int32(7)})
		keys := page.get("keys").List()
		for i := range keys.Len() {
			listed = append(listed, keys.Get(i).String())
		}
		start, more = page.text("next_key"), page.get("has_more").Bool()
	}
	require.Equal(t, want, listed)

	vc := r.read(want[3]).clock("vector_clock")
	vc[c.id]++
	require.True(t, r.ok("Delete", map[string]any{"tenant_id": "shop", "key": want[3], "vector_clock": vc}).success())
	entries := r.stream("item/", "item0")
	require.Len(t, entries, len(want), "deletions are sent too")
	for i, e := range entries {
		require.Equal(t, "shop", e.text("tenant_id"))
		require.Equal(t, want[i], e.text("key"))
		require.Equal(t, i == 3, e.get("is_tombstone").Bool())
		require.InDelta(t, time.Now().Unix(), e.get("timestamp").Int(), 120)
		require.NotEmpty(t, e.clock("vector_clock"))
		require.Equal(t, i == 3, e.bytes() == "")
	}
}

// What a replica acknowledged before it was killed is there when it is back; what it missed comes with
// a repair, and then all say the same. Without migrators: they would bring it first.
func TestKilledReplicaIsRepaired(t *testing.T) {
	pods, _ := podtest.Start(t, localpod.Options{Nodes: 3, NoCompactor: true, NoMigrator: true})
	nodes := replicas(t, pods.All())
	c := &coordinator{id: "coordinator-a", nodes: nodes}
	var keys []string
	for i := range 20 {
		keys = append(keys, fmt.Sprint("key-", i))
		require.Equal(t, 3, c.put(keys[i], "before"))
	}
	lost := pods.All()[2]
	require.NoError(t, lost.Node.Kill())
	lost.Node.Stop() // nobody starts it again

	for _, key := range keys[:10] {
		require.Equal(t, 2, c.put(key, "meanwhile"))
	}
	require.Equal(t, 2, c.put("new", "meanwhile"))

	require.NoError(t, lost.Node.Start())
	podtest.Eventually(t, 30*time.Second, "the replica is back", func() bool { return lost.IsReady(t.Context()) })
	back := nodes[2]
	for i, key := range keys {
		got := back.read(key, grpc.WaitForReady(true))
		require.True(t, got.success())
		require.Equal(t, "before", got.bytes(), "acknowledged before the kill")
		if i < 10 {
			value, joined, answered := c.seen(key)
			require.Equal(t, 3, answered)
			require.Equal(t, "meanwhile", value)
			repair := map[string]any{"tenant_id": "shop", "key": key, "value": []byte(value), "vector_clock": joined}
			for range 2 { // a repeat changes nothing
				for _, r := range nodes {
					require.True(t, r.ok("Repair", repair).success())
				}
			}
		}
	}
	value, joined, _ := c.seen("new")
	require.Empty(t, back.read("new").bytes())
	require.True(t, back.ok("Repair", map[string]any{"tenant_id": "shop", "key": "new", "value": []byte(value), "vector_clock": joined}).success())

	for _, key := range append(slices.Clone(keys[:10]), "new") {
		for i, r := range nodes {
			got := r.read(key)
			require.Equal(t, "meanwhile", got.bytes(), "replica %d", i)
			require.Equal(t, nodes[0].read(key).clock("vector_clock"), got.clock("vector_clock"))
		}
	}
	for _, pod := range pods.All() {
		native, err := podtest.Client(t, pod.Addr, client.Options{Tenant: "shop"}).Get(t.Context(), keys[0])
		require.NoError(t, err)
		require.Empty(t, native.Siblings, "a repair is no conflict")
	}
	require.Equal(t, 3, c.put(keys[0], "after"))
}

// A status makes a coordinator take the node for dead: what it asked for wrongly, and what the node
// does not do, it is told in the answer.
func TestErrorsAreAnswers(t *testing.T) {
	pods, _ := podtest.Start(t, localpod.Options{NoCompactor: true})
	r := replicas(t, pods.All())[0]
	long := strings.Repeat("k", 1025)
	for i, bad := range []map[string]any{
		{"tenant_id": "", "key": "k"}, {"tenant_id": "a:b", "key": "k"}, {"tenant_id": "shop", "key": ""}, {"tenant_id": "shop", "key": long},
		{"tenant_id": "shop", "key": "k", "vector_clock": clock{"a": -1}},
		{"tenant_id": "shop", "key": "k", "vector_clock": clock{strings.Repeat("a", 129): 1}},
		{"tenant_id": "shop", "key": "k", "idempotency_key": "a\x00b"},
		{"tenant_id": "shop", "key": "k", "value": make([]byte, 5<<20)},
	} {
		got := r.ok("Write", bad)
		require.False(t, got.success(), "case %d", i)
		require.Equal(t, 1, got.code(), "case %d", i)
		require.NotEmpty(t, got.text("error_message"), "case %d", i)

		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-pairdb-errors", "status")
		_, err := r.call(ctx, "Write", bad)
		require.Equal(t, codes.InvalidArgument, status.Code(err), "case %d", i)
	}
	require.Empty(t, r.read("k").bytes())

	// A value that a coordinator can't receive was stored by somebody else: an error, not absence.
	native := podtest.Client(t, pods.All()[0].Addr, client.Options{Tenant: "shop"})
	_, err := native.Put(t.Context(), "large", make([]byte, 5<<20))
	require.NoError(t, err)
	large := r.read("large")
	require.False(t, large.success())
	require.NotZero(t, large.code())
	require.NotEmpty(t, large.text("error_message"))

	for method, fields := range map[string]map[string]any{
		"ReplicateData":           {"tenant_id": "shop", "target_node_id": "node-1"},
		"DrainNode":               {"graceful": true, "timeout_seconds": int32(-1)},
		"StartStreaming":          {"target_node_id": "node-1", "target_host": "127.0.0.1", "target_port": int32(1)}, // no range is not every range
		"StopStreaming":           {"source_node_id": "node-7", "target_node_id": "node-1"},
		"NotifyStreamingComplete": {"source_node_id": "node-1", "target_node_id": "node-2"},
	} {
		require.False(t, r.ok(method, fields).success(), method)
	}
	stream := r.ok("GetStreamStatus", map[string]any{"target_node_id": "node-1"})
	require.False(t, stream.get("active").Bool())
	require.Equal(t, "unknown", stream.text("state"))
	require.True(t, r.ok("Write", map[string]any{"tenant_id": "shop", "key": "k", "vector_clock": clock{"a": 1}}).success())
}
