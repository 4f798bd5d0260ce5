package ownership

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// cluster is some nodes with all that is declared, and the hand-overs between them, as migrators plan them.
type cluster struct {
	t      *testing.T
	random *rand.Rand
	wall   *wall
	nodes  map[string]*node
	all    []membership.Declaration
	lives  map[string]int // before the one that a node has now, each with a disk of its own
	moves  []handed
	epochs uint64
}

func (c *cluster) incarnation(id string) string { return fmt.Sprintf("%d-of-%s", c.lives[id], id) }

// handed is a hand-over that was completed.
type handed struct {
	from, to string
	ranges   []ring.HashRange
	drain    bool
	epoch    uint64
}

func (c *cluster) state(id string) membership.State {
	for _, d := range c.all {
		if d.NodeID == id {
			return d.State
		}
	}
	return 0
}

// declare says what a node is now. Others may hear it at once, or with the next news.
func (c *cluster) declare(id string, s membership.State) {
	c.t.Helper()
	c.all = slices.Clone(c.all)
	i := slices.IndexFunc(c.all, func(d membership.Declaration) bool { return d.NodeID == id })
	if i < 0 {
		c.all = append(c.all, membership.Declaration{NodeID: id, VirtualNodes: 4})
		i = len(c.all) - 1
	}
	c.all[i].State, c.all[i].Incarnation = s, c.incarnation(id)
	c.all[i].Version++
	for other := range c.nodes {
		if other == id || c.random.IntN(2) == 0 {
			c.hear(other)
		}
	}
}

func (c *cluster) hear(id string) {
	c.t.Helper()
	require.NoError(c.t, c.nodes[id].SetMembers(bg, c.all))
}

func (c *cluster) allHear() {
	c.t.Helper()
	for id := range c.nodes {
		c.hear(id)
	}
}

// are returns the nodes of some states, in order.
func (c *cluster) are(states ...membership.State) (ids []string) {
	for _, d := range c.all {
		if slices.Contains(states, d.State) {
			ids = append(ids, d.NodeID)
		}
	}
	return ids
}

func (c *cluster) ring(but string, and ...string) *ring.Ring {
	var on []ring.Member
	for _, id := range append(c.are(membership.Up, membership.Draining), and...) {
		if id != but {
			on = append(on, ring.Member{NodeID: id, VirtualNodes: 4})
		}
	}
	return ring.New(on, 2)
}

// handOver hands ranges over, through restarts, and now and then not at the first attempt.
func (c *cluster) handOver(from, to string, ranges []ring.HashRange, drain bool) {
	c.t.Helper()
	move := fmt.Sprint("m", len(c.moves), "-", c.random.Uint32())
	for {
		known, err := c.nodes[to].Prepare(bg, move, ranges, Owner{NodeID: from})
		if store.ReasonOf(err) == store.ReasonRangeMoving {
			require.NoError(c.t, c.nodes[to].makeWay(bg, c.nodes[to].takeWanted()))
			continue
		}
		require.NoError(c.t, err, "%s to %s", from, to)
		_, there, err := c.nodes[from].Fence(bg, move, ranges)
		require.NoError(c.t, err, "%s to %s", from, to)
		if c.random.IntN(4) == 0 {
			require.NoError(c.t, c.nodes[from].Lift(bg, move))
			_, err = c.nodes[to].Decline(bg, move, from)
			require.NoError(c.t, err)
			continue
		}
		c.epochs = max(known, there, c.epochs) + 1
		break
	}
	for _, id := range []string{from, to} {
		if c.random.IntN(8) == 0 {
			c.nodes[id] = c.nodes[id].restart(c.t)
			c.hear(id)
		}
	}
	require.NoError(c.t, c.nodes[to].Accept(bg, move, from, c.epochs))
	require.NoError(c.t, c.nodes[from].Give(bg, move, Owner{NodeID: to, Incarnation: c.incarnation(to)}, c.epochs))
	c.moves = append(c.moves, handed{from, to, ranges, drain, c.epochs})
}

// join adds a node. While it is filled, another one may be removed, and it may lose its disk.
func (c *cluster) join(id string) {
	c.nodes[id] = startAs(c.t, id, vfs.NewMem(), c.wall, c.incarnation(id))
	c.declare(id, membership.Joining)
	c.allHear()
	var have []ring.HashRange
	for {
		step := false
		now, next := c.ring(""), c.ring("", id)
		for _, p := range next.RangesOf(id) {
			want := ring.Subtract([]ring.HashRange{p.Range}, have)
			if len(want) == 0 {
				continue
			}
			for _, leaver := range now.Replicas(p.Range.Start) {
				if !slices.Contains(p.Replicas, leaver) {
					c.handOver(leaver, id, want, false)
				}
			}
			have, step = ring.Union(have, want), true
			if c.random.IntN(6) == 0 && c.remove() {
				break // another ring
			}
			if c.random.IntN(12) == 0 {
				c.lives[id]++
				c.nodes[id], have = startAs(c.t, id, vfs.NewMem(), c.wall, c.incarnation(id)), nil
				c.declare(id, membership.Joining)
				c.allHear()
				break
			}
		}
		if !step {
			break
		}
	}
	c.declare(id, membership.Up)
}

// remove takes a node away that is up, if others are left.
func (c *cluster) remove() bool {
	ids := c.are(membership.Up)
	if len(ids) < 3 {
		return false
	}
	id := ids[c.random.IntN(len(ids))]
	delete(c.nodes, id) // it is dead
	c.declare(id, membership.Removed)
	c.allHear()
	return true
}

// drain has a node give its ranges away, or some of them: then it is called off.
func (c *cluster) drain(id string) {
	c.declare(id, membership.Draining)
	c.allHear()
	with, without := c.ring(""), c.ring(id)
	for _, p := range with.RangesOf(id) {
		if c.random.IntN(8) == 0 {
			c.declare(id, membership.Up)
			return
		}
		to := without.Replicas(p.Range.Start)
		heir := slices.IndexFunc(to, func(o string) bool { return !slices.Contains(p.Replicas, o) })
		c.handOver(id, to[max(heir, 0)], []ring.HashRange{p.Range}, true)
	}
	delete(c.nodes, id)
	c.declare(id, membership.Drained)
}

// settle tells everybody everything, and brings back what drains gave away that were called off.
func (c *cluster) settle() {
	c.allHear()
	r := c.ring("")
	for _, id := range c.are(membership.Up) {
		missing := ring.Subtract(own(r, id), ring.RangesIn(c.nodes[id].View().Owned))
		given := slices.Clone(c.moves)
		slices.SortFunc(given, func(a, b handed) int { return cmp.Compare(b.epoch, a.epoch) })
		for _, m := range given {
			if m.from != id {
				continue
			}
			ranges := ring.Intersect(m.ranges, missing)
			missing = ring.Subtract(missing, ranges)
			if back := ring.Subtract(ranges, own(r, m.to)); m.drain && len(back) > 0 && c.state(m.to) == membership.Up {
				c.handOver(m.to, id, back, false)
			}
		}
	}
}

// Danger: after some order of joins, drains, removals and drains that are called off, a range has an owner less than the
// ring says, for ever: its replica refers to another node, or waits for a hand-over that nobody makes. Then there are
// fewer copies than anybody knows, and whoever joins next asks a node that does not have what the ring says.
func TestNodesOwnWhatTheRingSaysWhateverWasMoved(t *testing.T) {
	seeds := 12
	if testing.Short() {
		seeds = 4
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			c := &cluster{
				t: t, random: rand.New(rand.NewPCG(uint64(seed), 7)), wall: &wall{now: time.UnixMilli(1_700_000_000_000)},
				nodes: map[string]*node{}, lives: map[string]int{},
			}
			var did []string
			for i := range 3 {
				id := fmt.Sprint("n", i)
				c.nodes[id] = startAs(t, id, vfs.NewMem(), c.wall, c.incarnation(id))
				c.declare(id, membership.Up)
			}
			for next := 3; next < 10; {
				up := c.are(membership.Up)
				what := "join"
				switch id := up[c.random.IntN(len(up))]; {
				case len(up) < 2 || len(up) < 6 && c.random.IntN(2) == 0:
					c.join(fmt.Sprint("n", next))
					next++
				case c.random.IntN(3) == 0:
					what = "remove"
					c.remove()
				default:
					what = "drain " + id
					c.drain(id)
				}
				c.settle()
				did = append(did, what)
				r := c.ring("")
				for _, id := range c.are(membership.Up) {
					v := c.nodes[id].View()
					require.Equal(t, own(r, id), ring.RangesIn(v.Owned), "%s after %v", id, did)
					require.Empty(t, ring.Intersect(v.Given, own(r, id)), "%s after %v", id, did)
					require.Empty(t, append(v.Prepared, v.Fenced...), "%s after %v", id, did)
				}
			}
		})
	}
}
