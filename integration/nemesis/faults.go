package nemesis

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/pairdb/pairdb/integration/cluster"
	"github.com/pairdb/pairdb/libs/client"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// Faults are all kinds.
var Faults = []Fault{
	{"kill storage-node", aNode, kill(cluster.StorageNode)},
	{"kill compactor", aNode, kill(cluster.Compactor)},
	{"kill migrator", aNode, kill(cluster.Migrator)},
	{"kill health-agent", aNode, kill(cluster.HealthAgent)},
	{"kill everything", everything, killEverything},
	{"pause storage-node", aNode, freeze(cluster.StorageNode)},
	{"pause compactor", aNode, freeze(cluster.Compactor)},
	{"pause migrator", aNode, freeze(cluster.Migrator)},
	{"pause health-agent", aNode, freeze(cluster.HealthAgent)},
	{"pause everything", everything, pauseEverything},
	{"power off a node", aNode, powerOff},
	{"rolling restart", everything, rollingRestart},
	{"partition one node", beside, partitionOne},
	{"partition halves", beside, partitionHalves},
	{"partition one way", beside, partitionOneWay},
	{"slow network", aNode, slowNetwork},
	{"NATS away", beside, natsAway},
	{"disk full", beside, diskFull},
	{"failing sync", aNode, failing("fdatasync,fsync")},
	{"failing write", aNode, failing("pwrite64,fallocate,renameat,unlinkat")},
	{"lying compactor", aNode, lyingCompactor},
	{"stalled compactor", aNode, stalledCompactor},
	{"clock jump of storage-node", aNode, clockJump(cluster.StorageNode)},
	{"clock jump of compactor", aNode, clockJump(cluster.Compactor)},
	{"clock jump of migrator", aNode, clockJump(cluster.Migrator)},
	{"flush drain", aNode, flushDrain},
	{"bootstrap", members, bootstrap},
	{"decommission", members, decommission},
}

func kill(b cluster.Binary) func(*scene) error {
	return func(s *scene) error {
		_ = s.node.Process(b).Kill() // it may be starting again just now
		return s.n.ready(s.node)
	}
}

// processes are all of some nodes.
func processes(nodes ...cluster.Node) (out []cluster.Process) {
	for _, m := range nodes {
		for _, b := range cluster.Binaries {
			out = append(out, m.Process(b))
		}
	}
	return out
}

func killEverything(s *scene) error {
	for _, p := range processes(s.n.Members()...) {
		_ = p.Kill() // it may be starting again just now
	}
	return s.n.ready(s.n.Members()...)
}

// stopped pauses processes for a while.
func stopped(s *scene, of ...cluster.Process) {
	for _, p := range of {
		_ = p.Pause() // it may be starting again just now
	}
	pause(s.ctx, s.hold)
	for _, p := range of {
		_ = p.Resume() // likewise
	}
}

func freeze(b cluster.Binary) func(*scene) error {
	return func(s *scene) error {
		stopped(s, s.node.Process(b))
		return s.n.ready(s.node)
	}
}

func pauseEverything(s *scene) error {
	stopped(s, processes(s.n.Members()...)...)
	return s.n.ready(s.n.Members()...)
}

func (n *Nemesis) start(m cluster.Node) error {
	for _, p := range processes(m) {
		if err := p.Start(); err != nil {
			return err
		}
	}
	return n.ready(m)
}

func powerOff(s *scene) error {
	for _, p := range processes(s.node) {
		p.Halt()
	}
	pause(s.ctx, s.hold)
	return s.n.start(s.node)
}

// stop ends the processes of a node as a pod is ended, the storage-node last.
func stop(m cluster.Node) {
	for i := len(cluster.Binaries) - 1; i >= 0; i-- {
		m.Process(cluster.Binaries[i]).Stop()
	}
}

func rollingRestart(s *scene) error {
	for _, m := range s.n.Members() {
		stop(m)
		if err := s.n.start(m); err != nil {
			return err
		}
	}
	return nil
}

// cut cuts links for a while: those from one of the first to one of the second, one way.
func (s *scene) cut(ways ...[2][]cluster.Node) (err error) {
	s.n.links.Lock()
	defer s.n.links.Unlock()
	defer func() { err = errors.Join(err, s.n.cluster.Mend()) }()
	for _, way := range ways {
		for _, from := range way[0] {
			for _, to := range way[1] {
				if err := s.n.cluster.Cut(from, to); err != nil {
					return err
				}
			}
		}
	}
	pause(s.ctx, 2*s.hold) // long enough to be noticed
	return nil
}

// split returns some members, as many as asked for, and the others.
func (s *scene) split(count func(all int) int) (some, others []cluster.Node) {
	all := s.n.Members()
	s.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	k := count(len(all))
	return all[:k], all[k:]
}

func one(int) int { return 1 }

func partitionOne(s *scene) error {
	a, b := s.split(one)
	return s.cut([2][]cluster.Node{a, b}, [2][]cluster.Node{b, a})
}

func partitionHalves(s *scene) error {
	a, b := s.split(func(all int) int { return (all + 1) / 2 })
	// Those of a half don't see each other through the other one either: all links between both are cut.
	return s.cut([2][]cluster.Node{a, b}, [2][]cluster.Node{b, a})
}

func partitionOneWay(s *scene) error {
	a, b := s.split(one)
	return s.cut([2][]cluster.Node{a, b})
}

func slowNetwork(s *scene) error {
	if err := s.node.Slow(time.Duration(20+s.random.IntN(300)) * time.Millisecond); err != nil {
		return err
	}
	pause(s.ctx, s.hold)
	return s.node.Slow(0)
}

func natsAway(s *scene) error {
	s.n.cluster.StopNATS()
	pause(s.ctx, s.hold)
	return s.n.cluster.StartNATS()
}

func diskFull(s *scene) error {
	for _, m := range s.n.Members() {
		d := m.Disk()
		if d == nil {
			continue
		}
		err := d.Leave([]float64{0, 1, 3, 7}[s.random.IntN(4)])
		pause(s.ctx, s.hold)
		return errors.Join(err, d.Empty(), s.n.ready(m))
	}
	return cluster.ErrUnsupported
}

// failing has some calls of a node fail with EIO, as a disk does: calls that are made for files alone, since a
// program whose pipes fail is another story. A node that is poisoned by that ends, and
// one that refuses to go on is not started again by itself: it is started by hand, as an operator would.
func failing(calls string) func(*scene) error {
	return func(s *scene) error {
		if _, err := exec.LookPath("strace"); err != nil {
			return fmt.Errorf("%w: strace is missing", cluster.ErrUnsupported)
		}
		p := s.node.Process(cluster.StorageNode)
		pid := p.PID()
		if pid == 0 {
			return s.n.ready(s.node)
		}
		from := 1 + s.random.IntN(10)
		cmd := exec.Command("strace", "-f", "-q", "-o", "/dev/null", "-e", "trace="+calls,
			"-e", fmt.Sprintf("inject=%s:error=EIO:when=%d..%d", calls, from, from+s.random.IntN(3)), "-p", strconv.Itoa(pid))
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("strace: %w", err)
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = cmd.Wait() // it ends with the node, or when it is told to
		}()
		select {
		case <-ended:
		case <-time.After(s.hold):
			_ = cmd.Process.Signal(syscall.SIGINT) // it lets the node go
			<-ended
		}
		p.Halt()
		if err := p.Start(); err != nil {
			return err
		}
		return s.n.ready(s.node)
	}
}

// jump is how far a clock that only runs forward can be from where it was before a restart.
const jump = 100 * time.Hour

// clockJump starts a process again with such a clock somewhere else, ahead or behind, as after the death of
// its machine: leases, back-offs and graces must not take that for time that has passed.
func clockJump(b cluster.Binary) func(*scene) error {
	return func(s *scene) error {
		if err := s.node.Shift(b, upTo(s.random, jump)); err != nil {
			return err
		}
		return kill(b)(s)
	}
}

// admin calls a node as an operator does.
func admin(m cluster.Node, f func(context.Context, adminv1.AdminServiceClient) error) error {
	c, err := client.New(m.Addr(), client.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return f(ctx, c.Admin())
}

func flushDrain(s *scene) error {
	err := admin(s.node, func(ctx context.Context, c adminv1.AdminServiceClient) error {
		_, err := c.Drain(ctx, &adminv1.DrainRequest{Kind: adminv1.DrainRequest_KIND_FLUSH, TimeoutMs: max(1000, s.hold.Milliseconds())})
		return err
	})
	if err != nil {
		s.n.say("flush drain of %s: %v", s.node.Name(), err) // it may be cut off, or full: then nothing has changed
	}
	pause(s.ctx, s.hold)
	return s.n.ready(s.node)
}
