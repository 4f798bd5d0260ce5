package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/pairdb/pairdb/libs/localpod"
)

// Options of all runners.
type Options struct {
	// Binaries is the directory of the built binaries, unless there are images of them; Dir an empty one for
	// the data.
	Binaries, Dir string
	// Nodes is the number of nodes at the start.
	Nodes int
	// Env of all processes.
	Env []string
	// Log receives the output of all processes.
	Log io.Writer
	// DiskBytes is the size of the volume of the last of the first nodes; 0: it has none of its own.
	DiskBytes int64
}

// local are pods of this machine.
type local struct {
	pods *localpod.Pods
	net  *network // nil: all are on the loopback

	mu     sync.Mutex
	nodes  []Node                   // guarded by mu; those of pods, in their order
	slow   map[string]*proxy        // guarded by mu; by node
	shifts map[string]time.Duration // guarded by mu; by node and binary
	disks  map[string]*disk         // by node
}

// Local starts a cluster of processes on the loopback. Its nodes can't be cut off from each other.
func Local(ctx context.Context, o Options) (Cluster, error) { return begin(ctx, o, nil) }

func begin(ctx context.Context, o Options, n *network) (_ Cluster, err error) {
	c := &local{net: n, slow: map[string]*proxy{}, shifts: map[string]time.Duration{}, disks: map[string]*disk{}}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if o.DiskBytes > 0 {
		name := "node-" + strconv.Itoa(o.Nodes-1)
		if c.disks[name], err = mount(filepath.Join(o.Dir, name), o.DiskBytes); err != nil {
			return nil, err
		}
	}
	options := localpod.Options{
		Dir: o.Dir, Nodes: o.Nodes, Binaries: o.Binaries, Log: o.Log, Env: o.Env, Prefix: c.prefix, PodEnv: c.podEnv,
	}
	if n != nil {
		options.Host, options.NATSHost = n.host, n.gateway
	}
	if c.pods, err = localpod.Start(options); err != nil {
		return nil, err
	}
	if err := c.pods.Ready(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// podEnv puts a proxy before a node. Other nodes go through it too, unless there is a network between them.
func (c *local) podEnv(pod *localpod.Pod) ([]string, error) {
	host := "127.0.0.1"
	if c.net != nil {
		host = c.net.gateway
	}
	p, err := listen(host, func() string { return pod.Addr })
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slow[pod.Name] = p
	if c.net != nil {
		return nil, nil
	}
	return []string{"PAIRDB_ADVERTISE_ADDR=" + p.Addr()}, nil
}

func (c *local) prefix(pod *localpod.Pod, binary string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var command []string
	if c.net != nil {
		command = c.net.enter(pod.Name)
	}
	if shift := c.shifts[pod.Name+binary]; shift != 0 {
		seconds := strconv.Itoa(int(shift / time.Second))
		command = append(command, "unshare", "--time", "--monotonic", seconds, "--boottime", seconds)
	}
	return command
}

func (c *local) Nodes() []Node {
	pods := c.pods.All()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, pod := range pods[len(c.nodes):] {
		c.nodes = append(c.nodes, &node{pod, c})
	}
	return c.nodes[:len(pods):len(pods)]
}

func (c *local) Add(ctx context.Context) (Node, error) {
	pod, err := c.pods.Add(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range c.Nodes() {
		if n.Name() == pod.Name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("%s was added and is not there", pod.Name)
}

func (c *local) StopNATS()        { c.pods.StopNATS() }
func (c *local) StartNATS() error { return c.pods.StartNATS() }

func (c *local) Cut(from, to Node) error {
	if c.net == nil {
		return ErrUnsupported
	}
	return c.net.cut(from.Name(), to.Name())
}

func (c *local) Mend() error {
	if c.net == nil {
		return nil
	}
	return c.net.mend()
}

func (c *local) Close() {
	if c.pods != nil {
		c.pods.Stop()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.slow {
		p.Close()
	}
	if c.net != nil {
		c.net.close()
	}
}

// Unmount takes the volumes away that runners made below a directory; what is on them is gone then.
func Unmount(dir string) error {
	mounted, err := filepath.Glob(filepath.Join(dir, "node-*", ballast))
	if err != nil {
		return err
	}
	for _, name := range mounted {
		if e := syscall.Unmount(filepath.Dir(name), 0); e != nil {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", filepath.Dir(name), e))
		}
	}
	return err
}

// node is a pod as a Node.
type node struct {
	pod *localpod.Pod
	c   *local
}

func (n *node) Name() string                   { return n.pod.Name }
func (n *node) DataDir() string                { return n.pod.DataDir }
func (n *node) Broken() error                  { return n.pod.Broken() }
func (n *node) Socket() string                 { return n.pod.Socket }
func (n *node) Ready(ctx context.Context) bool { return n.pod.IsReady(ctx) }

func (n *node) Addr() string {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return n.c.slow[n.Name()].Addr()
}

func (n *node) OpsAddr(b Binary) string {
	return map[Binary]string{
		StorageNode: n.pod.OpsAddr, Compactor: n.pod.CompactorOpsAddr, Migrator: n.pod.MigratorOpsAddr, HealthAgent: n.pod.HealthOpsAddr,
	}[b]
}

func (n *node) Process(b Binary) Process {
	return process{map[Binary]*localpod.Process{
		StorageNode: n.pod.Node, Compactor: n.pod.Compactor, Migrator: n.pod.Migrator, HealthAgent: n.pod.HealthAgent,
	}[b]}
}

func (n *node) Disk() Disk {
	if d := n.c.disks[n.Name()]; d != nil {
		return d
	}
	return nil
}

func (n *node) Slow(d time.Duration) error {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.c.slow[n.Name()].Delay(d)
	return nil
}

func (n *node) Shift(b Binary, d time.Duration) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: time namespaces need root", ErrUnsupported)
	}
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.c.shifts[n.Name()+string(b)] = d
	return nil
}

// process adds to a localpod.Process what a Process has by other names.
type process struct{ *localpod.Process }

func (p process) Pause() error  { return p.Signal(syscall.SIGSTOP) }
func (p process) Resume() error { return p.Signal(syscall.SIGCONT) }

// ballast is the file that fills a volume, beside the node's directory.
const ballast = "ballast"

// disk is a tmpfs.
type disk struct {
	dir   string
	bytes int64
}

// ErrNotHere says that this machine can't give what a fault needs: root.
var ErrNotHere = errors.New("this machine does not allow it: run as root")

func mount(dir string, bytes int64) (*disk, error) {
	if err := os.MkdirAll(dir, 0o770); err != nil {
		return nil, fmt.Errorf("volume: %w", err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0770", bytes)); err != nil {
		return nil, fmt.Errorf("mount a tmpfs at %s: %w (%w)", dir, ErrNotHere, err)
	}
	d := &disk{dir, bytes}
	return d, d.Empty()
}

func (d *disk) Empty() error { return os.WriteFile(filepath.Join(d.dir, ballast), nil, 0o660) }

func (d *disk) Leave(percent float64) error {
	f, err := os.OpenFile(filepath.Join(d.dir, ballast), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("fill a volume: %w", err)
	}
	defer f.Close()
	var st syscall.Statfs_t
	if err := syscall.Statfs(d.dir, &st); err != nil {
		return fmt.Errorf("fill a volume: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("fill a volume: %w", err)
	}
	size := info.Size() + int64(st.Bavail)*st.Bsize - int64(percent/100*float64(d.bytes))
	if size <= info.Size() {
		return nil
	}
	// The node may take some of it meanwhile: then it is full all the same.
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, size); err != nil && !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("fill a volume: %w", err)
	}
	return nil
}
