package tenant

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// meet exchanges tenants as two nodes do it: b joins those of a and answers with all.
func meet(t require.TestingT, a, b *node) {
	records, err := a.Records(bg)
	require.NoError(t, err)
	require.NoError(t, b.JoinRecords(bg, records))
	records, err = b.Records(bg)
	require.NoError(t, err)
	require.NoError(t, a.JoinRecords(bg, records))
}

// lives returns what counts of the tenants of a node.
func lives(n *node) map[string]Tenant {
	out := map[string]Tenant{}
	for _, t := range n.List(true) {
		t.StoredBytes, t.InFlight = 0, 0
		out[t.Name] = t
	}
	return out
}

// Danger: a replica that was away when a tenant was dropped brings it back.
func TestADroppedTenantIsDroppedWhereItWasNotSeen(t *testing.T) {
	fs := vfs.NewMem()
	a, b := start(t, vfs.NewMem(), Options{}), start(t, fs, Options{})
	a.create(t, "t", Quota{})
	meet(t, a, b)
	require.Equal(t, lives(a), lives(b))
	for _, n := range []*node{a, b} {
		require.NoError(t, n.put("t", "k", "v"))
		require.NoError(t, n.put("other", "k", "v"))
	}
	_, err := a.Drop(bg, "t")
	require.NoError(t, err)
	meet(t, b, a)
	require.Equal(t, lives(a), lives(b))
	require.Equal(t, Dropped, lives(b)["t"].State)
	require.Zero(t, held(t, b.engine, "t"))
	require.Equal(t, "v", b.get(t, "other", "k"))
	require.Equal(t, store.ReasonTenantNotFound, store.ReasonOf(b.put("t", "k", "again")))
	b = restart(t, b, fs, Options{})
	require.Equal(t, lives(a), lives(b))
	require.Equal(t, store.ReasonTenantNotFound, store.ReasonOf(b.put("t", "k", "again")))
}

// Danger: a tenant that was created again has on one node what it stored in its life before.
func TestALaterLifeBeginsEmptyEverywhere(t *testing.T) {
	for name, knows := range map[string]bool{"a node that knew it": true, "a node that did not": false} {
		t.Run(name, func(t *testing.T) {
			a, b := start(t, vfs.NewMem(), Options{}), start(t, vfs.NewMem(), Options{})
			a.create(t, "t", Quota{})
			if knows {
				meet(t, a, b)
			}
			require.NoError(t, b.put("t", "k", "old"))
			_, err := a.Drop(bg, "t")
			require.NoError(t, err)
			a.create(t, "t", Quota{InFlight: 7})
			require.NoError(t, a.put("t", "k", "new"))
			meet(t, a, b)
			require.Equal(t, lives(a), lives(b))
			require.EqualValues(t, 2, lives(b)["t"].Generation)
			require.Zero(t, held(t, b.engine, "t"))
			require.NoError(t, b.put("t", "k", "newer"))
			require.Equal(t, "newer", b.get(t, "t", "k"))
			meet(t, a, b)
			require.Equal(t, "newer", b.get(t, "t", "k"))
			require.Equal(t, "new", a.get(t, "t", "k"))
		})
	}
}

// Danger: what a tenant stored before the node knew that it has a name is taken away by the first life.
func TestAFirstLifeKeepsWhatIsThere(t *testing.T) {
	a, b := start(t, vfs.NewMem(), Options{}), start(t, vfs.NewMem(), Options{})
	require.NoError(t, b.put("t", "k", "v"))
	a.create(t, "t", Quota{OperationsPerSecond: 1000})
	meet(t, a, b)
	require.Equal(t, "v", b.get(t, "t", "k"))
	require.EqualValues(t, 1000, lives(b)["t"].Quota.OperationsPerSecond)
}

// Danger: nodes that changed tenants at the same time never agree, or a drop is undone.
func TestNodesAgreeOnTenants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disks := []vfs.FS{vfs.NewMem(), vfs.NewMem(), vfs.NewMem()}
		var nodes []*node
		for _, fs := range disks {
			n, err := open(t, fs, Options{})
			require.NoError(t, err)
			nodes = append(nodes, n)
		}
		defer func() {
			for _, n := range nodes {
				require.NoError(t, n.engine.Close())
			}
		}()
		highest := map[string]uint64{}
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			i := rapid.IntRange(0, 2).Draw(t, "node")
			n := nodes[i]
			name := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "tenant")
			n.wall.move(time.Duration(rapid.IntRange(0, 3).Draw(t, "time")) * time.Second)
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0:
				_, _ = n.Create(bg, name, Quota{InFlight: int32(rapid.IntRange(1, 3).Draw(t, "quota"))}, 0) // it may be there
			case 1:
				_, _ = n.Drop(bg, name) // it may not be there
			case 2:
				_, _ = n.Update(bg, name, &Quota{InFlight: int32(rapid.IntRange(1, 9).Draw(t, "quota"))}, LastWriterWins)
			case 3:
				_ = n.put(name, "k", "v")
			case 4:
				meet(t, n, nodes[rapid.IntRange(0, 2).Draw(t, "other")])
			default:
				require.NoError(t, n.engine.Close())
				var err error
				nodes[i], err = open(t, disks[i], Options{})
				require.NoError(t, err)
			}
			for name, x := range lives(nodes[i]) {
				highest[name] = max(highest[name], x.Generation)
			}
		}
		for range 2 {
			meet(t, nodes[0], nodes[1])
			meet(t, nodes[1], nodes[2])
			meet(t, nodes[2], nodes[0])
		}
		for _, n := range nodes {
			require.Equal(t, lives(nodes[0]), lives(n))
			for name, x := range lives(n) {
				require.Equal(t, highest[name], x.Generation)
				if x.State != Active {
					require.Equal(t, Dropped, x.State)
					s := held2(t, n, name)
					require.Zero(t, s, "%s is dropped and has %d keys", name, s)
				}
			}
		}
	})
}

// held2 is held for property tests.
func held2(t require.TestingT, n *node, tenant string) (count int) {
	for _, s := range store.TenantSpans(tenant) {
		it, err := n.engine.NewIter(engine.IterOptions{Lower: s.Start, Upper: s.End})
		require.NoError(t, err)
		for ok := it.First(); ok; ok = it.Next() {
			count++
		}
		require.NoError(t, it.Close())
	}
	return count
}

// Danger: a crash between the removal and its record leaves a tenant that is half gone, or a node that
// refuses it for ever.
func TestAnExchangeThatFailsIsDoneByTheNextOne(t *testing.T) {
	fs := vfs.NewMem()
	a, b := start(t, vfs.NewMem(), Options{}), start(t, fs, Options{})
	a.create(t, "t", Quota{})
	meet(t, a, b)
	require.NoError(t, b.put("t", "k", "v"))
	_, err := a.Drop(bg, "t")
	require.NoError(t, err)
	records, err := a.Records(bg)
	require.NoError(t, err)
	b.calls.afterDelete = func() error { return fmt.Errorf("the end") }
	require.ErrorContains(t, b.JoinRecords(bg, records), "the end")
	require.Equal(t, store.ReasonTenantNotFound, store.ReasonOf(b.put("t", "k", "refilled")))
	b.calls.afterDelete = nil
	require.NoError(t, b.JoinRecords(bg, records))
	require.Equal(t, lives(a), lives(b))

	// The same with a death in between.
	a.create(t, "t", Quota{})
	meet(t, a, b)
	require.NoError(t, b.put("t", "k", "v"))
	_, err = a.Drop(bg, "t")
	require.NoError(t, err)
	records, err = a.Records(bg)
	require.NoError(t, err)
	b.calls.beforeDelete = func() error { return fmt.Errorf("the end") }
	require.Error(t, b.JoinRecords(bg, records))
	b = restart(t, b, fs, Options{})
	require.Equal(t, "v", b.get(t, "t", "k"))
	require.NoError(t, b.JoinRecords(bg, records))
	require.Zero(t, held(t, b.engine, "t"))
	require.Equal(t, lives(a), lives(b))
}

// Danger: requests that are in flight write into a tenant after it was emptied.
func TestAnExchangeWaitsForWhatIsInFlight(t *testing.T) {
	a, b := start(t, vfs.NewMem(), Options{}), start(t, vfs.NewMem(), Options{})
	a.create(t, "t", Quota{})
	was := b.Lives()
	_, err := a.Drop(bg, "t")
	require.NoError(t, err)
	records, err := a.Records(bg)
	require.NoError(t, err)
	stay, ok, _ := was.Enter("t")
	require.True(t, ok)
	ctx, cancel := context.WithTimeout(bg, 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, b.JoinRecords(ctx, records), context.DeadlineExceeded)
	_, ok, again := was.Enter("t")
	require.False(t, ok)
	require.False(t, again)
	stay.Leave()
	require.NoError(t, b.JoinRecords(bg, records))
	a.create(t, "t", Quota{})
	meet(t, a, b)
	_, ok, again = was.Enter("t")
	require.False(t, ok)
	require.True(t, again)
	stay, ok, _ = b.Lives().Enter("t")
	require.True(t, ok)
	stay.Leave()
	stay, ok, _ = was.Enter("never seen")
	require.True(t, ok)
	stay.Leave()
}

// Danger: records that are none are stored, and the list of tenants can't be read any more.
func TestForeignTenantsAreChecked(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{MaxTenants: 2})
	good, err := Tenant{Name: "t", Generation: 1, State: Active, Conflicts: KeepSiblings}.encode()
	require.NoError(t, err)
	encode := func(value []byte) []byte {
		return causal.Record{Siblings: []causal.Sibling{{Dot: causal.Dot{Node: "x", Counter: 1}, Value: value, Timestamp: 1}}}.Encode(nil)
	}
	for _, r := range []Record{
		{"_t", encode(good)}, {"", encode(good)}, {"a:b", encode(good)}, {"t", nil}, {"t", []byte("x")}, {"t", encode([]byte("{}"))},
		{"t", encode([]byte(`{"version":2,"generation":1,"state":"active","conflicts":"keep-siblings"}`))},
	} {
		require.Error(t, n.JoinRecords(bg, []Record{r}), "%q", r.Name)
	}
	require.Empty(t, n.List(true))
	require.NoError(t, n.JoinRecords(bg, []Record{{"t", encode(good)}, {"u", encode(good)}}))
	require.NoError(t, n.JoinRecords(bg, []Record{{"t", encode(good)}, {"u", encode(good)}}))
	require.Equal(t, store.ReasonTooManyTenants, store.ReasonOf(n.JoinRecords(bg, []Record{{"v", encode(good)}})))
	require.Len(t, n.List(true), 2)
}
