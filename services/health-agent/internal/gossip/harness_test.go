package gossip

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/pairdb/pairdb/libs/membership"
)

// TestMain waits for memberlist: a probe that is under way when it is shut down ends with its interval.
func TestMain(m *testing.M) {
	code := m.Run()
	deadline := time.Now().Add(15 * time.Second)
	err := goleak.Find()
	for err != nil && time.Now().Before(deadline) {
		err = goleak.Find() // it waits between its own attempts
	}
	if err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// lines is a log that a test can read.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// count returns how many lines have all the words.
func (l *lines) count(words ...string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
next:
	for line := range strings.Lines(l.b.String()) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue next
			}
		}
		n++
	}
	return n
}

// member is a Gossip of a test.
type member struct {
	*Gossip
	log *lines
}

const cluster = "c1"

// start opens a member on loopback; change may be nil.
func start(t *testing.T, id string, change func(o *Options)) *member {
	t.Helper()
	out := &lines{}
	o := Options{
		NodeID: id, ClusterID: cluster, Addr: "127.0.0.1:0", Metrics: NewMetrics(),
		Log:  slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Meta: Meta{GRPCAddr: id + ":8080", Version: "v1", DiskPercent: -1},
	}
	if change != nil {
		change(&o)
	}
	g, err := Open(o)
	require.NoError(t, err)
	m := &member{Gossip: g, log: out}
	t.Cleanup(func() { require.NoError(t, g.Close()) })
	return m
}

func seeds(of ...*member) func(o *Options) {
	return func(o *Options) {
		for _, m := range of {
			o.Seeds = append(o.Seeds, m.Addr())
		}
	}
}

// crash ends a member without a word.
func (m *member) crash(t *testing.T) {
	t.Helper()
	m.close.Do(func() { m.err = m.stop(false) })
	require.NoError(t, m.err)
}

// declare makes a member declare itself.
func (m *member) declare(t *testing.T, state membership.State, version uint64) membership.Declaration {
	t.Helper()
	d := membership.Declaration{NodeID: m.o.NodeID, Version: version, State: state, Incarnation: "i", VirtualNodes: 150, DeclaredAt: 1}
	require.NoError(t, m.Merge(d))
	return d
}

// sees returns what a member sees of another; Unseen when it is not even declared.
func (m *member) sees(id string) Member {
	for _, other := range m.View().Members {
		if other.Declared.NodeID == id {
			return other
		}
	}
	return Member{Liveness: Unseen}
}

func (m *member) refused(reason string) int {
	return int(testutil.ToFloat64(m.o.Metrics.refused.WithLabelValues(reason)))
}

func (m *member) messages(kind string) int {
	return int(testutil.ToFloat64(m.o.Metrics.messages.WithLabelValues(kind)))
}

const patience = 40 * time.Second // loopback takes milliseconds; a busy machine may take longer

func eventually(t *testing.T, condition func() bool, message string, args ...any) {
	t.Helper()
	require.Eventually(t, condition, patience, 5*time.Millisecond, append([]any{message}, args...)...)
}

// meet waits until all see each other alive and declared.
func meet(t *testing.T, all ...*member) {
	t.Helper()
	for i, m := range all {
		m.declare(t, membership.Up, 1)
		for j := range all[:i] {
			eventually(t, func() bool {
				return m.sees(all[j].o.NodeID).Liveness == Alive && all[j].sees(m.o.NodeID).Liveness == Alive
			}, "%s and %s meet", m.o.NodeID, all[j].o.NodeID)
		}
	}
}

// raw is a memberlist without our rules, as an attacker or another program would have it.
type raw struct {
	meta, state []byte
	list        *memberlist.Memberlist
}

func (r *raw) NodeMeta(int) []byte             { return r.meta }
func (r *raw) NotifyMsg([]byte)                {}
func (r *raw) GetBroadcasts(int, int) [][]byte { return nil }
func (r *raw) LocalState(bool) []byte          { return r.state }
func (r *raw) MergeRemoteState([]byte, bool)   {}

func startRaw(t *testing.T, id, label string, meta, state []byte) *raw {
	t.Helper()
	r := &raw{meta: meta, state: state}
	c := memberlist.DefaultLocalConfig()
	c.Name, c.Label, c.BindAddr, c.BindPort = id, label, "127.0.0.1", 0
	c.Delegate, c.LogOutput = r, &lines{}
	var err error
	r.list, err = memberlist.Create(c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.list.Shutdown()) })
	return r
}

// packet sends one UDP packet to a member.
func packet(t *testing.T, to *member, b []byte) {
	t.Helper()
	conn, err := net.Dial("udp", to.Addr())
	require.NoError(t, err)
	_, err = conn.Write(b)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
}

// labelled puts memberlist's header of a label before a packet: 244, length, label.
func labelled(label string, b []byte) []byte {
	return append(append([]byte{244, byte(len(label))}, label...), b...)
}

// aliveMessage is memberlist's message that a member is there, with any meta: the type, then a map of
// MessagePack.
func aliveMessage(id string, port uint16, meta []byte) []byte {
	text := func(s string) []byte { return append([]byte{0xa0 | byte(len(s))}, s...) }
	long := func(b []byte) []byte { return append([]byte{0xda, byte(len(b) >> 8), byte(len(b))}, b...) }
	b := []byte{4, 0x86}
	for _, field := range [][]byte{
		text("Incarnation"), {1},
		text("Node"), text(id),
		text("Addr"), text("\x7f\x00\x00\x01"),
		text("Port"), {0xcd, byte(port >> 8), byte(port)},
		text("Meta"), long(meta),
		text("Vsn"), text("\x01\x05\x02\x00\x00\x00"),
	} {
		b = append(b, field...)
	}
	return b
}
