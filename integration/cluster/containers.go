package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/pairdb/pairdb/integration/pairdbtest"
)

// containers are pods whose processes are containers.
type containers struct {
	pods *pairdbtest.Cluster
	log  io.Writer

	mu    sync.Mutex
	nodes []*box                     // guarded by mu
	disks map[string]*disk           // by node
	cuts  map[string]*pairdbtest.Pod // guarded by mu; those that are out of the network
	ended bool                       // guarded by mu
}

// Containers returns a runner whose nodes are pods as in production: each process in a container of its own,
// all pods in one network of Docker, which must run on this machine. Only their user is another one: that of
// this process, which looks into their directories.
func Containers(images pairdbtest.Images) func(context.Context, Options) (Cluster, error) {
	return func(ctx context.Context, o Options) (_ Cluster, err error) {
		c := &containers{log: o.Log, disks: map[string]*disk{}, cuts: map[string]*pairdbtest.Pod{}}
		if o.DiskBytes > 0 {
			name := "node-" + strconv.Itoa(o.Nodes-1)
			if c.disks[name], err = mount(filepath.Join(o.Dir, name), o.DiskBytes); err != nil {
				return nil, err
			}
		}
		if c.pods, err = pairdbtest.Run(ctx, pairdbtest.Options{Nodes: o.Nodes, Images: images, Env: o.Env, Dir: o.Dir}); err != nil {
			return nil, err
		}
		for _, pod := range c.pods.Pods() {
			if _, err := c.adopt(pod); err != nil {
				c.Close()
				return nil, err
			}
		}
		return c, nil
	}
}

// adopt makes a node of a pod that runs, with a proxy before it: its address for clients stays the same when
// Docker gives it another one. Other nodes don't go through it: there is a network between them.
func (c *containers) adopt(pod *pairdbtest.Pod) (Node, error) {
	p, err := listen("127.0.0.1", pod.Addr)
	if err != nil {
		return nil, err
	}
	n := &box{pod: pod, slow: p, disk: c.disks[pod.Name], processes: map[Binary]*program{}}
	for _, b := range Binaries {
		n.processes[b] = &program{pod: pod, binary: string(b)}
		n.processes[b].keep()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes = append(c.nodes, n)
	return n, nil
}

func (c *containers) Nodes() []Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]Node, len(c.nodes))
	for i, n := range c.nodes {
		all[i] = n
	}
	return all
}

func (c *containers) Add(ctx context.Context) (Node, error) {
	pod, err := c.pods.Add(ctx)
	if err != nil {
		return nil, err
	}
	return c.adopt(pod)
}

func (c *containers) StopNATS()        { _ = c.pods.StopNATS(context.Background()) } // it may be away already
func (c *containers) StartNATS() error { return c.pods.StartNATS(context.Background()) }

// Cut takes a pod out of the network: a container has all of it or nothing.
func (c *containers) Cut(from, to Node) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cuts[from.Name()] != nil || c.cuts[to.Name()] != nil {
		return nil // nothing goes from one to the other
	}
	for _, pod := range c.pods.Pods() {
		if pod.Name == from.Name() {
			if err := pod.Disconnect(context.Background()); err != nil {
				return err
			}
			c.cuts[pod.Name] = pod
			return nil
		}
	}
	return fmt.Errorf("cut: there is no %s", from.Name())
}

func (c *containers) Mend() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for name, pod := range c.cuts {
		errs = append(errs, pod.Reconnect(context.Background()))
		delete(c.cuts, name)
	}
	return errors.Join(errs...)
}

func (c *containers) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	c.ended = true
	var all sync.WaitGroup
	for _, n := range c.nodes {
		all.Go(n.end)
	}
	all.Wait()
	// What can't be removed is found by whoever asks pairdbtest.Left; a log that can't be read is left out.
	for _, pod := range c.pods.Pods() {
		for _, b := range Binaries {
			c.record(pod, b)
		}
	}
	_ = c.pods.Terminate(context.Background())
}

// record writes what a process has said to the log of the cluster.
func (c *containers) record(pod *pairdbtest.Pod, b Binary) {
	from := pod.Container(string(b))
	if c.log == nil || from == nil {
		return
	}
	r, err := from.Logs(context.Background())
	if err != nil {
		return
	}
	defer r.Close()
	fmt.Fprintf(c.log, "--- %s %s\n", pod.Name, b)
	_, _ = io.Copy(c.log, r)
}

// box is a pod of containers as a Node.
type box struct {
	pod       *pairdbtest.Pod
	slow      *proxy
	disk      *disk // nil: it is not one that tests may fill
	processes map[Binary]*program
}

func (n *box) Name() string             { return n.pod.Name }
func (n *box) Addr() string             { return n.slow.Addr() }
func (n *box) OpsAddr(b Binary) string  { return n.pod.OpsAddr(string(b)) }
func (n *box) Process(b Binary) Process { return n.processes[b] }
func (n *box) DataDir() string          { return n.pod.DataDir }
func (n *box) Socket() string           { return n.pod.Socket }

func (n *box) Ready(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.OpsAddr(StorageNode)+"/ready", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func (n *box) Broken() error {
	var errs []error
	for _, b := range Binaries {
		errs = append(errs, n.processes[b].Broken())
	}
	return errors.Join(errs...)
}

func (n *box) Disk() Disk {
	if n.disk == nil {
		return nil
	}
	return n.disk
}

func (n *box) Slow(d time.Duration) error {
	n.slow.Delay(d)
	return nil
}

func (n *box) Shift(Binary, time.Duration) error {
	return fmt.Errorf("%w: containers have the clocks of their machine", ErrUnsupported)
}

// end stops the processes as a pod is ended, the storage-node last.
func (n *box) end() {
	for i := len(Binaries) - 1; i >= 0; i-- {
		n.processes[Binaries[i]].Stop()
	}
	n.slow.Close()
}

// program is a process in a container, which is started again when it ends, as by a kubelet.
type program struct {
	pod    *pairdbtest.Pod
	binary string

	mu     sync.Mutex
	leave  context.CancelFunc // guarded by mu; nil: nobody starts it again
	left   chan struct{}      // guarded by mu; closed when nobody starts it again any more
	broken error              // guarded by mu
}

const (
	// restartPause keeps a program that ends again and again from taking the machine.
	restartPause = 200 * time.Millisecond
	// firstFatalExit to lastFatalExit are the documented exit codes of a process that would fail in the same
	// way again.
	firstFatalExit, lastFatalExit = 2, 5
)

// keep has the program started again when it ends; mu is held, or nobody else has it yet.
func (p *program) keep() {
	ctx, cancel := context.WithCancel(context.Background())
	left := make(chan struct{})
	p.leave, p.left, p.broken = cancel, left, nil
	go func() {
		defer close(left)
		err := p.supervise(ctx)
		if ctx.Err() == nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.broken = err
		}
	}()
}

// supervise starts the program again until ctx ends. The error says why it is given up before that.
func (p *program) supervise(ctx context.Context) error {
	for {
		code, err := p.pod.Wait(ctx, p.binary)
		if err != nil {
			return err
		}
		if code >= firstFatalExit && code <= lastFatalExit {
			return fmt.Errorf("%s of %s ended with exit code %d and would again", p.binary, p.pod.Name, code)
		}
		select {
		case <-time.After(restartPause):
		case <-ctx.Done():
			return ctx.Err()
		}
		// Docker ends what it has begun, whoever goes away meanwhile.
		if err := p.pod.Start(context.Background(), p.binary); err != nil {
			return err
		}
	}
}

func (p *program) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.leave != nil {
		return fmt.Errorf("%s of %s is started already", p.binary, p.pod.Name)
	}
	if err := p.pod.Start(context.Background(), p.binary); err != nil {
		return err
	}
	p.keep()
	return nil
}

func (p *program) Kill() error   { return p.pod.Signal(context.Background(), p.binary, "KILL") }
func (p *program) Pause() error  { return p.pod.Signal(context.Background(), p.binary, "STOP") }
func (p *program) Resume() error { return p.pod.Signal(context.Background(), p.binary, "CONT") }

func (p *program) Halt() { p.end(p.pod.Kill) }
func (p *program) Stop() { p.end(p.pod.Stop) }

// end ends the program, after nobody starts it again any more.
func (p *program) end(how func(context.Context, string) error) {
	p.mu.Lock()
	leave, left := p.leave, p.left
	p.leave = nil
	p.mu.Unlock()
	if leave == nil {
		return
	}
	leave()
	<-left
	_ = how(context.Background(), p.binary) // it may have ended by itself
}

func (p *program) PID() int {
	state, err := p.pod.Container(p.binary).State(context.Background())
	if err != nil {
		return 0
	}
	return state.Pid
}

func (p *program) Broken() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.broken
}
