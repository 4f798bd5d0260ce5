package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/localpod"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
)

const (
	// A cluster that starts, or a member that comes back, must be complete this soon.
	joinLimit = 15 * time.Second
	// A member that is gone must be seen to be gone this soon.
	downLimit = 10 * time.Second
	// awayFor is how long a part of the pod is away while its node is written to.
	awayFor = 3 * time.Second
)

// cluster is a set of pods with a client of each node.
type cluster struct {
	t       *testing.T
	pods    []*localpod.Pod
	set     *localpod.Pods
	clients []*client.Client
}

func start(t *testing.T, nodes int) *cluster {
	t.Helper()
	set, _ := podtest.Start(t, localpod.Options{Nodes: nodes})
	c := &cluster{t: t, pods: set.All(), set: set}
	for _, pod := range c.pods {
		c.clients = append(c.clients, podtest.Client(t, pod.Addr, client.Options{RetryFor: -1, Timeout: 5 * time.Second}))
	}
	return c
}

// members asks a node for the cluster.
func (c *cluster) members(node int) (*adminv1.MembersResponse, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
	defer cancel()
	return c.clients[node].Admin().Members(ctx, &adminv1.MembersRequest{})
}

// words says what a node knows of a member: "UP ALIVE", "" if nothing.
func (c *cluster) words(node, member int) string {
	r, err := c.members(node)
	if err != nil {
		return err.Error()
	}
	for _, m := range r.GetMembers() {
		if m.GetDeclared().GetNodeId() == c.pods[member].Name {
			state := strings.TrimPrefix(m.GetDeclared().GetState().String(), "MEMBER_STATE_")
			return state + " " + strings.TrimPrefix(m.GetLiveness().String(), "LIVENESS_")
		}
	}
	return ""
}

// see waits until each of the nodes knows this of the member, and says how long it took.
func (c *cluster) see(limit time.Duration, member int, want string, nodes ...int) {
	c.t.Helper()
	begun := time.Now()
	for _, n := range nodes {
		seen := ""
		c.t.Cleanup(func() {
			if c.t.Failed() && seen != want {
				c.t.Logf("%s saw %s %q last, not %q", c.pods[n].Name, c.pods[member].Name, seen, want)
			}
		})
		left := max(limit-time.Since(begun), time.Millisecond)
		podtest.Eventually(c.t, left, c.pods[n].Name+" sees "+c.pods[member].Name+" "+want, func() bool {
			seen = c.words(n, member)
			return seen == want
		})
		fmt.Printf("%s sees %s %s after %s\n", c.pods[n].Name, c.pods[member].Name, want, time.Since(begun).Round(10*time.Millisecond))
	}
}

// complete waits until every node sees every member up and alive.
func (c *cluster) complete() {
	c.t.Helper()
	for member := range c.pods {
		var nodes []int
		for n := range c.pods {
			nodes = append(nodes, n)
		}
		c.see(joinLimit, member, "UP ALIVE", nodes...)
	}
}

// serves requires that a node takes a write, reads it back and is ready.
func (c *cluster) serves(node int, key string) {
	c.t.Helper()
	require.True(c.t, c.pods[node].IsReady(c.t.Context()), "%s is not ready", c.pods[node].Name)
	_, err := c.clients[node].Put(c.t.Context(), key, []byte(key))
	require.NoError(c.t, err)
	v, err := c.clients[node].Get(c.t.Context(), key)
	require.NoError(c.t, err)
	require.Equal(c.t, key, string(v.Bytes))
}

// ready waits until the node of a pod serves again.
func (c *cluster) ready(node int) {
	c.t.Helper()
	podtest.Eventually(c.t, 30*time.Second, c.pods[node].Name+" is ready", func() bool { return c.pods[node].IsReady(c.t.Context()) })
}

// ctl runs pairctl against a node.
func (c *cluster) ctl(node int, args ...string) (code int, stdout, stderr string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(podtest.Binaries(c.t), "pairctl"), args...)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PAIRDB_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "PAIRDB_ADDR="+c.pods[node].Addr)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(c.t, err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

func TestMembersAreSeenToComeAndGo(t *testing.T) {
	// Whoever places keys or calls a node trusts the list: a member that is gone must be seen to be gone,
	// one that is back to be back, and nobody's silence may change what it declared.
	c := start(t, 3)
	c.complete()
	for n := range c.pods {
		r, err := c.members(n)
		require.NoError(t, err)
		require.Len(t, r.GetMembers(), 3)
		require.True(t, r.GetVerdict().GetLive())
		for i, m := range r.GetMembers() {
			require.Equal(t, c.pods[i].Addr, m.GetDeclared().GetGrpcAddr())
			require.Equal(t, c.pods[i].GossipAddr, m.GetGossipAddr())
			require.EqualValues(t, 150, m.GetDeclared().GetVirtualNodes())
		}
	}
	code, out, stderr := c.ctl(0, "status", "--cluster")
	require.Zero(t, code, "%s%s", out, stderr)
	require.Equal(t, 3, strings.Count(out, "serving"), out)

	// The health-agent alone: its node goes on and keeps the last view.
	c.pods[2].HealthAgent.Halt()
	c.see(downLimit, 2, "UP DOWN", 0, 1)
	c.serves(2, "without-agent")
	require.Equal(t, "UP ALIVE", c.words(2, 0), "the last view")
	r, err := c.members(2)
	require.NoError(t, err)
	require.Positive(t, r.GetAgeMs())
	require.NoError(t, c.pods[2].HealthAgent.Start())
	c.see(joinLimit, 2, "UP ALIVE", 0, 1, 2)

	// A whole pod.
	c.pods[1].Halt()
	c.see(downLimit, 1, "UP DOWN", 0, 2)
	code, out, _ = c.ctl(0, "status", "--cluster")
	require.Zero(t, code, "nobody expects an answer of one that is down: %s", out)
	require.Contains(t, out, "no answer")
	require.NoError(t, c.pods[1].Start())
	c.ready(1)
	c.complete()

	// A pod that says goodbye.
	c.pods[2].Stop()
	c.see(downLimit, 2, "UP LEFT", 0, 1)
	require.NoError(t, c.pods[2].Start())
	c.ready(2)
	c.complete()

	// A node that is gone while its health-agent gossips on: it is asked, and that it does not answer counts.
	c.pods[1].Node.Halt()
	code, out, stderr = c.ctl(0, "status", "--cluster")
	require.Equal(t, 6, code, "%s%s", out, stderr)
	require.Contains(t, stderr, "should answer")
	require.NoError(t, c.pods[1].Node.Start())
	c.ready(1)
	c.complete()
}

func TestNodeRemembersTheClusterWithoutItsAgent(t *testing.T) {
	// A node that starts alone must know who the others are, and that it does not know how they are.
	c := start(t, 2)
	c.complete()
	c.pods[0].HealthAgent.Stop()
	c.pods[0].Node.Halt()
	require.NoError(t, c.pods[0].Node.Start())
	c.ready(0)
	r, err := c.members(0)
	require.NoError(t, err)
	require.EqualValues(t, -1, r.GetAgeMs())
	require.Nil(t, r.GetVerdict())
	require.Len(t, r.GetMembers(), 2)
	for _, m := range r.GetMembers() {
		require.Equal(t, clusterv1.Liveness_LIVENESS_UNSEEN, m.GetLiveness())
		require.Equal(t, clusterv1.MemberState_MEMBER_STATE_UP, m.GetDeclared().GetState())
	}
	_, out, _ := c.ctl(0, "members")
	require.Contains(t, out, "was not heard since the node started")
	code, _, stderr := c.ctl(0, "members", "remove", "node-1", "--reason", "a mistake")
	require.Equal(t, 1, code, "who is alive is not known: %s", stderr)
	require.NoError(t, c.pods[0].HealthAgent.Start())
	c.complete()
}

func TestRemovedMemberStaysRemoved(t *testing.T) {
	// A member that was given up and comes back with old data must not be taken for one that was always there.
	c := start(t, 3)
	c.complete()
	code, _, stderr := c.ctl(0, "members", "remove", "node-2", "--reason", "too early")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "is ALIVE")
	code, _, _ = c.ctl(0, "members", "remove", "node-0", "--reason", "itself")
	require.Equal(t, 1, code)
	code, _, _ = c.ctl(0, "members", "remove", "node-7", "--reason", "unknown")
	require.Equal(t, 3, code)

	c.pods[2].Halt()
	c.see(downLimit, 2, "UP DOWN", 0, 1)
	code, out, stderr := c.ctl(0, "members", "remove", "node-2", "--reason", "its disk burnt")
	require.Zero(t, code, stderr)
	require.Contains(t, out, "removed node-2")
	for _, n := range []int{0, 1} {
		podtest.Eventually(t, joinLimit, c.pods[n].Name+" knows that node-2 was removed", func() bool {
			return strings.HasPrefix(c.words(n, 2), "REMOVED")
		})
	}
	require.NoError(t, c.pods[2].Start())
	c.ready(2)
	podtest.Eventually(t, joinLimit, "node-2 knows it too", func() bool {
		s, err := c.clients[2].Admin().Status(t.Context(), &adminv1.StatusRequest{})
		return err == nil && strings.Contains(fmt.Sprint(s.GetDegraded()), "removed")
	})
	for n := range c.pods {
		require.True(t, strings.HasPrefix(c.words(n, 2), "REMOVED"), c.words(n, 2))
	}
}

func TestNodeServesWithoutAnythingBesideIt(t *testing.T) {
	// The failure of a sidecar, or of NATS, is never the failure of the node.
	c := start(t, 1)
	c.see(joinLimit, 0, "UP ALIVE", 0)
	pod := c.pods[0]
	c.serves(0, "before")
	for _, part := range []struct {
		name string
		away func()
		back func() error
	}{
		{name: "compactor", away: pod.Compactor.Halt, back: pod.Compactor.Start},
		{name: "health-agent", away: pod.HealthAgent.Halt, back: pod.HealthAgent.Start},
		{name: "nats", away: c.set.StopNATS, back: c.set.StartNATS},
	} {
		part.away()
		begun := time.Now()
		for i := 0; time.Since(begun) < awayFor; i++ {
			c.serves(0, fmt.Sprintf("without-%s-%d", part.name, i))
		}
		require.Zero(t, pod.Node.Restarts(), part.name)
		require.NoError(t, part.back())
		c.serves(0, "with-"+part.name)
	}
	// All at once.
	pod.Compactor.Halt()
	pod.HealthAgent.Halt()
	c.set.StopNATS()
	for i := range 100 {
		c.serves(0, fmt.Sprintf("alone-%d", i))
	}
	require.NoError(t, c.set.StartNATS())
	require.NoError(t, pod.Compactor.Start())
	require.NoError(t, pod.HealthAgent.Start())
	podtest.Eventually(t, joinLimit, "the health-agent is heard again", func() bool {
		r, err := c.members(0)
		return err == nil && r.GetAgeMs() >= 0 && r.GetAgeMs() < 3000
	})
	require.Zero(t, pod.Node.Restarts())
}
