package smoke

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/pairdbtest"
	"github.com/pairdb/pairdb/integration/pairdbtest/scratch"
	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/localpod"
	"github.com/pairdb/pairdb/libs/ring"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
)

func TestMain(m *testing.M) { os.Exit(scratch.Main(m)) }

const (
	// seenLimit is how soon the cluster must see a change, containers and a busy machine included.
	seenLimit = 30 * time.Second
	// equalLimit is how soon both owners of a key must have it after the last fault.
	equalLimit = time.Minute
	// callTimeout is how long a coordinator waits for a node before it asks the next owner.
	callTimeout = 2 * time.Second
	// writeEvery keeps the writer from taking the machine from what it tests.
	writeEvery = 5 * time.Millisecond
	// replicas is the replication factor: one node of three can leave.
	replicas = 2
)

// coordinator writes records one after the other, as a coordinator with a quorum of one does: to the first
// owner that takes it.
type coordinator struct {
	t    *testing.T
	pods []*pairdbtest.Pod
	ring *ring.Ring

	mu      sync.Mutex
	clients map[string]*client.Client // guarded by mu; by node
	acked   map[string]string         // guarded by mu; the node that has acknowledged a key
}

func coordinate(t *testing.T, pods []*pairdbtest.Pod) *coordinator {
	t.Helper()
	c := &coordinator{t: t, pods: pods, clients: map[string]*client.Client{}, acked: map[string]string{}}
	var members []ring.Member
	for _, p := range pods {
		members = append(members, ring.Member{NodeID: p.Name, VirtualNodes: 150})
		c.dial(p)
	}
	c.ring = ring.New(members, replicas)
	return c
}

// dial makes the client of a node, also when its address has changed.
func (c *coordinator) dial(p *pairdbtest.Pod) {
	c.t.Helper()
	made := podtest.Client(c.t, p.Addr(), client.Options{RetryFor: -1, Timeout: callTimeout})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clients[p.Name] = made
}

func (c *coordinator) client(node string) *client.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.clients[node]
}

// write stores one key at the first owner that acknowledges it. The value is the key.
func (c *coordinator) write(ctx context.Context, key string) {
	ask := c.ring.Replicas(ring.Token(client.DefaultTenant, key))
	for i := 0; i < len(ask); i++ {
		_, err := c.client(ask[i]).Put(ctx, key, []byte(key))
		if err == nil {
			c.mu.Lock()
			c.acked[key] = ask[i]
			c.mu.Unlock()
			return
		}
		if owner, _, ok := client.Owner(err); ok && owner != "" && !slices.Contains(ask, owner) {
			ask = append(ask, owner)
		}
	}
}

// begin writes until the returned function is called.
func (c *coordinator) begin() (end func()) {
	ctx, cancel := context.WithCancel(c.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(writeEvery)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				c.write(ctx, fmt.Sprintf("key/%06d", i))
			}
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

// ackedBy returns the keys that a node has acknowledged; of all nodes if it is empty.
func (c *coordinator) ackedBy(node string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var keys []string
	for key, by := range c.acked {
		if node == "" || by == node {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// goesOn waits until so many more writes were acknowledged.
func (c *coordinator) goesOn(what string, writes int) {
	c.t.Helper()
	had := len(c.ackedBy(""))
	podtest.Eventually(c.t, seenLimit, "writes go on "+what, func() bool { return len(c.ackedBy("")) >= had+writes })
}

// liveness is what a node sees of another one.
func (c *coordinator) liveness(by, of string) clusterv1.Liveness {
	ctx, cancel := context.WithTimeout(c.t.Context(), callTimeout)
	defer cancel()
	r, err := c.client(by).Admin().Members(ctx, &adminv1.MembersRequest{})
	if err != nil {
		return clusterv1.Liveness_LIVENESS_UNSPECIFIED
	}
	for _, m := range r.GetMembers() {
		if m.GetDeclared().GetNodeId() == of {
			return m.GetLiveness()
		}
	}
	return clusterv1.Liveness_LIVENESS_UNSPECIFIED
}

func (c *coordinator) sees(by, of string, want clusterv1.Liveness) {
	c.t.Helper()
	podtest.Eventually(c.t, seenLimit, by+" sees "+of+" "+want.String(), func() bool { return c.liveness(by, of) == want })
}

// lacks returns those of keys that a node does not have, or has with another value.
func (c *coordinator) lacks(node string, keys []string) ([]string, error) {
	var missing []string
	for chunk := range slices.Chunk(keys, client.MaxBatchOps) {
		values, err := c.client(node).GetMany(c.t.Context(), chunk)
		if err != nil {
			return nil, err
		}
		for i, v := range values {
			if string(v.Bytes) != chunk[i] {
				missing = append(missing, chunk[i])
			}
		}
	}
	return missing, nil
}

// A cluster that loses what it has acknowledged when a container is killed, a network is cut or a node leaves
// is no database. The containers are those of production: other users, other roots, names instead of the
// loopback address.
func TestClusterOfContainersKeepsWhatItAcknowledged(t *testing.T) {
	images := scratch.Images(t)
	cluster := pairdbtest.Start(t, pairdbtest.Options{Nodes: 3, Images: images, Env: []string{
		fmt.Sprintf("PAIRDB_REPLICATION_FACTOR=%d", replicas), "PAIRDB_REPAIR_INTERVAL=5s",
	}})
	pods := cluster.Pods()
	stays, killed, leaves := pods[0], pods[1], pods[2]
	events := listen(t, cluster.NATSURL())
	c := coordinate(t, pods)
	for _, p := range pods {
		c.sees(stays.Name, p.Name, clusterv1.Liveness_LIVENESS_ALIVE)
	}
	end := c.begin()
	c.goesOn("at first", 200)

	require.NoError(t, killed.Kill(t.Context(), localpod.StorageNode))
	c.goesOn("without a node", 100)
	require.NoError(t, killed.Start(t.Context(), localpod.StorageNode))
	require.NoError(t, killed.AwaitReady(t.Context()))
	var missing []string
	podtest.Eventually(t, equalLimit, "the killed container answers, on a new connection", func() bool {
		var err error
		missing, err = c.lacks(killed.Name, c.ackedBy(killed.Name))
		return err == nil
	})
	require.Empty(t, missing, "what the killed container had acknowledged")

	require.NoError(t, leaves.Disconnect(t.Context()))
	c.sees(stays.Name, leaves.Name, clusterv1.Liveness_LIVENESS_DOWN)
	_, err := c.client(leaves.Name).Get(t.Context(), "key/000000")
	require.Error(t, err, "a node that is cut off answers")
	c.goesOn("beside the cut", 100)
	require.NoError(t, leaves.Reconnect(t.Context()))
	c.dial(leaves)
	c.sees(stays.Name, leaves.Name, clusterv1.Liveness_LIVENESS_ALIVE)
	c.sees(leaves.Name, stays.Name, clusterv1.Liveness_LIVENESS_ALIVE)

	code, stdout, stderr := run(t, "", []string{"PAIRDB_ADDR=" + leaves.Addr()}, "pairctl", "drain", "--decommission", "--wait")
	require.Zero(t, code, "%s%s", stdout, stderr)
	c.goesOn("after the drain", 100)
	end()
	all := c.ackedBy("")
	require.GreaterOrEqual(t, len(all), 500)
	its := slices.IndexFunc(all, func(key string) bool {
		return slices.Contains(c.ring.Replicas(ring.Token(client.DefaultTenant, key)), leaves.Name)
	})
	_, err = c.client(leaves.Name).Put(t.Context(), all[its], []byte("late"))
	_, _, gone := client.Owner(err)
	require.True(t, gone, "a drained node names another owner: %v", err)

	for _, p := range []*pairdbtest.Pod{stays, killed} {
		var missing []string
		var err error
		podtest.Eventually(t, equalLimit, p.Name+" has all that was acknowledged", func() bool {
			missing, err = c.lacks(p.Name, all)
			return err == nil && len(missing) == 0
		})
	}
	require.NotEmpty(t, events(), "NATS has got no event of all this")
}

// listen counts what arrives at NATS.
func listen(t *testing.T, url string) func() []string {
	t.Helper()
	nc, err := nats.Connect(url)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	var mu sync.Mutex
	var subjects []string
	_, err = nc.Subscribe("pairdb.>", func(m *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		subjects = append(subjects, m.Subject)
	})
	require.NoError(t, err)
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(subjects)
	}
}
