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
	// Binaries is the directory of storage-node, compactor, migrator and health-agent; default that of
	// this executable.
	Binaries string
	// Log receives the output of all processes, each line with the process as prefix. Writes come
	// one at a time. Default: discarded.
	Log io.Writer
	// Env is added to the environment of every process, as KEY=value.
	Env []string
	// FixedPorts lets the first pod listen on the default ports (8080, 9091 to 9094, 7946) when they
	// are free. Otherwise, and for the other pods, free ports are chosen.
	FixedPorts bool
	// Seeds are where health-agents of other sets of pods gossip: all are one cluster then.
	Seeds []string
	// NoCompactor starts the pods without their compactor, NoMigrator without their migrator, and
	// NoHealthAgent without their health-agent: they are no cluster then. Where one of the last two is
	// missing, nobody can bootstrap a node: it has PAIRDB_JOIN=at-once then, unless Env says otherwise. So
	// have pods that begin a cluster together; one that is added, or was wiped, takes over its ranges first.
	NoCompactor, NoMigrator, NoHealthAgent bool
	// Host returns the IP address on which a pod listens, by its number: one of its own, so it has the
	// default ports there. Default: all are on 127.0.0.1, with ports that are free. NATSHost is the address of
	// NATS; default 127.0.0.1.
	Host     func(number int) string
	NATSHost string
	// Prefix returns what stands in front of a binary of a pod on its command line, and must exec it; asked
	// at each start, also at those after a death. Default: nothing.
	Prefix func(pod *Pod, binary string) []string
	// PodEnv returns what is added last to the environment of a pod, once its addresses are known.
	PodEnv func(pod *Pod) ([]string, error)
	// Secure has all speak TLS with certificates of an authority that is made in TLSDir, gossip encrypted,
	// and a user of NATS with permissions of its own for each pod. At most 32 pods then.
	Secure bool
}

// Pods is a running set of pods. With their health-agents they are one cluster.
type Pods struct {
	options  Options
	security *security // nil: the pods are not secure
	natsURL  string
	natsPort int
	log      *prefixer
	failed   chan error
	stop     sync.Once

	mu    sync.Mutex
	nats  *server.Server // guarded by mu; nil while it is stopped
	nodes []*Pod         // guarded by mu; only ever grows
	ended bool           // guarded by mu; no pod is added any more
}

// Pod is one storage-node with its sidecars.
type Pod struct {
	// Name is the node id.
	Name string
	// Dir is the pod's directory; DataDir the volume of its storage-node.
	Dir, DataDir string
	// Addr is the gRPC address, OpsAddr the address of /metrics, /health and /ready, both
	// "127.0.0.1:port". CompactorOpsAddr, MigratorOpsAddr and HealthOpsAddr are the same of the compactor,
	// of the migrator and of the health-agent, whose /ready is the verdict on the pod.
	Addr, OpsAddr, CompactorOpsAddr, MigratorOpsAddr, HealthOpsAddr string
	// GossipAddr is where the health-agent meets those of the other pods, TCP and UDP.
	GossipAddr string
	// Socket is the path of the pod's unix socket.
	Socket string
	// Node, Compactor, Migrator and HealthAgent are the processes; all but the first are nil without one.
	Node, Compactor, Migrator, HealthAgent *Process

	http   *http.Client // that trusts it
	scheme string       // of its operations servers
	begins bool         // it was up at once, with the others of a new cluster
	last   []string     // of Options.PodEnv
}

// maxSocketPath is the longest path that a unix socket address holds on Linux.
const maxSocketPath = 107

// Start starts NATS and the pods and returns at once; Ready waits for them.
func Start(o Options) (*Pods, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	p := &Pods{options: o, log: newPrefixer(o.Log), failed: make(chan error, 1), natsPort: server.RANDOM_PORT}
	if o.Secure {
		if err := p.secure(); err != nil {
			return nil, err
		}
	}
	if err := p.StartNATS(); err != nil {
		return nil, err
	}
	pods, err := p.layOut(0, o.Nodes)
	if err != nil {
		p.Stop()
		return nil, err
	}
	p.nodes = pods
	begins, err := p.begins()
	if err != nil {
		p.Stop()
		return nil, err
	}
	for _, pod := range pods {
		err := p.prepare(pod, nil, begins)
		if err == nil {
			err = pod.Start()
		}
		if err != nil {
			p.Stop() // whatever has started
			return nil, err
		}
	}
	return p, nil
}

// Add starts one more pod, with the next number and the others as its seeds, and waits until its node
// serves. The environment is added to that of the others. A pod that does not get ready stays, so that
// a test can look at it, and is stopped with the others.
func (p *Pods) Add(ctx context.Context, env ...string) (*Pod, error) {
	pod, err := p.add(env)
	if err != nil {
		return nil, err
	}
	return pod, readyPod(ctx, pod)
}

func (p *Pods) add(env []string) (*Pod, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return nil, errors.New("add a pod: the pods are stopped")
	}
	pods, err := p.layOut(len(p.nodes), 1)
	if err != nil {
		return nil, err
	}
	p.nodes = append(p.nodes, pods...)
	if err := p.prepare(pods[0], env, false); err != nil {
		return nil, err
	}
	return pods[0], pods[0].Start()
}

// begins reports whether the pods begin a cluster: no other one is named, and none of them has data yet.
// Then there is nothing to wait for, and all are up at once.
func (p *Pods) begins() (bool, error) {
	for _, pod := range p.nodes {
		entries, err := os.ReadDir(pod.DataDir)
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			return false, fmt.Errorf("data directory of %s: %w", pod.Name, err)
		case len(entries) > 0:
			return false, nil
		}
	}
	return len(p.options.Seeds) == 0, nil
}

// layOut gives count pods from number first on their addresses, before the first one starts: each has
// to know where the others gossip.
func (p *Pods) layOut(first, count int) ([]*Pod, error) {
	wanted := make([]port, 0, count*podPorts)
	for i := range count {
		fixed := p.options.FixedPorts && first+i == 0
		for _, number := range []int{8080, 9091, 9092, 9093, 9094} {
			wanted = append(wanted, port{number: number, fixed: fixed})
		}
		wanted = append(wanted, port{number: 7946, fixed: fixed, udp: true})
	}
	addrs, err := p.addresses(wanted, first)
	if err != nil {
		return nil, err
	}
	pods := make([]*Pod, count)
	for i := range pods {
		name := "node-" + strconv.Itoa(first+i)
		pod := &Pod{Name: name, Dir: filepath.Join(p.options.Dir, name), http: http.DefaultClient, scheme: "http://"}
		if p.security != nil {
			pod.http, pod.scheme = p.security.http, "https://"
		}
		pod.DataDir = filepath.Join(pod.Dir, "data")
		pod.Socket = filepath.Join(pod.Dir, "node.sock")
		own := addrs[i*podPorts:][:podPorts]
		for j, addr := range []*string{
			&pod.Addr, &pod.OpsAddr, &pod.CompactorOpsAddr, &pod.MigratorOpsAddr, &pod.HealthOpsAddr, &pod.GossipAddr,
		} {
			*addr = own[j]
		}
		pods[i] = pod
	}
	return pods, nil
}

// podPorts is the number of ports of a pod.
const podPorts = 6

// addresses returns the addresses of pods from number first on, podPorts each.
func (p *Pods) addresses(wanted []port, first int) ([]string, error) {
	if p.options.Host == nil {
		return addresses(wanted, p.given())
	}
	addrs := make([]string, len(wanted))
	for i, w := range wanted {
		addrs[i] = net.JoinHostPort(p.options.Host(first+i/podPorts), strconv.Itoa(w.number))
	}
	return addrs, nil
}

// given are the addresses that pods have already, those that are stopped included.
func (p *Pods) given() map[string]bool {
	given := map[string]bool{}
	for _, pod := range p.nodes {
		for _, addr := range []string{pod.Addr, pod.OpsAddr, pod.CompactorOpsAddr, pod.MigratorOpsAddr, pod.HealthOpsAddr, pod.GossipAddr} {
			given[addr] = true
		}
	}
	return given
}

func (o *Options) setDefaults() error {
	if o.Nodes == 0 {
		o.Nodes = 1
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	if o.NATSHost == "" {
		o.NATSHost = "127.0.0.1"
	}
	if o.Binaries == "" {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find the binaries: %w", err)
		}
		o.Binaries = filepath.Dir(exe)
	}
	for _, b := range Binaries() {
		if b == Migrator && o.NoMigrator || b == HealthAgent && o.NoHealthAgent {
			continue
		}
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

// All returns the pods in the order of their numbers, those that are stopped included.
func (p *Pods) All() []*Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.nodes)
}

// NATSURL is where the embedded NATS server listens, also after StopNATS and StartNATS.
func (p *Pods) NATSURL() string { return p.natsURL }

// StartNATS starts the embedded NATS server again after StopNATS, on the same port and with what its
// streams had. It does nothing while the server runs.
func (p *Pods) StartNATS() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.nats != nil {
		return nil
	}
	s, err := startNATS(filepath.Join(p.options.Dir, "nats"), p.options.NATSHost, p.natsPort, p.security)
	if err != nil {
		return err
	}
	addr, ok := s.Addr().(*net.TCPAddr)
	if !ok {
		s.Shutdown()
		return fmt.Errorf("embedded NATS: listens on %v", s.Addr())
	}
	p.nats, p.natsPort = s, addr.Port
	if p.natsURL == "" {
		p.natsURL = s.ClientURL()
	}
	return nil
}

// StopNATS stops the embedded NATS server and waits for its end. The pods have to go on without it.
func (p *Pods) StopNATS() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.nats == nil {
		return
	}
	p.nats.Shutdown()
	p.nats.WaitForShutdown()
	p.nats = nil
}

// Failed delivers the error of a process that must not be started again: wrong configuration,
// locked or damaged data.
func (p *Pods) Failed() <-chan error { return p.failed }

// Stop ends the processes, sidecars before their node, and waits for them. It is idempotent.
func (p *Pods) Stop() {
	p.stop.Do(func() {
		p.mu.Lock()
		p.ended = true
		p.mu.Unlock()
		var wg sync.WaitGroup
		for _, pod := range p.All() {
			wg.Go(pod.Stop)
		}
		wg.Wait()
		p.StopNATS()
		p.log.Flush()
	})
}

// Stop ends the processes of a pod, the sidecars before the node, and waits for them: its health-agent
// says goodbye to the others. Start starts them again.
func (pod *Pod) Stop() { pod.each((*Process).Stop) }

// Halt ends all processes of a pod at once and without a word, as a machine that loses its power does.
// Start starts them again.
func (pod *Pod) Halt() { pod.each((*Process).Halt) }

func (pod *Pod) each(end func(*Process)) {
	var wg sync.WaitGroup
	for _, sidecar := range []*Process{pod.HealthAgent, pod.Migrator, pod.Compactor} {
		if sidecar != nil {
			wg.Go(func() { end(sidecar) })
		}
	}
	wg.Wait()
	if pod.Node != nil {
		end(pod.Node)
	}
}

// Broken returns why processes of the pod have ended and are not started again; nil while there is none.
func (pod *Pod) Broken() error {
	var errs []error
	for _, process := range []*Process{pod.Node, pod.Compactor, pod.Migrator, pod.HealthAgent} {
		if process != nil {
			errs = append(errs, process.Broken())
		}
	}
	return errors.Join(errs...)
}

// Start starts the processes of a pod that was stopped.
func (pod *Pod) Start() error {
	for _, process := range []*Process{pod.Node, pod.Compactor, pod.Migrator, pod.HealthAgent} {
		if process == nil {
			continue
		}
		if err := process.Start(); err != nil {
			return err
		}
	}
	return nil
}

// Wipe throws away all that a stopped pod has stored, as a new volume would: it starts as a new member
// under the old name.
func (pod *Pod) Wipe() error {
	if pod.Node.started() {
		return fmt.Errorf("wipe %s: it runs", pod.Name)
	}
	if err := os.RemoveAll(pod.DataDir); err != nil {
		return fmt.Errorf("wipe %s: %w", pod.Name, err)
	}
	for _, process := range []*Process{pod.Node, pod.Compactor, pod.Migrator, pod.HealthAgent} {
		if process != nil && pod.begins {
			// The others have data by now.
			process.env = slices.DeleteFunc(process.env, func(kv string) bool { return kv == joinAtOnce })
		}
	}
	return pod.makeDataDir()
}

// joinAtOnce has a node whose data directory is new be up without taking over its ranges first.
const joinAtOnce = "PAIRDB_JOIN=at-once"

func (pod *Pod) makeDataDir() error {
	if err := os.MkdirAll(pod.DataDir, 0o770); err != nil {
		return fmt.Errorf("data directory of %s: %w", pod.Name, err)
	}
	return nil
}

// prepare makes the directory of a pod and says how its processes are started; own is added to the
// environment of all pods, begins says that it is of a cluster that has no data yet.
func (p *Pods) prepare(pod *Pod, own []string, begins bool) error {
	if len(pod.Socket) > maxSocketPath {
		return fmt.Errorf("the path of the socket %s is longer than %d bytes: choose a shorter directory", pod.Socket, maxSocketPath)
	}
	if err := pod.makeDataDir(); err != nil {
		return err
	}
	alone := p.options.NoMigrator || p.options.NoHealthAgent // nobody could bootstrap it
	pod.begins = begins && !alone
	if p.options.PodEnv != nil {
		var err error
		if pod.last, err = p.options.PodEnv(pod); err != nil {
			return fmt.Errorf("environment of %s: %w", pod.Name, err)
		}
	}
	env := slices.Concat(p.options.Env, own)
	if p.security != nil {
		certificates, err := p.security.env(pod)
		if err != nil {
			return err
		}
		env = slices.Concat(certificates, env)
	}
	seeds := make([]string, len(p.nodes))
	for i, other := range p.nodes {
		seeds[i] = other.GossipAddr
	}
	layout := Layout{
		NodeID: pod.Name, DataDir: pod.DataDir, Socket: pod.Socket,
		GRPCAddr: pod.Addr, AdvertiseAddr: pod.Addr,
		OpsAddr: pod.OpsAddr, CompactorOpsAddr: pod.CompactorOpsAddr, MigratorOpsAddr: pod.MigratorOpsAddr, HealthOpsAddr: pod.HealthOpsAddr,
		GossipAddr: pod.GossipAddr, Seeds: append(seeds, p.options.Seeds...),
		NATSURL: p.natsURL,
		AtOnce:  begins || alone,
		Env:     env,
	}
	process := func(binary string) *Process {
		return p.process(pod, binary, layout.Environment(binary))
	}
	pod.Node = process(StorageNode)
	if !p.options.NoCompactor {
		pod.Compactor = process(Compactor)
	}
	if !p.options.NoMigrator {
		pod.Migrator = process(Migrator)
	}
	if !p.options.NoHealthAgent {
		pod.HealthAgent = process(HealthAgent)
	}
	return nil
}

func (p *Pods) process(pod *Pod, binary string, env []string) *Process {
	var prefix func() []string
	if p.options.Prefix != nil {
		prefix = func() []string { return p.options.Prefix(pod, binary) }
	}
	return &Process{
		path:   filepath.Join(p.options.Binaries, binary),
		prefix: prefix,
		label:  fmt.Sprintf("%s %-12s", pod.Name, binary),
		env:    slices.Concat(env, pod.last),
		log:    p.log,
		fatal: func(err error) {
			select {
			case p.failed <- err:
			default: // one reason is enough
			}
		},
	}
}

// Ready waits until every node answers /ready, a process of one that does not has failed for good, or ctx
// ends.
func (p *Pods) Ready(ctx context.Context) error {
	for _, pod := range p.All() {
		if err := readyPod(ctx, pod); err != nil {
			return err
		}
	}
	return nil
}

func readyPod(ctx context.Context, pod *Pod) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if pod.IsReady(ctx) {
			return nil
		}
		if err := pod.Broken(); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", pod.Name, ctx.Err())
		}
	}
}

// OpsURL returns the URL of one of the pod's operations servers, without a path.
func (pod *Pod) OpsURL(addr string) string { return pod.scheme + addr }

// IsReady asks the node once.
func (pod *Pod) IsReady(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, pod.OpsURL(pod.OpsAddr)+"/ready", nil)
	if err != nil {
		return false
	}
	resp, err := pod.http.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body) // only the status counts
	return resp.StatusCode == http.StatusOK
}

// port is one that a pod needs on the loopback address.
type port struct {
	// number is preferred if fixed, else any will do.
	number int
	fixed  bool
	// udp: the same port is needed for UDP.
	udp bool
}

// addresses returns a free loopback address for each port, none of those that are given already. All
// are held until all are found, so that none is given twice. Another program may take one between the check and its use; the process then
// says so.
func addresses(wanted []port, given map[string]bool) ([]string, error) {
	out := make([]string, 0, len(wanted))
	var held []io.Closer
	defer func() {
		for _, l := range held {
			l.Close() // nothing was sent over it
		}
	}()
	for _, w := range wanted {
		addr, taken, err := w.take(given)
		held = append(held, taken...)
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		out = append(out, addr)
	}
	return out, nil
}

// maxPortTries bounds the search for a port that is free for TCP and UDP: hardly any is taken for one
// alone.
const maxPortTries = 20

// take returns the address of a free port, and what holds it; what it tried in vain is held too.
func (w port) take(given map[string]bool) (addr string, held []io.Closer, err error) {
	candidates := make([]int, maxPortTries) // 0: any
	if w.fixed {
		candidates[0] = w.number
	}
	for _, number := range candidates {
		var l net.Listener
		l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(number)))
		if err != nil {
			continue
		}
		held = append(held, l)
		addr = l.Addr().String()
		if given[addr] {
			err = fmt.Errorf("%s belongs to a pod that is stopped", addr)
			continue
		}
		if !w.udp {
			return addr, held, nil
		}
		var u net.PacketConn
		if u, err = net.ListenPacket("udp", addr); err == nil {
			return addr, append(held, u), nil
		}
	}
	return "", held, err
}

func startNATS(dir, host string, number int, secure *security) (*server.Server, error) {
	o := &server.Options{
		ServerName: "localpod", Host: host, Port: number,
		JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true,
	}
	if secure != nil {
		o.TLS, o.TLSConfig, o.Nkeys = true, secure.natsTLS, secure.natsUsers
	}
	s, err := server.NewServer(o)
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
