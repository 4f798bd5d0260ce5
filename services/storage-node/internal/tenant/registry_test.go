package tenant

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// Danger: a restart forgets a tenant, its quota or that it was dropped.
func TestTenantsSurviveARestart(t *testing.T) {
	fs := vfs.NewMem()
	n := start(t, fs, Options{})
	q := Quota{OperationsPerSecond: 1, BytesPerSecond: 2, InFlight: 3, StoredBytes: 4}
	want := n.create(t, "ä shop", q)
	require.Equal(t, Tenant{Name: "ä shop", Generation: 1, State: Active, Quota: q, Conflicts: KeepSiblings, CreatedAt: 1_700_000_000}, want)
	other := n.create(t, "other", Quota{})
	_, err := n.Update(bg, "other", nil, LastWriterWins)
	require.NoError(t, err)
	other.Conflicts = LastWriterWins
	n.create(t, "gone", Quota{})
	_, err = n.Drop(bg, "gone")
	require.NoError(t, err)

	for range 2 {
		n = restart(t, n, fs, Options{})
		require.Equal(t, []Tenant{other, want}, n.List(false))
		require.Len(t, n.List(true), 3)
		require.Equal(t, Dropped, n.List(true)[0].State)
		requireReason(t, store.ReasonTenantNotFound, n.put("gone", "k", "v"))
	}
}

// Danger: a repeated call makes a second generation, or a different one changes what is there.
func TestCreateAndUpdateAnswerRepeatsAndContradictions(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{})
	first := n.create(t, "t", Quota{InFlight: 5})
	require.Equal(t, first, n.create(t, "t", Quota{InFlight: 5}))
	_, err := n.Create(bg, "t", Quota{InFlight: 6}, 0)
	requireReason(t, store.ReasonTenantExists, err)
	_, err = n.Create(bg, "t", Quota{InFlight: 5}, LastWriterWins)
	requireReason(t, store.ReasonTenantExists, err)
	require.Equal(t, []Tenant{first}, n.List(true), "a refused call changes nothing")

	got, err := n.Update(bg, "t", &Quota{InFlight: 6}, 0)
	require.NoError(t, err)
	require.Equal(t, Quota{InFlight: 6}, got.Quota)
	require.Equal(t, KeepSiblings, got.Conflicts)
	got, err = n.Update(bg, "t", nil, LastWriterWins)
	require.NoError(t, err)
	require.Equal(t, Quota{InFlight: 6}, got.Quota)
	require.Equal(t, LastWriterWins, got.Conflicts)
	require.EqualValues(t, 1, got.Generation)

	_, err = n.Update(bg, "nobody", &Quota{}, 0)
	requireReason(t, store.ReasonTenantNotFound, err)
	_, err = n.Drop(bg, "nobody")
	requireReason(t, store.ReasonTenantNotFound, err)
}

// Danger: bad input is stored, and the next open meets it.
func TestBadTenantsAreRefusedOnBothSidesOfTheLimit(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{MaxTenants: 3})
	for name, ok := range map[string]bool{
		strings.Repeat("t", 256): true, "": false, strings.Repeat("t", 257): false, "_tenants": false, "a:b": false, "a\x00": false, "\xff": false,
	} {
		_, err := n.Create(bg, name, Quota{}, 0)
		if ok {
			require.NoError(t, err)
			continue
		}
		requireReason(t, store.ReasonTenant, err)
		_, err = n.Update(bg, name, &Quota{}, 0)
		requireReason(t, store.ReasonTenant, err)
		_, err = n.Drop(bg, name)
		requireReason(t, store.ReasonTenant, err)
	}
	for _, q := range []Quota{{OperationsPerSecond: -1}, {BytesPerSecond: -1}, {InFlight: -1}, {StoredBytes: -1}} {
		_, err := n.Create(bg, "t", q, 0)
		requireReason(t, store.ReasonQuota, err)
	}
	_, err := n.Create(bg, "t", Quota{}, LastWriterWins+1)
	requireReason(t, store.ReasonConflictPolicy, err)
	n.create(t, "second", Quota{})
	_, err = n.Update(bg, "second", &Quota{InFlight: -1}, 0)
	requireReason(t, store.ReasonQuota, err)
	_, err = n.Update(bg, "second", nil, 0)
	requireReason(t, store.ReasonUpdate, err)

	n.create(t, "third", Quota{})
	_, err = n.Create(bg, "fourth", Quota{}, 0)
	requireReason(t, store.ReasonTooManyTenants, err)
	require.Len(t, n.List(true), 3)
	n.create(t, "third", Quota{})
}

// Danger: an unknown or dropped tenant is served by one of the calls.
func TestWhoIsServed(t *testing.T) {
	for _, strict := range []bool{false, true} {
		n := start(t, vfs.NewMem(), Options{Strict: strict})
		for call, err := range n.everyCall("unknown") {
			if strict {
				requireReason(t, store.ReasonTenantNotFound, err)
			} else {
				require.NoError(t, err, call)
			}
		}
		n.create(t, "t", Quota{})
		for call, err := range n.everyCall("t") {
			require.NoError(t, err, call)
		}
		got, err := n.Drop(bg, "t")
		require.NoError(t, err)
		require.Equal(t, Dropped, got.State)
		for call, err := range n.everyCall("t") {
			requireReason(t, store.ReasonTenantNotFound, err)
			require.ErrorContains(t, err, "dropped", call)
		}
		_, err = n.Update(bg, "t", &Quota{}, 0)
		requireReason(t, store.ReasonTenantNotFound, err)
		again, err := n.Drop(bg, "t")
		require.NoError(t, err)
		require.Equal(t, got, again)

		require.EqualValues(t, 2, n.create(t, "t", Quota{}).Generation)
		for call, err := range n.everyCall("t") {
			require.NoError(t, err, call)
		}
	}
}

// Danger: what the first life wrote is there in the second: from the row cache, the memtable or a table.
func TestNextGenerationBeginsEmpty(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{})
	n.create(t, "t", Quota{})
	for _, flushed := range []bool{false, true} {
		require.NoError(t, n.put("t", "k", "old"))
		if flushed {
			require.NoError(t, n.engine.Flush(bg))
		}
		require.Equal(t, "old", n.get(t, "t", "k")) // into the row cache
		_, err := n.Drop(bg, "t")
		require.NoError(t, err)
		n.create(t, "t", Quota{})
		r, err := n.store.Read(bg, "t", "k", nil)
		require.NoError(t, err)
		require.False(t, r.Found)
		require.Empty(t, r.Clock, "not even a tombstone is left")
		page, err := n.store.KeyRange(bg, store.KeyRangeRequest{Tenant: "t"})
		require.NoError(t, err)
		require.Empty(t, page.Keys)
		for _, replayed := range []bool{false, true} { // not the answer to the first life's request
			r, err := n.store.Write(bg, store.WriteRequest{Tenant: "t", Key: "named", Value: []byte("v"), IdempotencyKey: "id"})
			require.NoError(t, err)
			require.Equal(t, replayed, r.Replayed)
		}
		require.NoError(t, n.put("t", "k", "new"))
		require.Equal(t, "new", n.get(t, "t", "k"))
	}
}

// soon is a context that ends at once, but lets what need not wait pass.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(bg, 20*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// Danger: a drop overtakes a request, which then writes into the dropped tenant, where it stays.
func TestDropWaitsForRequestsInFlight(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{})
	// One came when the tenant was not known, one when another tenant became known, one after that.
	var inside []store.Admission
	enter := func() {
		a, err := n.Admit("t", store.Demand{Keys: 1})
		require.NoError(t, err)
		inside = append(inside, a)
	}
	enter()
	n.create(t, "other", Quota{})
	enter()
	n.create(t, "t", Quota{})
	enter()
	_, err := n.Update(bg, "t", &Quota{InFlight: 100}, 0)
	require.NoError(t, err)
	enter()
	require.Equal(t, 2, n.List(false)[1].InFlight)
	for _, a := range slices.Backward(inside) {
		_, err := n.Drop(soon(t), "t")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, Dropping, n.List(false)[1].State)
		requireReason(t, store.ReasonTenantNotFound, n.put("t", "k", "v"))
		_, err = n.Create(bg, "t", Quota{}, 0)
		requireReason(t, store.ReasonTenantDropping, err)
		a.Release(0, 0)
	}
	_, err = n.Drop(bg, "t")
	require.NoError(t, err)
	_, err = n.Drop(soon(t), "other")
	require.NoError(t, err, "requests of the others are not waited for when they have ended")
}

// Danger: a reader that takes nothing holds up a drop, or reads on after it.
func TestStreamEndsWithItsTenant(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{})
	for _, created := range []bool{true, false} {
		if created {
			n.create(t, "t", Quota{})
		}
		for i := range 3 {
			require.NoError(t, n.put("t", strings.Repeat("k", i+1), strings.Repeat("v", 40<<10)))
		}
		require.NoError(t, n.put("u", "k", "v"))
		chunks := 0
		err := n.store.Stream(bg, store.StreamRequest{Tenant: "t"}, func(store.Chunk) error {
			chunks++
			if !created {
				n.create(t, "t", Quota{})
			}
			_, err := n.Drop(bg, "t")
			require.NoError(t, err)
			n.create(t, "t", Quota{})
			return n.put("t", "z", "of the next generation")
		})
		requireReason(t, store.ReasonTenantNotFound, err)
		require.Equal(t, 1, chunks)
		require.Zero(t, n.List(false)[0].InFlight)
		if created {
			n = start(t, vfs.NewMem(), Options{})
		}
	}
	// One that begins before its tenant is known goes on.
	for i := range 3 {
		require.NoError(t, n.put("s", strings.Repeat("k", i+1), strings.Repeat("v", 40<<10)))
	}
	chunks := 0
	require.NoError(t, n.store.Stream(bg, store.StreamRequest{Tenant: "s"}, func(store.Chunk) error {
		chunks++
		n.create(t, "s", Quota{})
		return nil
	}))
	require.Equal(t, 3, chunks)
}

// Danger: a watch that does not learn of the drop, or goes on with what is the next generation's.
func TestWatchTellsOfTheDropAndEnds(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{})
	n.create(t, "t", Quota{})
	require.NoError(t, n.put("t", "k", "v"))
	var removed []store.Change
	ctx, cancel := context.WithTimeout(bg, time.Minute)
	defer cancel()
	err := n.store.Watch(ctx, store.WatchRequest{Tenant: "t"}, func(c store.Changes) error {
		removed = append(removed, c.Changes...)
		if len(removed) > 0 {
			return n.put("t", "z", "of the next generation")
		}
		if _, err := n.Drop(bg, "t"); err != nil {
			return err
		}
		_, err := n.Create(bg, "t", Quota{}, 0)
		return err
	})
	requireReason(t, store.ReasonTenantNotFound, err)
	require.Len(t, removed, 1)
	require.Equal(t, store.ChangeRemove, removed[0].Kind)
	require.Empty(t, removed[0].Start+removed[0].End, "all of it")
	require.Zero(t, n.List(false)[0].InFlight)
}

// Danger: two nodes changed a tenant concurrently, and it comes back to life, or depends on who asks.
func TestSiblingsOfATenantBecomeOne(t *testing.T) {
	value := func(t Tenant) []byte {
		if t.Conflicts == 0 {
			t.Conflicts = KeepSiblings
		}
		b, _ := t.encode()
		return b
	}
	for _, c := range []struct{ older, newer, want Tenant }{
		{Tenant{Generation: 1, State: Dropped}, Tenant{Generation: 1, State: Active}, Tenant{Generation: 1, State: Dropped}},
		{Tenant{Generation: 1, State: Dropping}, Tenant{Generation: 1, State: Active}, Tenant{Generation: 1, State: Dropping}},
		{Tenant{Generation: 2, State: Active}, Tenant{Generation: 1, State: Dropped}, Tenant{Generation: 2, State: Active}},
		{Tenant{Generation: 1, State: Active, Quota: Quota{InFlight: 1}}, Tenant{Generation: 1, State: Active, Quota: Quota{InFlight: 2}}, Tenant{Generation: 1, State: Active, Quota: Quota{InFlight: 2}}},
	} {
		siblings := []causal.Sibling{
			{Dot: causal.Dot{Node: "a", Counter: 1}, Value: value(c.older), Timestamp: 1},
			{Dot: causal.Dot{Node: "b", Counter: 1}, Value: value(c.newer), Timestamp: 2},
		}
		for range 2 {
			rec, err := causal.NewRecord(siblings)
			require.NoError(t, err)
			got, err := resolve("t", rec)
			require.NoError(t, err)
			c.want.Name, c.want.Conflicts = "t", KeepSiblings
			require.Equal(t, c.want, got)
			siblings[0].Dot, siblings[1].Dot = siblings[1].Dot, siblings[0].Dot
		}
	}
}

// Danger: a record that this release does not understand is taken for something else.
func TestForeignRecordsAreRefusedAtOpen(t *testing.T) {
	for value, words := range map[string]string{
		`{"version":2,"generation":1,"state":"active","conflicts":"keep-siblings"}`:                          "newer storage-node",
		`{"version":1,"generation":1,"state":"asleep","conflicts":"keep-siblings"}`:                          "not one",
		`{"version":1,"generation":0,"state":"active","conflicts":"keep-siblings"}`:                          "not one",
		`{"version":1,"generation":1,"state":"active","conflicts":"?"}`:                                      "not one",
		`{"version":1,"generation":1,"state":"active","conflicts":"keep-siblings","quota":{"in_flight":-1}}`: "not one",
		`nonsense`: "record of tenant",
	} {
		fs := vfs.NewMem()
		n := start(t, fs, Options{})
		_, err := n.store.System(systemTenant).Write(bg, "t", []byte(value), store.Causality{})
		require.NoError(t, err)
		require.NoError(t, n.engine.Close())
		n, err = open(t, fs, Options{})
		require.ErrorContains(t, err, words)
		require.NoError(t, n.engine.Close())
	}
	golden := `{"version":1,"generation":3,"state":"dropping","quota":{"operations_per_second":1,"bytes_per_second":2,"in_flight":3,"stored_bytes":4},"conflicts":"last-writer-wins","created_at":5}`
	got, err := decode("t", []byte(golden))
	require.NoError(t, err)
	require.Equal(t, Tenant{Name: "t", Generation: 3, State: Dropping, Quota: Quota{1, 2, 3, 4}, Conflicts: LastWriterWins, CreatedAt: 5}, got)
	b, err := got.encode()
	require.NoError(t, err)
	require.Equal(t, golden, string(b), "these bytes are on disks")
}

// Danger: requests reach the records of tenants.
func TestSystemTenantIsOutOfReach(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{})
	n.create(t, "t", Quota{})
	for _, err := range n.everyCall(systemTenant) {
		requireReason(t, store.ReasonTenant, err)
	}
	require.Panics(t, func() { n.store.System("t") })
}

// spoil replaces a file, which is sealed, by one that differs in a byte.
func spoil(t *testing.T, fs vfs.FS, name string) {
	t.Helper()
	f, err := fs.Open(name)
	require.NoError(t, err)
	content, err := io.ReadAll(f)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	content[100] ^= 0xff
	require.NoError(t, fs.Remove(name))
	f, err = fs.Create(name, 0o440)
	require.NoError(t, err)
	_, err = f.Write(content)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// Danger: one damaged table keeps a node from serving all others, or a strict one serves everybody
// because it does not know whom.
func TestDamagedListLeavesWhatCanBeServed(t *testing.T) {
	fs := vfs.NewMem()
	n := start(t, fs, Options{})
	n.create(t, "gone", Quota{})
	_, err := n.Drop(bg, "gone")
	require.NoError(t, err)
	require.NoError(t, n.put("A", "k", "v")) // before the list in the order of keys, and behind it
	require.NoError(t, n.put("z", "k", "v"))
	require.NoError(t, n.engine.Flush(bg))
	require.NoError(t, n.engine.Close())
	tables, err := fs.List("data/sst")
	require.NoError(t, err)
	require.NotEmpty(t, tables)
	for _, name := range tables {
		spoil(t, fs, "data/sst/"+name)
	}

	for _, strict := range []bool{false, true} {
		n = start(t, fs, Options{Strict: strict})
		require.ErrorIs(t, n.Damage(), engine.ErrCorrupt)
		err := n.put("zz", "k", "v") // behind the damaged table
		if strict {
			require.ErrorIs(t, err, engine.ErrCorrupt, "whom to serve is not known")
		} else {
			require.NoError(t, err)
			require.Equal(t, "v", n.get(t, "zz", "k"))
		}
		_, err = n.Create(bg, "t", Quota{}, 0)
		require.ErrorIs(t, err, engine.ErrCorrupt)
		_, err = n.Update(bg, "t", &Quota{}, 0)
		require.ErrorIs(t, err, engine.ErrCorrupt)
		_, err = n.Drop(bg, "gone")
		require.ErrorIs(t, err, engine.ErrCorrupt)
		require.NoError(t, n.engine.Close())
	}
}
