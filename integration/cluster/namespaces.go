package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
)

// network is a bridge with a network namespace for each node: an address, a routing table and packet filters
// of its own, as a machine has them. The bridge is in a namespace too: what passes it must not depend on the
// filters of this machine, and changes none of them.
type network struct {
	// name is the prefix of the links and the namespaces, and that of the bridge, whose link to this machine
	// has it too.
	name string
	// gateway is the address of this machine at the bridge, subnet its first three numbers.
	gateway, subnet string

	mu    sync.Mutex
	inner []string // guarded by mu; namespaces, by number
	cuts  bool     // guarded by mu; there may be some
}

// Namespaces starts a cluster whose nodes have network namespaces of their own, on a bridge. It needs root,
// iproute2 and iptables: ErrNotHere if this machine has or allows one of them not.
func Namespaces(ctx context.Context, o Options) (Cluster, error) {
	n, err := newNetwork()
	if err != nil {
		return nil, err
	}
	return begin(ctx, o, n)
}

// bridge is its name in its namespace.
const bridge = "bridge"

// maxNamespaces is how many nodes a network has; those that are added later come out of it.
const maxNamespaces = 12

func newNetwork() (_ *network, err error) {
	// Two runs at a time have names and addresses of their own.
	id := os.Getpid() % 4096
	n := &network{name: "pr" + strconv.FormatInt(int64(id), 36), subnet: fmt.Sprintf("10.%d.%d", 208+id/256, id%256)}
	n.gateway = n.subnet + ".1"
	defer func() {
		if err != nil {
			n.close()
			err = fmt.Errorf("network namespaces: %w (%w)", ErrNotHere, err)
		}
	}()
	for _, c := range [][]string{
		{"ip", "netns", "add", n.name},
		{"ip", "-n", n.name, "link", "add", bridge, "type", "bridge"},
		{"ip", "-n", n.name, "link", "set", bridge, "up"},
		{"ip", "link", "add", n.name, "type", "veth", "peer", "name", "here", "netns", n.name},
		{"ip", "-n", n.name, "link", "set", "here", "master", bridge, "up"},
		{"ip", "addr", "add", n.gateway + "/24", "dev", n.name},
		{"ip", "link", "set", n.name, "up"},
	} {
		if err := run(c...); err != nil {
			return nil, err
		}
	}
	for number := range maxNamespaces {
		if err := n.add(number); err != nil {
			return nil, err
		}
	}
	return n, run(append(n.enter("node-0"), "iptables", "-S")...)
}

// add makes the namespace of a node.
func (n *network) add(number int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	const within = "eth0"
	ns := n.name + "-" + strconv.Itoa(number)
	n.inner = append(n.inner, ns)
	for _, c := range [][]string{
		{"ip", "netns", "add", ns},
		{"ip", "-n", n.name, "link", "add", ns, "type", "veth", "peer", "name", within, "netns", ns},
		{"ip", "-n", n.name, "link", "set", ns, "master", bridge, "up"},
		{"ip", "-n", ns, "addr", "add", n.host(number) + "/24", "dev", within},
		{"ip", "-n", ns, "link", "set", within, "up"},
		{"ip", "-n", ns, "link", "set", "lo", "up"},
	} {
		if err := run(c...); err != nil {
			return err
		}
	}
	return nil
}

// host is the address of a node.
func (n *network) host(number int) string { return fmt.Sprintf("%s.%d", n.subnet, number+2) }

// enter is the command that runs another one in the namespace of a node.
func (n *network) enter(node string) []string {
	number, err := strconv.Atoi(strings.TrimPrefix(node, "node-"))
	if err != nil {
		panic(err) // localpod's names
	}
	return []string{"nsenter", "--net=/run/netns/" + n.inner[number]}
}

// cut drops what comes from one node at another: packets that are on their way are lost, and neither is told.
func (n *network) cut(from, to string) error {
	number, err := strconv.Atoi(strings.TrimPrefix(from, "node-"))
	if err != nil {
		return fmt.Errorf("cut: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cuts = true
	return run(append(n.enter(to), "iptables", "-A", "INPUT", "-s", n.host(number), "-j", "DROP")...)
}

func (n *network) mend() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.cuts {
		return nil
	}
	var errs []error
	for _, ns := range n.inner {
		errs = append(errs, run("nsenter", "--net=/run/netns/"+ns, "iptables", "-F", "INPUT"))
	}
	n.cuts = false
	return errors.Join(errs...)
}

func (n *network) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	_ = run("ip", "link", "del", n.name) // it may be half made, like the others
	for _, ns := range append(n.inner, n.name) {
		_ = run("ip", "netns", "del", ns) // its links go with it
	}
}

func run(command ...string) error {
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
