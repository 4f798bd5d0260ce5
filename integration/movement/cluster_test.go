// Package movement moves data between pods of the built binaries, under writes, and takes away what takes
// part in it. It never imports a service.
package movement

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/localpod"
	"github.com/pairdb/pairdb/libs/ring"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
)

const (
	// tenant is whose keys move.
	tenant = "moving"
	// clusterID is what pods are called that are told nothing.
	clusterID = "pairdb"
	// joinLimit is how soon every node must know a change of the members.
	joinLimit = time.Minute
	// convergeLimit is how soon every owner must have every key after the members changed: the bar for
	// 100,000 keys.
	convergeLimit = 40 * time.Second
	// moveLimit is how soon a move of the short tests must get where it is awaited.
	moveLimit = 2 * time.Minute
)

// long: the tests take as much data as their bars speak of (make movement-long).
var long = os.Getenv("PAIRDB_LONG") != ""

// size returns how many records a test has.
func size(short, full int) int {
	if long {
		return full
	}
	return short
}

// bar is a limit that users are promised. The long form has a machine for itself and keeps to it; beside the
// tests of other packages three times as much says that nothing hangs.
func bar(d time.Duration) time.Duration {
	if long {
		return d
	}
	return 3 * d
}

// patience is a limit that is made for the short tests, for as much data as there is.
func patience(d time.Duration) time.Duration {
	if long {
		return 30 * d
	}
	return d
}

// node is a pod with the connections of this test to its storage-node.
type node struct {
	*localpod.Pod
	client *client.Client
	conn   *grpc.ClientConn
	// network is what others reach the node through; nil: they do as the test does.
	network *podtest.Proxy
}

func (n *node) admin() adminv1.AdminServiceClient { return adminv1.NewAdminServiceClient(n.conn) }
func (n *node) replica() replicav1.ReplicaServiceClient {
	return replicav1.NewReplicaServiceClient(n.conn)
}

// cluster is a set of pods.
type cluster struct {
	t     *testing.T
	set   *localpod.Pods
	nodes []*node
}

// start starts a cluster whose members are all up.
func start(t *testing.T, nodes int, env ...string) *cluster {
	t.Helper()
	set, _ := podtest.Start(t, localpod.Options{Nodes: nodes, NoCompactor: true, Env: env})
	c := &cluster{t: t, set: set}
	for _, pod := range set.All() {
		c.connect(pod)
	}
	c.await(clusterv1.MemberState_MEMBER_STATE_UP, c.nodes...)
	return c
}

func (c *cluster) connect(pod *localpod.Pod) *node {
	c.t.Helper()
	conn, err := grpc.NewClient(pod.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	require.NoError(c.t, err)
	c.t.Cleanup(func() { require.NoError(c.t, conn.Close()) })
	n := &node{Pod: pod, conn: conn, client: podtest.Client(c.t, pod.Addr, client.Options{Tenant: tenant, RetryFor: -1, Timeout: 5 * time.Second})}
	c.nodes = append(c.nodes, n)
	return n
}

// add starts one more pod, which takes over its ranges before it is up, and returns when it serves.
func (c *cluster) add(env ...string) *node {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	pod, err := c.set.Add(ctx, env...)
	require.NoError(c.t, err)
	return c.connect(pod)
}

// back starts a pod that was stopped and waits until its node serves.
func (c *cluster) back(n *node) {
	c.t.Helper()
	require.NoError(c.t, n.Start())
	podtest.Eventually(c.t, 30*time.Second, n.Name+" is ready", func() bool { return n.IsReady(c.t.Context()) })
}

// behind puts nodes behind networks that can be cut: from now on they declare the addresses of these.
func (c *cluster) behind(nodes ...*node) {
	c.t.Helper()
	for _, n := range nodes {
		n.network = podtest.NewProxy(c.t, n.Addr)
		n.Node.SetEnv("PAIRDB_ADVERTISE_ADDR=" + n.network.Addr)
		n.Stop()
		c.back(n)
	}
	podtest.Eventually(c.t, joinLimit, "all know the new addresses", func() bool {
		return !slices.ContainsFunc(c.nodes, func(o *node) bool {
			m, err := c.members(o)
			return err != nil || slices.ContainsFunc(nodes, func(n *node) bool { return m[n.Name].GetDeclared().GetGrpcAddr() != n.network.Addr })
		})
	})
	c.await(clusterv1.MemberState_MEMBER_STATE_UP, c.nodes...)
}

// named returns the node of a name or an address; nil if there is none.
func (c *cluster) named(what string) *node {
	for _, n := range c.nodes {
		if n.Name == what || n.Addr == what || n.network != nil && n.network.Addr == what {
			return n
		}
	}
	return nil
}

// members is what a node knows of the cluster, by id.
func (c *cluster) members(n *node) (map[string]*clusterv1.Member, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
	defer cancel()
	r, err := n.admin().Members(ctx, &adminv1.MembersRequest{})
	if err != nil {
		return nil, err
	}
	out := map[string]*clusterv1.Member{}
	for _, m := range r.GetMembers() {
		out[m.GetDeclared().GetNodeId()] = m
	}
	return out, nil
}

// knows reports whether a node knows what others have declared, and sees them alive.
func (c *cluster) knows(n *node, state clusterv1.MemberState, others ...*node) bool {
	m, err := c.members(n)
	return err == nil && !slices.ContainsFunc(others, func(o *node) bool {
		seen := m[o.Name]
		return seen.GetDeclared().GetState() != state || seen.GetLiveness() != clusterv1.Liveness_LIVENESS_ALIVE
	})
}

// await waits until each of the nodes knows this of all of them.
func (c *cluster) await(state clusterv1.MemberState, nodes ...*node) {
	c.t.Helper()
	c.awaitAt(joinLimit, nodes, state, nodes...)
}

// awaitAt waits until some nodes know the state of others.
func (c *cluster) awaitAt(limit time.Duration, where []*node, state clusterv1.MemberState, others ...*node) {
	c.t.Helper()
	for _, n := range where {
		podtest.Eventually(c.t, limit, fmt.Sprintf("%s knows that %s are %s", n.Name, names(others), state), func() bool {
			return c.knows(n, state, others...)
		})
	}
}

// replace gives a node that is stopped an empty disk and starts it, and returns once all nodes know that it
// is another one under the old name.
func (c *cluster) replace(n *node) {
	c.t.Helper()
	var before string
	for _, o := range c.others(n) {
		if m, err := c.members(o); err == nil && m[n.Name] != nil {
			before = m[n.Name].GetDeclared().GetIncarnation()
		}
	}
	require.NotEmpty(c.t, before)
	require.NoError(c.t, n.Wipe())
	c.back(n)
	podtest.Eventually(c.t, joinLimit, n.Name+" knows who it is and who the others are", func() bool {
		m, err := c.members(n)
		return err == nil && len(m) >= 2 && m[n.Name] != nil && m[n.Name].GetDeclared().GetIncarnation() != before
	})
}

// down kills a node and waits until others see that it is gone.
func (c *cluster) down(n *node, seenBy ...*node) {
	c.t.Helper()
	n.Halt()
	for _, o := range seenBy {
		podtest.Eventually(c.t, joinLimit, o.Name+" sees "+n.Name+" down", func() bool {
			m, err := c.members(o)
			return err == nil && m[n.Name].GetLiveness() == clusterv1.Liveness_LIVENESS_DOWN
		})
	}
}

// remove takes a node that is down off the list of members.
func (c *cluster) remove(n, at *node) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
	defer cancel()
	_, err := at.admin().RemoveMember(ctx, &adminv1.RemoveMemberRequest{NodeId: n.Name, Reason: "its disk burnt"})
	require.NoError(c.t, err)
}

func names(nodes []*node) string {
	var out []string
	for _, n := range nodes {
		out = append(out, n.Name)
	}
	return strings.Join(out, ", ")
}

// others returns the nodes but some.
func (c *cluster) others(but ...*node) (out []*node) {
	for _, n := range c.nodes {
		if !slices.Contains(but, n) {
			out = append(out, n)
		}
	}
	return out
}

// ring is the ring of nodes as each of them computes it from the members.
func (c *cluster) ring(factor int, nodes ...*node) *ring.Ring {
	var members []ring.Member
	for _, n := range nodes {
		members = append(members, ring.Member{NodeID: n.Name, VirtualNodes: 150})
	}
	return ring.New(members, factor)
}

// owners returns who keeps a key by a ring.
func (c *cluster) owners(r *ring.Ring, key string) (out []*node) {
	for _, id := range r.Replicas(ring.Token(tenant, key)) {
		out = append(out, c.named(id))
	}
	return out
}

// everything of the tenant.
func everything() *movev1.Selection { return &movev1.Selection{Tenant: tenant} }

// half returns one half of the ring, all tenants.
func half(first bool) *movev1.Selection {
	r := &datav1.HashRange{Start: 0, End: 1 << 63}
	if !first {
		r = &datav1.HashRange{Start: 1 << 63, End: 0}
	}
	return &movev1.Selection{HashRanges: []*datav1.HashRange{r}}
}

func target(n *node) *movev1.Target { return &movev1.Target{NodeId: n.Name} }

// replicate asks a node for moves and returns the first.
func (c *cluster) replicate(from *node, r *adminv1.ReplicateRequest) *movev1.Move {
	c.t.Helper()
	resp, err := c.tryReplicate(from, r)
	require.NoError(c.t, err)
	require.Len(c.t, resp.GetMoves(), len(r.GetTargets()))
	return resp.GetMoves()[0]
}

func (c *cluster) tryReplicate(from *node, r *adminv1.ReplicateRequest) (*adminv1.ReplicateResponse, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
	defer cancel()
	return from.admin().Replicate(ctx, r)
}

// moves returns all that a node knows, ended ones included.
func (c *cluster) moves(n *node, id string) (*adminv1.MovesResponse, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
	defer cancel()
	return n.admin().Moves(ctx, &adminv1.MovesRequest{IncludeEnded: true, Id: id})
}

// move returns a move as its source tells it now; nil while it does not answer.
func (c *cluster) move(n *node, id string) *movev1.Move {
	r, err := c.moves(n, id)
	if err != nil {
		return nil
	}
	for _, m := range r.GetMoves() {
		if m.GetId() == id {
			return m
		}
	}
	return nil
}

// until waits for a move and returns it.
func (c *cluster) until(n *node, id, what string, f func(*movev1.Move) bool) *movev1.Move {
	c.t.Helper()
	var last *movev1.Move
	defer func() {
		if c.t.Failed() {
			c.t.Logf("the move was last seen as %v", last)
		}
	}()
	podtest.Eventually(c.t, patience(moveLimit), fmt.Sprintf("move %s of %s %s", id, n.Name, what), func() bool {
		if m := c.move(n, id); m != nil {
			last = m
		}
		return last != nil && f(last)
	})
	return last
}

func (c *cluster) untilState(n *node, id string, s movev1.State) *movev1.Move {
	c.t.Helper()
	return c.until(n, id, "is "+s.String(), func(m *movev1.Move) bool { return m.GetState() == s })
}

// reached waits until a watch of a move shows it in a state or behind it, and returns whether it was seen
// in the state itself: one that is short may be over before anybody looks.
func (c *cluster) reached(n *node, id string, s movev1.State) (exactly bool) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience(moveLimit))
	defer cancel()
	for ctx.Err() == nil {
		stream, err := n.admin().WatchMoves(ctx, &adminv1.WatchMovesRequest{IncludeEnded: true, Id: id})
		for err == nil {
			var r *adminv1.WatchMovesResponse
			if r, err = stream.Recv(); err != nil {
				break
			}
			for _, m := range r.GetView().GetMoves() {
				if (m.GetId() == id || m.GetParent() == id) && m.GetState() >= s {
					return m.GetState() == s
				}
			}
		}
	}
	c.t.Fatalf("move %s of %s is not %s within %s", id, n.Name, s, patience(moveLimit))
	return false
}

// digest returns what a node has of a selection: the roots of its ranges.
func (c *cluster) digest(n *node, what *movev1.Selection) (string, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), patience(30*time.Second))
	defer cancel()
	r, err := n.replica().Digest(ctx, &replicav1.DigestRequest{
		Peer: &replicav1.Peer{ClusterId: clusterID, NodeId: c.nodes[0].Name}, What: what, LeavesPerRange: 64,
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x of %d records", r.GetRoots(), r.GetRecords()), nil
}

// equal waits until nodes have the same of a selection.
func (c *cluster) equal(limit time.Duration, what *movev1.Selection, nodes ...*node) {
	c.t.Helper()
	var seen []string
	defer func() {
		if c.t.Failed() {
			c.t.Logf("%s: %q", names(nodes), seen)
		}
	}()
	podtest.Eventually(c.t, limit, names(nodes)+" have the same", func() bool {
		seen = seen[:0]
		for _, n := range nodes {
			d, err := c.digest(n, what)
			if err != nil {
				d = err.Error()
			}
			if seen = append(seen, d); err != nil {
				return false
			}
		}
		return len(slices.Compact(slices.Clone(seen))) == 1
	})
}
