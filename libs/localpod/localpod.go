// Package localpod runs storage pods as processes of this machine, with an embedded NATS server:
// for development (`pairctl dev`) and for tests that need the real binaries. It never touches data:
// a pod's directory belongs to its storage-node.
package localpod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Options of a set of local pods.
type Options struct {
	// Dir keeps one directory per pod and NATS' own. It is created if needed.
	Dir string
	// Nodes is the number of pods; default 1.
	Nodes int
	// Binaries is the directory of storage-node and compactor; default that of this executable.
	Binaries string
	// Log receives the output of all processes, each line with the process as prefix. Writes come
	// one at a time. Default: discarded.
	Log io.Writer
	// Env is added to the environment of every process, as KEY=value.
	Env []string
	// FixedPorts lets the first pod listen on the default ports (8080, 9091, 9092) when they are
	// free. Otherwise, and for the other pods, free ports are chosen.
	FixedPorts bool
	// NoCompactor starts the pods without their compactor.
	NoCompactor bool
}

// Pods is a running set of pods.
type Pods struct {
	options Options
	nats    *server.Server
	log     *prefixer
	nodes   []*Pod
	failed  chan error
	stop    sync.Once
}

// Pod is one storage-node with its sidecars.
type Pod struct {
	// Name is the node id.
	Name string
	// Dir is the pod's directory; DataDir the volume of its storage-node.
	Dir, DataDir string
	// Addr is the gRPC address, OpsAddr the address of /metrics, /health and /ready, both
	// "127.0.0.1:port". CompactorOpsAddr is the same of the compactor.
	Addr, OpsAddr, CompactorOpsAddr string
	// Socket is the path of the pod's unix socket.
	Socket string
	// Node and Compactor are the processes; Compactor is nil without one.
	Node, Compactor *Process
}

// maxSocketPath is the longest path that a unix socket address holds on Linux.
const maxSocketPath = 107

// Start starts NATS and the pods and returns at once; Ready waits for them.
func Start(o Options) (*Pods, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	p := &Pods{options: o, log: newPrefixer(o.Log), failed: make(chan error, 1)}
	var err error
	if p.nats, err = startNATS(filepath.Join(o.Dir, "nats")); err != nil {
		return nil, err
	}
	for i := range o.Nodes {
		pod, err := p.startPod(i)
		if err != nil {
			p.Stop()
			return nil, err
		}
		p.nodes = append(p.nodes, pod)
	}
	return p, nil
}

func (o *Options) setDefaults() error {
	if o.Nodes == 0 {
		o.Nodes = 1
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	if o.Binaries == "" {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find the binaries: %w", err)
		}
		o.Binaries = filepath.Dir(exe)
	}
	for _, b := range []string{"storage-node", "compactor"} {
		if _, err := os.Stat(filepath.Join(o.Binaries, b)); err != nil {
			return fmt.Errorf("%s is not in %s: run `make build` first", b, o.Binaries)
		}
	}
	var err error
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return fmt.Errorf("directory of the pods: %w", err)
	}
	return os.MkdirAll(o.Dir, 0o770)
}

// All returns the pods in the order of their numbers.
func (p *Pods) All() []*Pod { return p.nodes }

// NATSURL is where the embedded NATS server listens.
func (p *Pods) NATSURL() string { return p.nats.ClientURL() }

// Failed delivers the error of a process that must not be started again: wrong configuration,
// locked or damaged data.
func (p *Pods) Failed() <-chan error { return p.failed }

// Stop ends the processes, sidecars before their node, and waits for them. It is idempotent.
func (p *Pods) Stop() {
	p.stop.Do(func() {
		var wg sync.WaitGroup
		for _, pod := range p.nodes {
			wg.Go(pod.stop)
		}
		wg.Wait()
		p.nats.Shutdown()
		p.nats.WaitForShutdown()
		p.log.Flush()
	})
}

func (pod *Pod) stop() {
	if pod.Compactor != nil {
		pod.Compactor.Stop()
	}
	pod.Node.Stop()
}

func (p *Pods) startPod(i int) (*Pod, error) {
	name := "node-" + strconv.Itoa(i)
	pod := &Pod{Name: name, Dir: filepath.Join(p.options.Dir, name)}
	pod.DataDir = filepath.Join(pod.Dir, "data")
	pod.Socket = filepath.Join(pod.Dir, "node.sock")
	if len(pod.Socket) > maxSocketPath {
		return nil, fmt.Errorf("the path of the socket %s is longer than %d bytes: choose a shorter directory", pod.Socket, maxSocketPath)
	}
	if err := os.MkdirAll(pod.DataDir, 0o770); err != nil {
		return nil, fmt.Errorf("data directory of %s: %w", name, err)
	}
	fixed := p.options.FixedPorts && i == 0
	addrs, err := addresses(fixed, 8080, 9091, 9092)
	if err != nil {
		return nil, err
	}
	pod.Addr, pod.OpsAddr, pod.CompactorOpsAddr = addrs[0], addrs[1], addrs[2]
	env := append([]string{
		"PAIRDB_NODE_ID=" + name,
		"PAIRDB_DATA_DIR=" + pod.DataDir,
		"PAIRDB_SOCKET=" + pod.Socket,
		"PAIRDB_LOG_FORMAT=text",
	}, p.options.Env...)
	pod.Node = p.process("storage-node", name+" storage-node", slices.Concat(env,
		[]string{"PAIRDB_GRPC_ADDR=" + pod.Addr, "PAIRDB_OPS_ADDR=" + pod.OpsAddr}))
	if err := pod.Node.Start(); err != nil {
		return nil, err
	}
	if p.options.NoCompactor {
		return pod, nil
	}
	pod.Compactor = p.process("compactor", name+" compactor   ", slices.Concat(env,
		[]string{"PAIRDB_COMPACTOR_OPS_ADDR=" + pod.CompactorOpsAddr}))
	if err := pod.Compactor.Start(); err != nil {
		pod.Node.Stop()
		return nil, err
	}
	return pod, nil
}

func (p *Pods) process(binary, label string, env []string) *Process {
	return &Process{
		path:  filepath.Join(p.options.Binaries, binary),
		label: label,
		env:   env,
		log:   p.log,
		fatal: func(err error) {
			select {
			case p.failed <- err:
			default: // one reason is enough
			}
		},
	}
}

// Ready waits until every node answers /ready, a process has failed for good, or ctx ends.
func (p *Pods) Ready(ctx context.Context) error {
	for _, pod := range p.nodes {
		if err := p.readyPod(ctx, pod); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pods) readyPod(ctx context.Context, pod *Pod) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if pod.IsReady(ctx) {
			return nil
		}
		select {
		case <-tick.C:
		case err := <-p.failed:
			return err
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", pod.Name, ctx.Err())
		}
	}
}

// IsReady asks the node once.
func (pod *Pod) IsReady(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+pod.OpsAddr+"/ready", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body) // only the status counts
	return resp.StatusCode == http.StatusOK
}

// addresses returns one free loopback address per preferred port: the preferred ones, or any.
// Another program may take a port between the check and its use; the process then says so.
func addresses(fixed bool, preferred ...int) ([]string, error) {
	out := make([]string, 0, len(preferred))
	held := make([]net.Listener, 0, len(preferred))
	defer func() {
		for _, l := range held {
			l.Close()
		}
	}()
	for _, port := range preferred {
		var l net.Listener
		err := errors.New("any port will do")
		if fixed {
			l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		}
		if err != nil {
			if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
				return nil, fmt.Errorf("find a free port: %w", err)
			}
		}
		held = append(held, l)
		out = append(out, l.Addr().String())
	}
	return out, nil
}

func startNATS(dir string) (*server.Server, error) {
	s, err := server.NewServer(&server.Options{
		ServerName: "localpod", Host: "127.0.0.1", Port: server.RANDOM_PORT,
		JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true,
	})
	if err != nil {
		return nil, fmt.Errorf("embedded NATS: %w", err)
	}
	go s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		s.Shutdown()
		return nil, errors.New("embedded NATS: not ready after 10 s")
	}
	return s, nil
}
