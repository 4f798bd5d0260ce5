package localpod

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Pods are told of each other's ports before they start: one that is given twice, or that is taken for
// UDP, is a pod that never joins.
func TestPortsAreDifferentAndFreeForTheirProtocols(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	preferred := taken.Addr().(*net.TCPAddr).Port
	wanted := []port{{number: preferred, fixed: true}}
	for range 50 {
		wanted = append(wanted, port{udp: true}, port{})
	}
	addrs, err := addresses(wanted, nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{taken.Addr().String(): true}
	for i, addr := range addrs {
		if seen[addr] {
			t.Fatalf("%s is given twice", addr)
		}
		seen[addr] = true
		if wanted[i].udp {
			u, err := net.ListenPacket("udp", addr)
			if err != nil {
				t.Fatal(err)
			}
			u.Close()
		}
	}
}

// Clients of NATS only find it again where it was.
func TestNATSComesBackWhereItWas(t *testing.T) {
	p := &Pods{options: Options{Dir: t.TempDir()}, log: newPrefixer(io.Discard), natsPort: server.RANDOM_PORT}
	defer p.Stop()
	for round := range 3 {
		if err := p.StartNATS(); err != nil {
			t.Fatal(err)
		}
		if err := p.StartNATS(); err != nil {
			t.Fatal("a second start:", err)
		}
		url := p.NATSURL()
		if got := p.nats.ClientURL(); got != url {
			t.Fatalf("round %d: NATS is at %s, pods were told %s", round, got, url)
		}
		p.StopNATS()
		p.StopNATS()
		if _, err := net.Dial("tcp", url[len("nats://"):]); err == nil {
			t.Fatal("it listens after its stop")
		}
	}
}

// A power cut in a test must neither be survived by the process nor undone by its supervisor.
func TestHaltedProcessStaysAway(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	p := &Process{path: script, label: "script", log: newPrefixer(io.Discard), fatal: func(err error) { t.Error(err) }}
	for range 2 {
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		p.Halt()
		if took := time.Since(begun); took > stopTimeout/2 {
			t.Fatalf("it took %s", took)
		}
		if err := p.Signal(syscall.Signal(0)); err == nil {
			t.Fatal("it runs")
		}
	}
	if p.Restarts() != 0 {
		t.Fatalf("it was started again %d times", p.Restarts())
	}
}

// A pod that is added must not get the port of one that is stopped and will be started again.
func TestPortsOfStoppedPodsAreNotGivenAway(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().(*net.TCPAddr)
	free.Close()
	got, err := addresses([]port{{number: addr.Port, fixed: true}}, map[string]bool{addr.String(): true})
	if err != nil {
		t.Fatal(err)
	}
	if got[0] == addr.String() {
		t.Fatalf("%s is given to two pods", got[0])
	}
}

// fakeBinaries are programs that do nothing until they are asked to end.
func fakeBinaries(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"storage-node", "compactor", "migrator", "health-agent"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\ntrap 'exit 0' TERM\nwhile :; do sleep 0.05; done\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// A pod that is added without the others as seeds is a cluster of its own, and takes the data apart.
func TestAddedPodKnowsTheOthers(t *testing.T) {
	dir, err := os.MkdirTemp("", "pods") // t.TempDir can be longer than a socket may be
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	p, err := Start(Options{Dir: dir, Nodes: 2, Binaries: fakeBinaries(t), NoCompactor: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	added, err := p.Add(ctx, "PAIRDB_ZONE=b")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a pod whose node never serves: %v", err)
	}
	if added.Name != "node-2" || len(p.All()) != 3 || added.Migrator == nil || added.Compactor != nil {
		t.Fatalf("added %+v to %d pods", added, len(p.All()))
	}
	seeds := ""
	for _, kv := range added.HealthAgent.env {
		if v, ok := strings.CutPrefix(kv, "PAIRDB_GOSSIP_SEEDS="); ok {
			seeds = v
		}
	}
	for _, other := range p.All() {
		if !strings.Contains(seeds, other.GossipAddr) {
			t.Errorf("seeds %s are without %s", seeds, other.Name)
		}
	}
	for _, want := range []string{"PAIRDB_ZONE=b", "PAIRDB_MIGRATOR_OPS_ADDR=" + added.MigratorOpsAddr} {
		if !slices.Contains(added.Migrator.env, want) {
			t.Errorf("the environment of its migrator is without %s", want)
		}
	}
	if slices.Contains(added.Node.env, "PAIRDB_JOIN=at-once") {
		t.Error("it does not wait for its data")
	}
	p.Stop()
	if _, err := p.Add(t.Context()); err == nil {
		t.Fatal("a pod was added to what is stopped: nobody would stop it")
	}
}

// Wiping the directory of a node that runs would lose what it acknowledges.
func TestOnlyStoppedPodsAreWiped(t *testing.T) {
	dir, err := os.MkdirTemp("", "pods")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	p, err := Start(Options{Dir: dir, Binaries: fakeBinaries(t), NoHealthAgent: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	pod := p.All()[0]
	if !slices.Contains(pod.Node.env, "PAIRDB_JOIN=at-once") {
		t.Error("a node that nobody can bootstrap waits for it")
	}
	kept := filepath.Join(pod.DataDir, "kept")
	if err := os.WriteFile(kept, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := pod.Wipe(); err == nil {
		t.Fatal("a running pod was wiped")
	}
	if _, err := os.Stat(kept); err != nil {
		t.Fatal(err)
	}
	pod.Halt()
	if err := pod.Wipe(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(pod.DataDir); err != nil || len(left) > 0 {
		t.Fatalf("%v, %v", left, err)
	}
	if err := pod.Start(); err != nil {
		t.Fatal(err)
	}
}

// Nodes that stand somewhere else on a network are started by somebody else, know their address, and are
// told of no port that was meant for the loopback.
func TestPodsStandWhereTheyAreTold(t *testing.T) {
	dir, err := os.MkdirTemp("", "pods")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	host := func(number int) string { return "127.9.0." + strconv.Itoa(number+1) }
	starts := make(chan string, 100)
	p, err := Start(Options{
		Dir: dir, Nodes: 2, Binaries: fakeBinaries(t), NoCompactor: true, Host: host, NATSHost: "127.9.0.9",
		Prefix: func(pod *Pod, binary string) []string {
			starts <- pod.Name + " " + binary
			return []string{"env", "MARK=" + binary}
		},
		PodEnv: func(pod *Pod) ([]string, error) { return []string{"PAIRDB_ADVERTISE_ADDR=other:" + pod.Name}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	if !strings.Contains(p.NATSURL(), "127.9.0.9") {
		t.Fatal(p.NATSURL())
	}
	second := p.All()[1]
	if second.Addr != "127.9.0.2:8080" || second.GossipAddr != "127.9.0.2:7946" {
		t.Fatal(second.Addr, second.GossipAddr)
	}
	seen := map[string]int{}
	for range 6 {
		seen[<-starts]++
	}
	if len(seen) != 6 || seen["node-1 migrator"] != 1 {
		t.Fatal(seen)
	}
	pid := second.Node.PID()
	if pid == 0 {
		t.Fatal("it runs and has no number")
	}
	// env has execed the program by the time that it has its name.
	name := func() string {
		b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
		return string(b)
	}
	for deadline := time.Now().Add(5 * time.Second); !strings.Contains(name(), "storage-node") || strings.Contains(name(), "MARK"); {
		if time.Now().After(deadline) {
			t.Fatalf("%q", name())
		}
	}
	environ, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"MARK=storage-node", "PAIRDB_ADVERTISE_ADDR=other:node-1", "PAIRDB_GRPC_ADDR=127.9.0.2:8080"} {
		if !strings.Contains(string(environ), want+"\x00") {
			t.Fatalf("%s is not in %q", want, environ)
		}
	}
	second.Stop()
	if second.Node.PID() != 0 {
		t.Fatal("it has ended and has a number")
	}
}

// A pod that is added is ready or not whatever became of the others: one that was drained does not start
// again, and takes none of the new ones with it.
func TestAPodThatIsBrokenBreaksNoOther(t *testing.T) {
	dir, err := os.MkdirTemp("", "pods")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	binaries := fakeBinaries(t)
	p, err := Start(Options{Dir: dir, Nodes: 2, Binaries: binaries, NoCompactor: true, NoMigrator: true, NoHealthAgent: true,
		Prefix: func(pod *Pod, _ string) []string {
			if pod.Name == "node-0" {
				return []string{"sh", "-c", "exit 3"}
			}
			return nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	first, second := p.All()[0], p.All()[1]
	for deadline := time.Now().Add(5 * time.Second); first.Broken() == nil; {
		if time.Now().After(deadline) {
			t.Fatal("exit code 3 is not fatal")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := readyPod(ctx, second); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if err := readyPod(t.Context(), first); err == nil || !strings.Contains(err.Error(), "exit code 3") {
		t.Fatal(err)
	}
	select {
	case <-p.Failed():
	default:
		t.Fatal("nobody is told")
	}
}
