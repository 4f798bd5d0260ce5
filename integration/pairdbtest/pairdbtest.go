// Package pairdbtest runs PairDB in containers, for the tests of applications: a pod, or a cluster of them,
// as they run in production, and a NATS server. It never keeps anything: what a test stores ends with it.
//
// A pod is what it is in Kubernetes: one network with one address, which a container that does nothing
// holds, and in it a storage-node, a compactor, a migrator and a health-agent, each in a container of its
// own, with a read-only root, without capabilities and under the user of the images; a tmpfs for the socket
// that they share, and a volume for the data. A container that was killed can be started again, and finds
// what it had stored.
//
// The images are those of Published, which Docker pulls or has (`make images` makes those of PairDB);
// Build makes all of them of binaries, where nothing can be pulled.
//
// What a process has started is removed by Terminate, or by the reaper of testcontainers-go when the
// process dies before that. Where there is no reaper (TESTCONTAINERS_RYUK_DISABLED=true), the next process of
// this machine that starts pods removes it first: Sweep.
package pairdbtest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	dockernet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/network"
	"github.com/testcontainers/testcontainers-go/wait"
	"golang.org/x/sync/errgroup"

	"github.com/pairdb/pairdb/libs/localpod"
)

// MaxNodes is the largest number of pods of a cluster.
const MaxNodes = 16

// defaultStartTimeout is some ten times what three pods need on an idle laptop.
const defaultStartTimeout = 2 * time.Minute

// Options of a cluster. The zero value is one pod of the published images.
type Options struct {
	// Nodes is the number of pods, 1 to MaxNodes; default 1.
	Nodes int
	// Images of the containers; default Published("dev"), which `make images` makes.
	Images Images
	// Env is added to the environment of every process of the pods, as KEY=value:
	// "PAIRDB_REPLICATION_FACTOR=2". docs/CONFIGURATION.md lists the keys.
	Env []string
	// Dir is a directory of this machine in which the pods keep their data and their sockets (Pod.DataDir,
	// Pod.Socket): for tests that look into them or go on with them. The processes run as the user of the test
	// then, whose directory it is, and Docker must run on this machine. Default: volumes, which end with the
	// cluster.
	Dir string
	// StartTimeout bounds the start, pulling images included; default 2 minutes.
	StartTimeout time.Duration
}

// Cluster is a running set of pods. Its methods may be called concurrently.
type Cluster struct {
	options Options
	docker  *client.Client
	network *testcontainers.DockerNetwork
	subnet  netip.Prefix
	nats    *testcontainers.DockerContainer
	end     sync.Once
	endErr  error

	mu      sync.Mutex
	natsURL string // guarded by mu
	pods    []*Pod // guarded by mu; only ever grows
}

// Start is Run for tests: the cluster is terminated when the test ends, and the test fails at once if there
// is none. When the test has failed, the end of each container's log is shown.
func Start(t testing.TB, o Options) *Cluster {
	t.Helper()
	c, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The context of the test has ended.
		if t.Failed() {
			t.Log(c.Logs(context.Background()))
		}
		if err := c.Terminate(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c
}

// Run starts a cluster and waits until each pod's node serves and its health-agent finds the pod ready. The
// caller must Terminate it. After an error nothing is left.
func Run(ctx context.Context, o Options) (*Cluster, error) {
	if o.Nodes == 0 {
		o.Nodes = 1
	}
	if o.Nodes < 1 || o.Nodes > MaxNodes {
		return nil, fmt.Errorf("pairdbtest: %d pods: 1 to %d are possible", o.Nodes, MaxNodes)
	}
	if o.StartTimeout == 0 {
		o.StartTimeout = defaultStartTimeout
	}
	if o.Images == (Images{}) {
		o.Images = Published("dev")
	}
	ctx, cancel := context.WithTimeout(ctx, o.StartTimeout)
	defer cancel()
	if err := sweepOnce(ctx); err != nil {
		return nil, fmt.Errorf("pairdbtest: remove what dead processes left: %w", err)
	}
	docker, err := testcontainers.NewDockerClientWithOpts(ctx)
	if err != nil {
		return nil, fmt.Errorf("pairdbtest: %w", err)
	}
	c := &Cluster{options: o, docker: docker.Client}
	if err := c.start(ctx); err != nil {
		logs := c.Logs(context.Background())
		return nil, errors.Join(fmt.Errorf("pairdbtest: %w\n%s", err, logs), c.Terminate(context.Background()))
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	if c.options.Dir != "" && c.remote() {
		return fmt.Errorf("the pods can't keep their data in %s: Docker is at %s", c.options.Dir, c.docker.DaemonHost())
	}
	if err := c.createNetwork(ctx); err != nil {
		return err
	}
	if err := c.startNATS(ctx); err != nil {
		return err
	}
	for range c.options.Nodes {
		if _, err := c.layOut(); err != nil {
			return err
		}
	}
	// A pod starts within a group: what one is waiting for must not hold up the others.
	g, started := errgroup.WithContext(ctx)
	for _, p := range c.Pods() {
		g.Go(func() error { return p.create(started, true) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, p := range c.Pods() {
		if err := p.AwaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// layOut makes the next pod, without its containers.
func (c *Cluster) layOut() (*Pod, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.pods)
	if n == MaxNodes {
		return nil, fmt.Errorf("there are %d pods: no more are possible", n)
	}
	p := &Pod{Name: fmt.Sprintf("node-%d", n), cluster: c, ip: hostOf(c.subnet, firstPodHost+n)}
	if c.options.Dir != "" {
		dir := filepath.Join(c.options.Dir, p.Name)
		p.DataDir, p.Socket = filepath.Join(dir, "data"), filepath.Join(dir, "run", "node.sock")
	}
	c.pods = append(c.pods, p)
	return p, nil
}

// Add starts one more pod, which takes over its ranges from the others, and waits until its node serves. One
// that does not get ready stays until Terminate.
func (c *Cluster) Add(ctx context.Context) (*Pod, error) {
	p, err := c.layOut()
	if err != nil {
		return nil, fmt.Errorf("pairdbtest: add a pod: %w", err)
	}
	if err := p.create(ctx, false); err != nil {
		return nil, fmt.Errorf("pairdbtest: add a pod: %w", err)
	}
	if err := p.awaitReady(ctx, localpod.StorageNode); err != nil {
		return nil, fmt.Errorf("pairdbtest: add a pod: %s is not ready: %w", p.Name, err)
	}
	return p, nil
}

// Hosts of the network's addresses: Docker gives the first to the gateway.
const (
	natsHost     = 9
	firstPodHost = 10
)

// hostOf is address number n of a subnet.
func hostOf(subnet netip.Prefix, n int) netip.Addr {
	a := subnet.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a
}

// networkTries bounds the attempts to take a subnet: another one can take it first.
const networkTries = 5

// createNetwork makes the network of the pods. Docker gives a container an address of its own choice only in
// a network whose subnet was given to it, and a pod that comes back must have the address that it had: so
// Docker chooses a free subnet, and the network is made once more with it.
func (c *Cluster) createNetwork(ctx context.Context) error {
	var last error
	for range networkTries {
		free, err := network.New(ctx, network.WithLabels(labels()))
		if err != nil {
			return err
		}
		seen, err := c.docker.NetworkInspect(ctx, free.ID, client.NetworkInspectOptions{})
		if err := errors.Join(err, free.Remove(ctx)); err != nil {
			return fmt.Errorf("network: %w", err)
		}
		if len(seen.Network.IPAM.Config) == 0 {
			return fmt.Errorf("network: Docker gives no subnet to %s", free.Name)
		}
		c.subnet = seen.Network.IPAM.Config[0].Subnet
		ipam := &dockernet.IPAM{Config: []dockernet.IPAMConfig{{Subnet: c.subnet}}}
		if c.network, last = network.New(ctx, network.WithLabels(labels()), network.WithIPAM(ipam)); last == nil {
			return nil
		}
	}
	return last
}

func (c *Cluster) startNATS(ctx context.Context) error {
	var err error
	c.nats, err = testcontainers.Run(ctx, c.options.Images.NATS,
		testcontainers.WithCmd("--jetstream", "--store_dir", "/data"),
		testcontainers.WithTmpfs(map[string]string{"/data": "mode=1777"}),
		testcontainers.WithLabels(labels()),
		testcontainers.WithWaitStrategy(wait.ForLog("Server is ready")),
		c.attach("nats", hostOf(c.subnet, natsHost)),
		c.publish(natsPort),
	)
	if err != nil {
		return fmt.Errorf("NATS: %w", err)
	}
	return c.readNATSURL(ctx)
}

const natsPort = "4222/tcp"

// readNATSURL learns where Docker has published NATS.
func (c *Cluster) readNATSURL(ctx context.Context) error {
	url, err := c.nats.PortEndpoint(ctx, natsPort, "nats")
	if err != nil {
		return fmt.Errorf("NATS: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.natsURL = url
	return nil
}

// StopNATS ends the NATS server at once. The pods have to go on without it.
func (c *Cluster) StopNATS(ctx context.Context) error {
	if err := c.kill(ctx, c.nats); err != nil {
		return fmt.Errorf("stop NATS: %w", err)
	}
	return nil
}

// StartNATS starts the NATS server again after StopNATS, without what its streams had. The pods find it where
// it was; for the test Docker chooses another port: NATSURL has changed.
func (c *Cluster) StartNATS(ctx context.Context) error {
	if _, err := c.docker.ContainerStart(ctx, c.nats.GetContainerID(), client.ContainerStartOptions{}); err != nil {
		return fmt.Errorf("start NATS: %w", err)
	}
	return c.readNATSURL(ctx)
}

// kill ends a container at once and waits for its end.
func (c *Cluster) kill(ctx context.Context, which *testcontainers.DockerContainer) error {
	if _, err := c.docker.ContainerKill(ctx, which.GetContainerID(), client.ContainerKillOptions{Signal: "KILL"}); err != nil {
		return err
	}
	ended := c.ended(ctx, which)
	select {
	case <-ended.Result:
		return nil
	case err := <-ended.Error:
		return err
	}
}

// ended says when a container has ended, or that it does not run.
func (c *Cluster) ended(ctx context.Context, which *testcontainers.DockerContainer) client.ContainerWaitResult {
	return c.docker.ContainerWait(ctx, which.GetContainerID(), client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
}

// attach has a container be in the network of the pods, under a name and an address.
func (c *Cluster) attach(name string, ip netip.Addr) testcontainers.CustomizeRequestOption {
	return func(r *testcontainers.GenericContainerRequest) error {
		r.Networks = append(r.Networks, c.network.Name)
		r.NetworkAliases = map[string][]string{c.network.Name: {name}}
		r.EndpointSettingsModifier = func(all map[string]*dockernet.EndpointSettings) {
			all[c.network.Name].IPAMConfig = &dockernet.EndpointIPAMConfig{IPv4Address: ip}
		}
		return nil
	}
}

// publish makes ports reachable from the tests: on the loopback address alone, where Docker runs on this
// machine.
func (c *Cluster) publish(ports ...string) testcontainers.CustomizeRequestOption {
	return func(r *testcontainers.GenericContainerRequest) error {
		r.ExposedPorts = append(r.ExposedPorts, ports...)
		if c.remote() {
			return nil
		}
		return testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
			h.PortBindings = dockernet.PortMap{}
			for _, p := range ports {
				h.PortBindings[dockernet.MustParsePort(p)] = []dockernet.PortBinding{{HostIP: netip.MustParseAddr("127.0.0.1")}}
			}
		})(r)
	}
}

// remote reports whether Docker may run on another machine.
func (c *Cluster) remote() bool {
	return strings.HasPrefix(c.docker.DaemonHost(), "tcp:") || strings.HasPrefix(c.docker.DaemonHost(), "http")
}

// Pods returns the pods in the order of their numbers; their names are node-0, node-1, ….
func (c *Cluster) Pods() []*Pod {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.pods)
}

// Addr is where the first pod's node serves clients, host:port.
func (c *Cluster) Addr() string { return c.Pods()[0].Addr() }

// NATSURL is where the NATS server of the pods is reached from the test. StartNATS changes it.
func (c *Cluster) NATSURL() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.natsURL
}

// Logs returns the end of the log of each container. What can't be read is left out.
func (c *Cluster) Logs(ctx context.Context) string {
	var b strings.Builder
	logsOf(ctx, &b, "nats", c.nats)
	for _, p := range c.Pods() {
		for _, binary := range localpod.Binaries() {
			logsOf(ctx, &b, p.Name+" "+binary, p.Container(binary))
		}
	}
	return b.String()
}

// Terminate ends all containers at once and removes them, their network and their volumes. It is
// idempotent.
func (c *Cluster) Terminate(ctx context.Context) error {
	c.end.Do(func() { c.endErr = c.terminate(ctx) })
	return c.endErr
}

func (c *Cluster) terminate(ctx context.Context) error {
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	add := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, err)
	}
	for _, p := range c.Pods() {
		wg.Go(func() { add(p.terminate(ctx)) })
	}
	wg.Go(func() { add(terminate(ctx, c.nats)) })
	wg.Wait()
	if c.network != nil {
		errs = append(errs, c.network.Remove(ctx))
	}
	errs = append(errs, c.docker.Close())
	return errors.Join(errs...)
}
