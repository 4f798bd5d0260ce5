package pairdbtest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	dockernet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/pairdb/pairdb/libs/localpod"
)

// Where the pod's volumes are, and who owns them: the defaults of the binaries, the user of the images.
const (
	dataDir   = "/var/lib/pairdb"
	socketDir = "/run/pairdb"
	uid       = 1001
	gid       = 2000
)

// opsPorts are the ports on which the processes serve /metrics, /health and /ready.
var opsPorts = map[string]string{
	localpod.StorageNode: "9091/tcp", localpod.Compactor: "9092/tcp",
	localpod.Migrator: "9093/tcp", localpod.HealthAgent: "9094/tcp",
}

const grpcPort = "8080/tcp"

// Pod is one storage-node with its sidecars, each a container.
type Pod struct {
	// Name is the node id, and the name of the pod in its network.
	Name string
	// DataDir is the data directory of its node, Socket the path of its socket, on this machine; without
	// Options.Dir both are empty.
	DataDir, Socket string

	cluster *Cluster
	ip      netip.Addr
	sandbox *testcontainers.DockerContainer // holds the network
	volumes []string

	mu         sync.Mutex
	containers map[string]*testcontainers.DockerContainer // guarded by mu; by the name of the binary
	addrs      map[string]string                          // guarded by mu; by port, as the test reaches them
}

// create starts the containers of the pod; begins says that it is of a cluster that has no data yet.
func (p *Pod) create(ctx context.Context, begins bool) error {
	o := p.cluster.options
	mounts, user, err := p.storage()
	if err != nil {
		return fmt.Errorf("%s: directories: %w", p.Name, err)
	}
	ports := []string{grpcPort}
	for _, port := range opsPorts {
		ports = append(ports, port)
	}
	p.sandbox, err = testcontainers.Run(ctx, o.Images.Pause,
		testcontainers.WithLabels(labels()), mounts, p.cluster.attach(p.Name, p.ip), p.cluster.publish(ports...))
	if err != nil {
		return fmt.Errorf("%s: network: %w", p.Name, err)
	}
	if len(p.volumes) > 0 {
		if err := p.own(ctx, dataDir); err != nil {
			return err
		}
	}
	if err := p.readAddrs(ctx); err != nil {
		return err
	}
	l := localpod.Layout{
		NodeID: p.Name, AdvertiseAddr: p.Name + ":8080", NATSURL: "nats://nats:4222", AtOnce: begins, Env: o.Env,
	}
	for _, other := range p.cluster.Pods() {
		l.Seeds = append(l.Seeds, other.Name+":7946")
	}
	for _, binary := range localpod.Binaries() {
		env := map[string]string{}
		for _, kv := range l.Environment(binary) {
			key, value, _ := strings.Cut(kv, "=")
			env[key] = value
		}
		c, err := testcontainers.Run(ctx, o.Images.of(binary),
			testcontainers.WithEnv(env), testcontainers.WithLabels(labels()), mounts,
			testcontainers.WithConfigModifier(func(c *container.Config) { c.User = user }),
			testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
				h.NetworkMode = container.NetworkMode("container:" + p.sandbox.GetContainerID())
				h.ReadonlyRootfs = true
				h.CapDrop = []string{"ALL"}
			}),
		)
		p.keep(binary, c)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", p.Name, binary, err)
		}
	}
	return nil
}

// storage returns the mounts of the pod's containers, and the user to whom they belong.
func (p *Pod) storage() (_ testcontainers.ContainerCustomizer, user string, err error) {
	if p.DataDir == "" {
		id := uuid.NewString()
		data, socket := "pairdb-data-"+id, "pairdb-socket-"+id
		p.volumes = []string{data, socket}
		return testcontainers.WithMounts(
			volumeMount(data, dataDir, nil),
			volumeMount(socket, socketDir, &mount.Driver{Name: "local", Options: map[string]string{
				"type": "tmpfs", "device": "tmpfs", "o": fmt.Sprintf("mode=0770,uid=%d,gid=%d", uid, gid),
			}}),
		), fmt.Sprintf("%d:%d", uid, gid), nil
	}
	var mounts []mount.Mount
	for source, target := range map[string]string{p.DataDir: dataDir, filepath.Dir(p.Socket): socketDir} {
		if err := os.MkdirAll(source, 0o770); err != nil {
			return nil, "", err
		}
		mounts = append(mounts, mount.Mount{Type: mount.TypeBind, Source: source, Target: target})
	}
	return testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
		h.Mounts = append(h.Mounts, mounts...)
	}), fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()), nil
}

func volumeMount(name, target string, driver *mount.Driver) testcontainers.ContainerMount {
	return testcontainers.ContainerMount{
		Source: testcontainers.DockerVolumeMountSource{
			Name: name, VolumeOptions: &mount.VolumeOptions{NoCopy: true, Labels: labels(), DriverConfig: driver},
		},
		Target: testcontainers.ContainerMountTarget(target),
	}
}

// own gives the directory of a new volume to the user of the images, as a kubelet does by fsGroup: Docker
// makes it for root.
func (p *Pod) own(ctx context.Context, dir string) error {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	parent, name := path.Split(dir)
	h := &tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o770, Uid: uid, Gid: gid, ModTime: time.Unix(0, 0)}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	_, err := p.cluster.docker.CopyToContainer(ctx, p.sandbox.GetContainerID(), client.CopyToContainerOptions{
		DestinationPath: parent, Content: &b,
	})
	if err != nil {
		return fmt.Errorf("%s: owner of the data volume: %w", p.Name, err)
	}
	return nil
}

// readAddrs learns where Docker has published the ports.
func (p *Pod) readAddrs(ctx context.Context) error {
	addrs := map[string]string{}
	ports := []string{grpcPort}
	for _, port := range opsPorts {
		ports = append(ports, port)
	}
	for _, port := range ports {
		addr, err := p.sandbox.PortEndpoint(ctx, port, "")
		if err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
		addrs[port] = addr
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.addrs = addrs
	return nil
}

func (p *Pod) keep(binary string, c *testcontainers.DockerContainer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.containers == nil {
		p.containers = map[string]*testcontainers.DockerContainer{}
	}
	p.containers[binary] = c
}

// Addr is where the node serves clients, host:port. Reconnect changes it.
func (p *Pod) Addr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addrs[grpcPort]
}

// OpsAddr is where a process (localpod.StorageNode, …) serves /metrics, /health and /ready, host:port.
// Reconnect changes it.
func (p *Pod) OpsAddr(binary string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addrs[opsPorts[binary]]
}

// Container returns the container of a process (localpod.StorageNode, …), or nil when it was never made.
func (p *Pod) Container(binary string) *testcontainers.DockerContainer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.containers[binary]
}

// AwaitReady waits until the node serves and the health-agent finds the whole pod ready. It gives up when one
// of the two has ended.
func (p *Pod) AwaitReady(ctx context.Context) error {
	for _, binary := range []string{localpod.StorageNode, localpod.HealthAgent} {
		if err := p.awaitReady(ctx, binary); err != nil {
			return fmt.Errorf("%s: %s is not ready: %w", p.Name, binary, err)
		}
	}
	return nil
}

func (p *Pod) awaitReady(ctx context.Context, binary string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := p.cluster.ended(ctx, p.Container(binary))
	go func() {
		select {
		case <-ended.Result:
			cancel(errors.New("it has ended: see its log"))
		case <-ended.Error: // ctx has ended
		}
	}()
	ready := wait.ForHTTP("/ready").WithPort(opsPorts[binary]).WithStartupTimeout(defaultStartTimeout)
	if err := ready.WaitUntilReady(ctx, p.sandbox); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	return nil
}

// Wait waits until a process (localpod.StorageNode, …) does not run, and returns its exit code.
func (p *Pod) Wait(ctx context.Context, binary string) (code int, err error) {
	ended := p.cluster.ended(ctx, p.Container(binary))
	select {
	case r := <-ended.Result:
		return int(r.StatusCode), nil
	case err := <-ended.Error:
		return 0, fmt.Errorf("wait for %s of %s: %w", binary, p.Name, err)
	}
}

// Signal sends a signal ("STOP") to a process (localpod.StorageNode, …). It fails when that does not run.
func (p *Pod) Signal(ctx context.Context, binary, signal string) error {
	id := p.Container(binary).GetContainerID()
	if _, err := p.cluster.docker.ContainerKill(ctx, id, client.ContainerKillOptions{Signal: signal}); err != nil {
		return fmt.Errorf("send %s to %s of %s: %w", signal, binary, p.Name, err)
	}
	return nil
}

// Kill ends a process (localpod.StorageNode, …) at once, as the kernel does to one that takes too much
// memory, and waits for its end. Nobody starts it again but Start.
func (p *Pod) Kill(ctx context.Context, binary string) error {
	if err := p.cluster.kill(ctx, p.Container(binary)); err != nil {
		return fmt.Errorf("kill %s of %s: %w", binary, p.Name, err)
	}
	return nil
}

// stopTimeout is how long a process may take to end when it is asked to: as a kubelet waits.
const stopTimeout = 30 // seconds

// Stop asks a process (localpod.StorageNode, …) to end, and waits for its end; it kills one that takes too
// long. Nobody starts it again but Start.
func (p *Pod) Stop(ctx context.Context, binary string) error {
	timeout := stopTimeout
	id := p.Container(binary).GetContainerID()
	if _, err := p.cluster.docker.ContainerStop(ctx, id, client.ContainerStopOptions{Timeout: &timeout}); err != nil {
		return fmt.Errorf("stop %s of %s: %w", binary, p.Name, err)
	}
	return nil
}

// Start starts a process that has ended, with what it had stored.
func (p *Pod) Start(ctx context.Context, binary string) error {
	if _, err := p.cluster.docker.ContainerStart(ctx, p.Container(binary).GetContainerID(), client.ContainerStartOptions{}); err != nil {
		return fmt.Errorf("start %s of %s: %w", binary, p.Name, err)
	}
	return nil
}

// Disconnect cuts the pod off from the others, from NATS and from the test. Its processes go on.
func (p *Pod) Disconnect(ctx context.Context) error {
	_, err := p.cluster.docker.NetworkDisconnect(ctx, p.cluster.network.ID, client.NetworkDisconnectOptions{
		Container: p.sandbox.GetContainerID(), Force: true,
	})
	if err != nil {
		return fmt.Errorf("disconnect %s: %w", p.Name, err)
	}
	return nil
}

// Reconnect undoes Disconnect: the pod has the address and the name that it had. For the test Docker chooses
// other ports: Addr and OpsAddr have changed.
func (p *Pod) Reconnect(ctx context.Context) error {
	_, err := p.cluster.docker.NetworkConnect(ctx, p.cluster.network.ID, client.NetworkConnectOptions{
		Container: p.sandbox.GetContainerID(),
		EndpointConfig: &dockernet.EndpointSettings{
			Aliases: []string{p.Name}, IPAMConfig: &dockernet.EndpointIPAMConfig{IPv4Address: p.ip},
		},
	})
	if err != nil {
		return fmt.Errorf("reconnect %s: %w", p.Name, err)
	}
	return p.readAddrs(ctx)
}

// terminate removes the containers of the pod, the one that holds its network last, and its volumes.
func (p *Pod) terminate(ctx context.Context) error {
	for _, binary := range localpod.Binaries() {
		if err := terminate(ctx, p.Container(binary)); err != nil {
			return fmt.Errorf("%s: %s: %w", p.Name, binary, err)
		}
	}
	return terminate(ctx, p.sandbox, testcontainers.RemoveVolumes(p.volumes...))
}

// terminate ends a container without waiting for it, if it was made.
func terminate(ctx context.Context, c *testcontainers.DockerContainer, o ...testcontainers.TerminateOption) error {
	if c == nil {
		return nil
	}
	return c.Terminate(ctx, append(o, testcontainers.StopTimeout(0))...)
}

// logTail is how much of a container's log is shown.
const logTail = 4 << 10

func logsOf(ctx context.Context, b *strings.Builder, name string, c *testcontainers.DockerContainer) {
	if c == nil {
		return
	}
	r, err := c.Logs(ctx)
	if err != nil {
		return
	}
	defer r.Close()
	text, _ := io.ReadAll(r) // what was read counts
	fmt.Fprintf(b, "--- end of the log of %s\n%s\n", name, text[max(0, len(text)-logTail):])
}
