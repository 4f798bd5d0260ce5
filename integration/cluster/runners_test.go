package cluster

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/pairdbtest/scratch"
	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
)

func TestMain(m *testing.M) { os.Exit(scratch.Main(m)) }

// soon is how soon a runner must have done what it was told, on a machine that does much else.
const soon = time.Minute

// A scenario strikes what a Cluster says is there: a kill that is not undone, a halt that is, or a cut that
// lets something through make its verdict worthless, with one runner and not with another.
func TestEveryRunnerDoesWhatItIsTold(t *testing.T) {
	type runner = func(context.Context, Options) (Cluster, error)
	for name, get := range map[string]func(t *testing.T) runner{
		"processes":  func(*testing.T) runner { return Local },
		"namespaces": func(*testing.T) runner { return Namespaces },
		"containers": func(t *testing.T) runner { return Containers(scratch.Images(t)) },
	} {
		t.Run(name, func(t *testing.T) {
			run := get(t)
			dir, err := os.MkdirTemp("", "pods") // t.TempDir can be longer than a socket may be
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
			log := &podtest.Log{}
			ctx, cancel := context.WithTimeout(t.Context(), 2*soon)
			defer cancel()
			c, err := run(ctx, Options{Binaries: podtest.Binaries(t), Dir: dir, Nodes: 2, Log: log})
			if errors.Is(err, ErrNotHere) {
				require.NotEqual(t, "true", os.Getenv("CI"), "CI must run where this is allowed: %v", err)
				t.Skip(err)
			}
			require.NoError(t, err)
			t.Cleanup(func() {
				c.Close()
				if t.Failed() {
					t.Log(log)
				}
			})
			told{t, c}.all()
			c.Close()
			for _, n := range c.Nodes() {
				out, err := exec.Command(filepath.Join(podtest.Binaries(t), string(StorageNode)), "check", n.DataDir()).CombinedOutput()
				require.NoError(t, err, "%s", out)
			}
			require.Contains(t, log.String(), "storage-node")
		})
	}
}

// told is a cluster that is told everything once.
type told struct {
	t *testing.T
	c Cluster
}

func (d told) all() {
	d.alive()
	d.restarts()
	d.breaks()
	d.cuts()
	added, err := d.c.Add(d.t.Context())
	require.NoError(d.t, err)
	d.stores(added)
	d.alive()
	d.c.StopNATS()
	d.stores(added)
	require.NoError(d.t, d.c.StartNATS())
}

// sees waits until a node finds another one alive or not.
func (d told) sees(by, of Node, want clusterv1.Liveness) {
	d.t.Helper()
	admin := podtest.Client(d.t, by.Addr(), client.Options{RetryFor: -1, Timeout: 5 * time.Second}).Admin()
	podtest.Eventually(d.t, soon, by.Name()+" sees "+of.Name()+" "+want.String(), func() bool {
		r, err := admin.Members(d.t.Context(), &adminv1.MembersRequest{})
		for _, m := range r.GetMembers() {
			if err == nil && m.GetDeclared().GetNodeId() == of.Name() && m.GetLiveness() == want {
				return true
			}
		}
		return false
	})
}

func (d told) alive() {
	d.t.Helper()
	for _, by := range d.c.Nodes() {
		for _, of := range d.c.Nodes() {
			d.sees(by, of, clusterv1.Liveness_LIVENESS_ALIVE)
		}
	}
}

// stores waits until a node takes a write, by its own address.
func (d told) stores(n Node) {
	d.t.Helper()
	c := podtest.Client(d.t, n.Addr(), client.Options{RetryFor: -1, Timeout: 5 * time.Second})
	podtest.Eventually(d.t, soon, n.Name()+" takes a write", func() bool {
		_, err := c.Put(d.t.Context(), "key", []byte("value"))
		return err == nil
	})
}

// answers asks a node once, and does not wait long.
func answers(t *testing.T, n Node) bool {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	return n.Ready(ctx)
}

func (d told) serves(n Node) {
	d.t.Helper()
	podtest.Eventually(d.t, soon, n.Name()+" serves", func() bool { return answers(d.t, n) })
}

// restarts kills, pauses and ends the programs of a node.
func (d told) restarts() {
	n := d.c.Nodes()[0]
	for _, b := range Binaries {
		p := n.Process(b)
		before := p.PID()
		require.Positive(d.t, before, b)
		require.NoError(d.t, p.Kill())
		podtest.Eventually(d.t, soon, string(b)+" is started again", func() bool { return p.PID() != 0 && p.PID() != before })
	}
	d.serves(n)
	p := n.Process(StorageNode)
	require.NoError(d.t, p.Pause())
	podtest.Eventually(d.t, soon, "it is paused", func() bool { return !answers(d.t, n) })
	require.NoError(d.t, p.Resume())
	d.serves(n)
	for _, end := range []func(){p.Halt, p.Stop} {
		end()
		require.Zero(d.t, p.PID())
		require.False(d.t, answers(d.t, n), "it was ended")
		require.Error(d.t, p.Kill(), "there is nothing to kill")
		require.NoError(d.t, p.Start())
		require.Error(d.t, p.Start(), "it is started already")
		d.serves(n)
	}
	require.NoError(d.t, n.Broken())
	d.stores(n)
}

// breaks has a node find a directory on which it will never start.
func (d told) breaks() {
	n := d.c.Nodes()[0]
	p, format := n.Process(StorageNode), filepath.Join(n.DataDir(), "FORMAT")
	p.Stop()
	good, err := os.ReadFile(format)
	require.NoError(d.t, err)
	require.NoError(d.t, os.WriteFile(format, []byte("pairdb data directory, format 99\n"), 0o660))
	require.NoError(d.t, p.Start())
	podtest.Eventually(d.t, soon, "it is given up", func() bool { return n.Broken() != nil })
	require.ErrorContains(d.t, n.Broken(), "exit code 4")
	p.Halt()
	require.NoError(d.t, os.WriteFile(format, good, 0o660))
	require.NoError(d.t, p.Start())
	require.NoError(d.t, n.Broken())
	d.serves(n)
}

// cuts takes the way from one node to the other away for a while.
func (d told) cuts() {
	from, to := d.c.Nodes()[0], d.c.Nodes()[1]
	addr := from.Addr()
	if err := d.c.Cut(from, to); errors.Is(err, ErrUnsupported) {
		return
	} else {
		require.NoError(d.t, err)
	}
	require.NoError(d.t, d.c.Cut(to, from))
	d.sees(to, from, clusterv1.Liveness_LIVENESS_DOWN)
	// An agent that begins without a network begins to gossip when there is one.
	agent := from.Process(HealthAgent)
	before := agent.PID()
	require.NoError(d.t, agent.Kill())
	podtest.Eventually(d.t, soon, "the agent is started again", func() bool { return agent.PID() != 0 && agent.PID() != before })
	require.NoError(d.t, d.c.Mend())
	require.Equal(d.t, addr, from.Addr())
	d.alive()
	d.stores(from)
}
