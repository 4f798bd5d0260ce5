package tenant

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// exceeded checks a refusal and returns when to come back.
func exceeded(t require.TestingT, err error, quota string, limit int64) time.Duration {
	requireReason(t, store.ReasonQuotaExceeded, err)
	var e *store.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, map[string]string{"quota": quota, "limit": fmt.Sprint(limit)}, e.Metadata)
	require.Positive(t, e.RetryAfter)
	return e.RetryAfter
}

// Danger: more than the quota goes through, less than it does, or the time to come back is wrong.
func TestOperationsPerSecond(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{})
	n.create(t, "t", Quota{OperationsPerSecond: 10})
	for range 10 {
		require.NoError(t, n.put("t", "k", "v")) // the burst
	}
	for range 3 {
		require.Equal(t, 100*time.Millisecond, exceeded(t, n.put("t", "k", "v"), "operations_per_second", 10))
	}
	require.NoError(t, n.put("u", "k", "v"), "others are not concerned")
	n.wall.move(100*time.Millisecond - 1)
	require.Equal(t, time.Nanosecond, exceeded(t, n.put("t", "k", "v"), "operations_per_second", 10))
	n.wall.move(1)
	require.NoError(t, n.put("t", "k", "v"))
	_, err := n.store.BatchRead(bg, "t", []string{"a", "b", "c"})
	require.Equal(t, 300*time.Millisecond, exceeded(t, err, "operations_per_second", 10))
	n.wall.move(time.Hour)
	for range 10 {
		require.NoError(t, n.put("t", "k", "v"))
	}
	exceeded(t, n.put("t", "k", "v"), "operations_per_second", 10)
}

// Danger: a request larger than the burst can never succeed, or leaves no debt.
func TestLargeRequestsNeedAFullBucketAndLeaveADebt(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{})
	n.create(t, "t", Quota{BytesPerSecond: 1000})
	require.NoError(t, n.put("t", "k", strings.Repeat("v", 9999)))
	require.Equal(t, 10*time.Second-time.Second+2*time.Millisecond, exceeded(t, n.put("t", "k", "v"), "bytes_per_second", 1000))
	n.wall.move(10 * time.Second)
	require.NoError(t, n.put("t", "k", "v")) // one second of it is there, less 2 bytes
	require.Equal(t, 2*time.Millisecond, exceeded(t, n.put("t", "k", strings.Repeat("v", 9999)), "bytes_per_second", 1000))
	n.wall.move(2 * time.Millisecond)
	require.NoError(t, n.put("t", "k", strings.Repeat("v", 9999)))
}

// Danger: a refused request pays for what it did not get, so that a tenant that asks often never
// gets anything.
func TestRefusedRequestsPayNothing(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{})
	n.create(t, "t", Quota{OperationsPerSecond: 10, BytesPerSecond: 100})
	require.NoError(t, n.put("t", "k", strings.Repeat("v", 99)))
	for range 1000 {
		exceeded(t, n.put("t", "k", strings.Repeat("v", 99)), "bytes_per_second", 100)
	}
	n.wall.move(time.Second)
	for range 10 {
		require.NoError(t, n.put("t", "k", ""))
	}
}

// Danger: reads are free, or a read pays before it knows what it returns.
func TestReadsPayForWhatTheyReturned(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{})
	for i := range 5 {
		require.NoError(t, n.put("t", fmt.Sprint("k", i), strings.Repeat("v", 4000)))
	}
	for name, read := range map[string]func() error{
		"read":  func() error { return second(n.store.Read(bg, "t", "k1", nil)) },
		"reads": func() error { return second(n.store.BatchRead(bg, "t", []string{"k1"})) },
	} {
		n.wall.move(time.Hour)
		_, err := n.Drop(bg, "t")
		_ = err // the first time there is nothing to drop
		n.create(t, "t", Quota{BytesPerSecond: 1000})
		n.wall.move(time.Hour)
		require.NoError(t, n.put("t", "k1", strings.Repeat("v", 4000)))
		n.wall.move(time.Hour)
		require.NoError(t, read(), name)
		wait := exceeded(t, read(), "bytes_per_second", 1000)
		require.InDelta(t, 3*time.Second, wait, float64(200*time.Millisecond), name)
		n.wall.move(wait)
		require.NoError(t, read(), name)
	}
	// What is not there costs its key.
	n.create(t, "u", Quota{BytesPerSecond: 1000})
	for range 100 {
		_, err := n.store.Read(bg, "u", "none", make([]byte, 5000))
		require.NoError(t, err)
	}
	// A page pays for its keys afterwards.
	n.create(t, "p", Quota{OperationsPerSecond: 10})
	ops := make([]store.Op, 30)
	for i := range ops {
		ops[i] = store.Op{Kind: store.Put, Key: fmt.Sprintf("%02d", i)}
	}
	_, err := n.store.BatchWrite(bg, store.BatchWriteRequest{Tenant: "p", Ops: ops})
	require.NoError(t, err)
	n.wall.move(time.Hour)
	page, err := n.store.KeyRange(bg, store.KeyRangeRequest{Tenant: "p"})
	require.NoError(t, err)
	require.Len(t, page.Keys, 30)
	_, err = n.store.KeyRange(bg, store.KeyRangeRequest{Tenant: "p"})
	require.Equal(t, 2100*time.Millisecond, exceeded(t, err, "operations_per_second", 10))
}

// Danger: a place is taken and never given back.
func TestInFlight(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{})
	n.create(t, "t", Quota{InFlight: 2})
	first, err := n.Admit("t", store.Demand{})
	require.NoError(t, err)
	require.NoError(t, n.put("t", "k", "v"))
	stream, err := n.AdmitStream("t")
	require.NoError(t, err)
	for range 3 {
		exceeded(t, n.put("t", "k", "v"), "in_flight", 2)
		_, err = n.AdmitStream("t")
		exceeded(t, err, "in_flight", 2)
	}
	require.Equal(t, 2, n.List(false)[0].InFlight)
	stream.Release()
	require.NoError(t, n.put("t", "k", "v"))
	first.Release(0, 0)
	for range 3 {
		for call, err := range n.everyCall("t") {
			require.NoError(t, err, call)
		}
	}
	require.Zero(t, n.List(false)[0].InFlight)
}

// Danger: who is over the quota can't even delete.
func TestStoredBytes(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{})
	n.create(t, "t", Quota{StoredBytes: 1000})
	require.NoError(t, n.put("t", "k", strings.Repeat("0123456789", 200)))
	require.NoError(t, n.engine.Flush(bg))
	require.NoError(t, n.put("t", "k2", "v"), "the size lags behind")
	n.known.Load().byName["t"].stored.Store(1000)
	exceeded(t, n.put("t", "k", "v"), "stored_bytes", 1000)
	exceeded(t, n.store.Repair(bg, store.RepairRequest{Tenant: "t", Key: "k", Siblings: foreign("m", 1, "v")}), "stored_bytes", 1000)
	mixed := []store.Op{{Kind: store.Delete, Key: "k"}, {Kind: store.Put, Key: "k"}}
	_, err := n.store.BatchWrite(bg, store.BatchWriteRequest{Tenant: "t", Ops: mixed})
	exceeded(t, err, "stored_bytes", 1000)
	_, err = n.store.BatchWrite(bg, store.BatchWriteRequest{Tenant: "t", Ops: mixed[:1]})
	require.NoError(t, err)
	_, err = n.store.Delete(bg, store.DeleteRequest{Tenant: "t", Key: "k2"})
	require.NoError(t, err)
	require.Empty(t, n.get(t, "t", "k"))
	n.known.Load().byName["t"].stored.Store(999)
	require.NoError(t, n.put("t", "k", "v"))
}

// Danger: a quota stands in the list and is not enforced in one of the calls; or a request is refused
// after the work was done.
func TestRefusedRequestsDoNotReachTheEngine(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{})
	for name, q := range map[string]Quota{"ops": {OperationsPerSecond: 1}, "bytes": {BytesPerSecond: 1}} {
		n.create(t, name, q)
		x := n.known.Load().byName[name]
		x.ops.charge(x.now(), 1000) // longer than a stream is patient
		x.bytes.charge(x.now(), 1000)
		n.calls.count = 0
		for _, err := range n.everyCall(name) {
			requireReason(t, store.ReasonQuotaExceeded, err)
		}
		require.Zero(t, n.calls.count)
	}
	n.create(t, "stored", Quota{StoredBytes: 1})
	n.known.Load().byName["stored"].stored.Store(1)
	n.calls.count = 0
	exceeded(t, n.put("stored", "k", "v"), "stored_bytes", 1)
	require.Zero(t, n.calls.count)
}

// Danger: a stream ignores the rate, or is refused where waiting helps.
func TestStreamWaitsForItsQuota(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{})
	var waited time.Duration
	n.o.After = func(d time.Duration) <-chan time.Time {
		waited += d
		n.wall.move(d)
		c := make(chan time.Time, 1)
		c <- n.wall.Now()
		return c
	}
	for i := range 10 {
		require.NoError(t, n.put("t", fmt.Sprint("k", i), strings.Repeat("v", 40<<10)))
	}
	records := 0
	count := func(c store.Chunk) error { records += len(c.Records); return nil }
	n.create(t, "t", Quota{BytesPerSecond: 40 << 10})
	require.NoError(t, n.store.Stream(bg, store.StreamRequest{Tenant: "t"}, count))
	require.Equal(t, 10, records)
	require.InDelta(t, 9*time.Second, waited, float64(100*time.Millisecond))

	_, err := n.Update(bg, "t", &Quota{BytesPerSecond: 100}, 0)
	require.NoError(t, err)
	records = 0
	err = n.store.Stream(bg, store.StreamRequest{Tenant: "t"}, count)
	require.Greater(t, exceeded(t, err, "bytes_per_second", 100), streamPatience)
	require.Equal(t, 1, records, "the first chunk had a full bucket")

	n.o.After = func(time.Duration) <-chan time.Time { return nil }
	n.wall.move(time.Hour)
	_, err = n.Update(bg, "t", &Quota{BytesPerSecond: 40 << 10}, 0)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(bg)
	err = n.store.Stream(ctx, store.StreamRequest{Tenant: "t"}, func(store.Chunk) error { cancel(); return nil })
	require.ErrorIs(t, err, context.Canceled)
}

// Danger: over any time more flows out of a bucket than flows in, or it stays shut.
func TestBucketKeepsItsRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newBucket(rapid.Int64Range(1, 1<<40).Draw(t, "rate"))
		var now time.Duration
		var taken float64
		for range rapid.IntRange(1, 50).Draw(t, "steps") {
			now += time.Duration(rapid.Int64Range(0, int64(3*time.Second)).Draw(t, "pause"))
			n := rapid.IntRange(0, 64<<20).Draw(t, "n")
			before := b.full.Load()
			wait := b.take(now, n)
			if wait > 0 {
				require.Equal(t, before, b.full.Load())
				require.Positive(t, b.take(now+wait-1, n), "not sooner")
				now += wait
				require.Zero(t, b.take(now, n), "but then")
			}
			taken += float64(n)
			rounding := 50 * float64(b.perSecond) / float64(time.Second)
			in := float64(b.perSecond) * (now.Seconds() + 1)
			require.LessOrEqual(t, taken-float64(n), in*1.001+rounding+1, "all before the last one flowed in")
			if debt := time.Duration(b.full.Load()) - now; debt >= maxDebt {
				return // the rest is forgiven
			}
		}
	})
	var free *bucket
	require.Zero(t, free.take(0, 1<<30))
	b := newBucket(1)
	for range 1000 {
		b.charge(0, 1<<30)
	}
	require.Equal(t, maxDebt-burst+time.Second, b.take(0, 1), "a debt has an end")
}

// Danger: a request of a tenant without limits pays for tenants with them.
func TestAdmissionDoesNotAllocate(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{Named: 10})
	n.create(t, "free", Quota{})
	n.create(t, "limited", Quota{OperationsPerSecond: 1 << 40, BytesPerSecond: 1 << 40, InFlight: 10, StoredBytes: 1 << 40})
	for _, name := range []string{"unknown", "free", "limited"} {
		require.Zero(t, testing.AllocsPerRun(100, func() {
			a, err := n.Admit(name, store.Demand{Keys: 1, Bytes: 10, Grows: true})
			if err != nil {
				t.Fatal(err)
			}
			a.Release(0, 10)
		}), name)
	}
}

func BenchmarkAdmit(b *testing.B) {
	n, err := open(b, vfs.NewMem(), Options{})
	require.NoError(b, err)
	defer func() { require.NoError(b, n.engine.Close()) }()
	for name, q := range map[string]Quota{"free": {}, "limited": {OperationsPerSecond: 1 << 40, BytesPerSecond: 1 << 40, InFlight: 10, StoredBytes: 1 << 40}} {
		_, err := n.Create(bg, name, q, 0)
		require.NoError(b, err)
	}
	for _, name := range []string{"unknown", "free", "limited"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				a, err := n.Admit(name, store.Demand{Keys: 1, Bytes: 10})
				if err != nil {
					b.Fatal(err)
				}
				a.Release(0, 10)
			}
		})
	}
}

// Danger: one tenant's name makes a metric of its own for ever, or a counter goes down.
func TestUsageHasFewNamesAndNeverGoesDown(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{Named: 2})
	for _, name := range []string{"a", "b", "c"} {
		n.create(t, name, Quota{OperationsPerSecond: 3})
		require.NoError(t, n.put(name, "k", "v"))
	}
	require.NoError(t, n.put("unknown", "k", "v"))
	require.NoError(t, n.put("a", "k", "v"))
	require.Equal(t, "v", n.get(t, "a", "k"))
	exceeded(t, n.put("a", "k", "v"), "operations_per_second", 3)
	n.known.Load().byName["c"].stored.Store(7)
	usage := n.Usage()
	require.Len(t, usage, 3)
	require.Equal(t, "a", usage[0].Name)
	require.EqualValues(t, 3, usage[0].Requests)
	require.Equal(t, [4]uint64{1, 0, 0, 0}, usage[0].Refused)
	require.Greater(t, usage[0].Bytes, uint64(2+2+1))
	require.Equal(t, Usage{Name: "b", Requests: 1, Bytes: 2}, usage[1])
	require.Equal(t, Usage{Name: Others, Requests: 2, Bytes: 4, StoredBytes: 7}, usage[2])

	_, err := n.Drop(bg, "b")
	require.NoError(t, err)
	require.Len(t, n.Usage(), 2)
	require.EqualValues(t, 2, n.Usage()[1].Requests)
	n.create(t, "d", Quota{})
	require.Equal(t, "d", n.Usage()[1].Name, "the place of b is free")
	n.create(t, "b", Quota{})
	require.Len(t, n.Usage(), 3)
	require.NoError(t, n.put("b", "k", "v"))
	require.EqualValues(t, 3, n.Usage()[2].Requests)
}

// Danger: sizes are never looked up, or looked up for ever.
func TestRunRefreshesUntilItsContextEnds(t *testing.T) {
	n := start(t, vfs.NewMem(), Options{})
	n.create(t, "t", Quota{})
	require.NoError(t, n.put("t", "k", strings.Repeat("v", 10000)))
	require.NoError(t, n.engine.Flush(bg))
	ctx, cancel := context.WithCancel(bg)
	n.o.After = func(d time.Duration) <-chan time.Time {
		require.Equal(t, refreshInterval, d)
		cancel()
		return nil
	}
	n.Run(ctx)
	require.Positive(t, n.List(false)[0].StoredBytes)
}
