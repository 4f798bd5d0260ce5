package replica

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs/crashfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
	"github.com/pairdb/pairdb/services/storage-node/internal/tenant"
)

// Danger: what comes in replaces what is there instead of joining it, or a cached row hides it.
func TestIngestJoinsWithWhatIsThere(t *testing.T) {
	n := startNode(t, "n")
	n.put(t, "t", "k", "here")
	require.Equal(t, "here", n.get(t, "t", "k"))
	there := record("t", "k", "there")
	n.take(t, []Record{there, record("t", "new", "there")})
	r, err := n.store.Read(bg, "t", "k", nil)
	require.NoError(t, err)
	require.Len(t, r.Siblings, 2)
	require.Equal(t, "there", n.get(t, "t", "new"))
	n.take(t, []Record{there})
	again, err := n.store.Read(bg, "t", "k", nil)
	require.NoError(t, err)
	require.Equal(t, r.Siblings, again.Siblings)
	require.EqualValues(t, 3, n.Counts().IngestedRecords)
	require.Zero(t, n.Counts().Streams)
}

// Danger: a power cut takes what the sender was told is durable: it never sends it again.
func TestWhatIsAcknowledgedSurvivesAPowerCut(t *testing.T) {
	disk := crashfs.New()
	n := openNode(t, "n", disk)
	defer func() { require.NoError(t, n.engine.Close()) }()
	var mu sync.Mutex
	acked := uint64(0)
	type image struct {
		acked uint64
		fs    *crashfs.FS
	}
	var images []image
	in, err := n.Ingest(bg, ingestStart(), func(number uint64) error {
		mu.Lock()
		defer mu.Unlock()
		require.Greater(t, number, acked)
		acked = number
		if len(images) < 12 {
			images = append(images, image{acked, disk.CrashImage(crashfs.Modes()[len(images)%len(crashfs.Modes())], rand.New(rand.NewPCG(1, uint64(acked))))})
		}
		return nil
	})
	require.NoError(t, err)
	defer in.Close()
	const batches = 60
	for i := range batches {
		require.NoError(t, in.Add(uint64(i+1), []Record{
			record("t", fmt.Sprintf("k%03d", i), strings.Repeat("v", 100<<10)), record("u", fmt.Sprintf("k%03d", i), "small"),
		}))
	}
	require.NoError(t, in.Finish())
	mu.Lock()
	defer mu.Unlock()
	require.EqualValues(t, batches, acked)
	require.Greater(t, len(images), 2)
	for _, i := range images {
		after := openNode(t, "n", i.fs)
		for k := range i.acked {
			require.Equal(t, "small", after.get(t, "u", fmt.Sprintf("k%03d", k)), "batch %d of %d", k+1, i.acked)
			require.Len(t, after.get(t, "t", fmt.Sprintf("k%03d", k)), 100<<10)
		}
		require.NoError(t, after.engine.Close())
	}
}

// Danger: a sender that waits for an answer to a small batch waits for ever.
func TestASmallBatchIsAcknowledgedWithoutMore(t *testing.T) {
	n := startNode(t, "n")
	acks := make(chan uint64, 10)
	in, err := n.Ingest(bg, ingestStart(), func(number uint64) error { acks <- number; return nil })
	require.NoError(t, err)
	defer in.Close()
	require.NoError(t, in.Add(1, []Record{record("t", "k", "v")}))
	require.EqualValues(t, 1, <-acks)
	require.Equal(t, "v", n.get(t, "t", "k"))
	require.NoError(t, in.Add(2, nil)) // nothing to wait for
	require.EqualValues(t, 2, <-acks)
}

// Danger: a sender that is faster than the disk fills the memory.
func TestASenderWaitsForTheDisk(t *testing.T) {
	n := startNode(t, "n", func(o *engine.Options) { o.MemtableBytes, o.LogSegmentBytes = 64<<20, 64<<20 })
	release := make(chan struct{})
	n.faults.set(func(f *faults) { f.wait = func() error { <-release; return nil } })
	in, err := n.Ingest(bg, ingestStart(), func(uint64) error { return nil })
	require.NoError(t, err)
	const all = maxUnits + 12
	var added atomic.Int64
	done := make(chan error, 1)
	go func() {
		for i := range all {
			if err := in.Add(uint64(i+1), []Record{record("t", fmt.Sprint(i), strings.Repeat("v", unitBytes))}); err != nil {
				done <- err
				return
			}
			added.Add(1)
		}
		done <- in.Finish()
	}()
	require.Eventually(t, func() bool { return added.Load() >= maxUnits }, 10*time.Second, time.Millisecond)
	require.Never(t, func() bool { return added.Load() > maxUnits+2 }, 100*time.Millisecond, 10*time.Millisecond)
	close(release)
	require.NoError(t, <-done)
	in.Close()
	require.EqualValues(t, all, added.Load())
}

// Danger: a record that no node stores gets in, and cannot be read, or replicated, or belongs to the node.
func TestBadRecordsAreRefused(t *testing.T) {
	n := startNode(t, "n")
	good := record("t", "k", "v")
	key := func(k string) Record { return Record{Key: []byte(k), Value: good.Value} }
	claims := causal.Record{Siblings: []causal.Sibling{{Dot: causal.Dot{Node: n.store.Actor(), Counter: 99}, Timestamp: 1}}}
	two := causal.Record{Siblings: []causal.Sibling{
		{Dot: causal.Dot{Node: "a", Counter: 1}, Timestamp: 1}, {Dot: causal.Dot{Node: "b", Counter: 1}, Timestamp: 1},
	}}
	twisted := causal.Record{Siblings: []causal.Sibling{two.Siblings[1], two.Siblings[0]}}
	for name, r := range map[string]Record{
		"no tenant":      key("k"),
		"no key":         key("t\x00"),
		"two separators": key("t\x00k\x00k"),
		"system tenant":  key("_tenants\x00k"),
		"colon":          key("a:b\x00k"),
		"control":        key("t\x00k\x01"),
		"no UTF-8":       key("t\x00\xff"),
		"long key":       key("t\x00" + strings.Repeat("k", 1025)),
		"no value":       {Key: good.Key},
		"no record":      {Key: good.Key, Value: []byte("x")},
		"cut off":        {Key: good.Key, Value: good.Value[:len(good.Value)-1]},
		"too long":       {Key: good.Key, Value: append(append([]byte{}, good.Value...), 0)},
		"huge":           {Key: good.Key, Value: make([]byte, maxRecordBytes+1)},
		"claims":         {Key: good.Key, Value: claims.Encode(nil)},
		"order":          {Key: good.Key, Value: twisted.Encode(nil)},
	} {
		err := n.tryTake([]Record{r})
		require.Equal(t, store.ReasonIngest, store.ReasonOf(err), "%s: %v", name, err)
	}
	require.Empty(t, n.all(t))
	n.take(t, []Record{{Key: good.Key, Value: two.Encode(nil)}, key("t\x00ä\t")})
	require.Len(t, n.all(t), 2)
}

// Danger: a stream of an old format, an old copy that brings deleted values back, or a full disk is found
// out half way, or not at all.
func TestStreamsAreRefusedAtTheirStart(t *testing.T) {
	n := startNode(t, "n")
	try := func(change func(*IngestStart)) error {
		s := ingestStart()
		change(&s)
		in, err := n.Ingest(bg, s, func(uint64) error { return nil })
		if err == nil {
			in.Close()
		}
		return err
	}
	require.NoError(t, try(func(*IngestStart) {}))
	require.Equal(t, store.ReasonIngest, store.ReasonOf(try(func(s *IngestStart) { s.Format = 2 })))
	require.Equal(t, store.ReasonIngest, store.ReasonOf(try(func(s *IngestStart) { s.MoveID = "" })))
	require.Equal(t, store.ReasonIngest, store.ReasonOf(try(func(s *IngestStart) { s.MoveID = strings.Repeat("m", 65) })))
	require.Equal(t, store.ReasonMoveTooOld, store.ReasonOf(try(func(s *IngestStart) { s.ReadAt = time.Now().Add(-grace - time.Minute) })))
	require.Equal(t, store.ReasonMoveTooOld, store.ReasonOf(try(func(s *IngestStart) { s.ReadAt = time.UnixMilli(0) })))
	require.NoError(t, try(func(s *IngestStart) { s.ReadAt = time.Now().Add(-grace + time.Minute) }))
	n.faults.set(func(f *faults) { f.room = engine.ErrDiskThrottled })
	require.ErrorIs(t, try(func(*IngestStart) {}), engine.ErrDiskThrottled)
	require.NotEmpty(t, n.Describe().Refusal)
	n.faults.set(func(f *faults) { f.room = nil })
	n.o.Refusal = func() string { return "the node is draining" }
	require.Equal(t, store.ReasonTargetUnfit, store.ReasonOf(try(func(*IngestStart) {})))
	require.Equal(t, "the node is draining", n.Describe().Refusal)
	n.o.Refusal = func() string { return "" }
	require.Equal(t, store.ReasonOtherCluster, store.ReasonOf(n.CheckCluster("other")))
	require.NoError(t, n.CheckCluster("c"))
	var open []*Ingest
	for range maxStreams {
		in, err := n.Ingest(bg, ingestStart(), func(uint64) error { return nil })
		require.NoError(t, err)
		open = append(open, in)
	}
	require.Equal(t, store.ReasonOverloaded, store.ReasonOf(try(func(*IngestStart) {})))
	for _, in := range open {
		in.Close()
		in.Close()
	}
	require.NoError(t, try(func(*IngestStart) {}))
}

// Danger: batches that are lost, repeated or out of order on the way are acknowledged as if all were there.
func TestBatchesAreNumberedAndSorted(t *testing.T) {
	n := startNode(t, "n")
	for name, add := range map[string]func(in *Ingest) error{
		"gap":    func(in *Ingest) error { return in.Add(2, nil) },
		"repeat": func(in *Ingest) error { require.NoError(t, in.Add(1, nil)); return in.Add(1, nil) },
		"unsorted": func(in *Ingest) error {
			require.NoError(t, in.Add(1, []Record{record("t", "b", "1")}))
			return in.Add(2, []Record{record("t", "a", "1")})
		},
	} {
		s := ingestStart()
		s.Sorted = true
		in, err := n.Ingest(bg, s, func(uint64) error { return nil })
		require.NoError(t, err)
		require.Equal(t, store.ReasonIngest, store.ReasonOf(add(in)), name)
		<-in.Failed()
		require.Error(t, in.Err())
		require.Error(t, in.Add(3, nil), name)
		require.Error(t, in.Finish(), name)
		in.Close()
	}
}

// Danger: an engine that is behind, full or broken loses a batch that is acknowledged, or the stream hangs.
func TestErrorsOfTheEngineEndTheStream(t *testing.T) {
	n := startNode(t, "n")
	stalls := 3
	n.faults.set(func(f *faults) {
		f.submit = func() error {
			if stalls--; stalls >= 0 {
				return &engine.StalledError{Reason: "behind", RetryAfter: time.Millisecond}
			}
			return nil
		}
	})
	n.take(t, []Record{record("t", "k", "v")})
	require.Equal(t, "v", n.get(t, "t", "k"))
	n.faults.set(func(f *faults) { f.submit = func() error { return engine.ErrPoisoned } })
	require.ErrorIs(t, n.tryTake([]Record{record("t", "k2", "v")}), engine.ErrPoisoned)
	n.faults.set(func(f *faults) { f.submit, f.wait = nil, func() error { return engine.ErrPoisoned } })
	acked := false
	in, err := n.Ingest(bg, ingestStart(), func(uint64) error { acked = true; return nil })
	require.NoError(t, err)
	require.NoError(t, in.Add(1, []Record{record("t", "k3", "v")}))
	<-in.Failed() // though the sender sends nothing more
	require.ErrorIs(t, in.Err(), engine.ErrPoisoned)
	in.Close()
	require.False(t, acked)
	n.faults.set(func(f *faults) { f.wait = nil })

	n.faults.set(func(f *faults) { f.room = engine.ErrDiskFull })
	_, err = n.Ingest(bg, ingestStart(), func(uint64) error { return nil })
	require.ErrorIs(t, err, engine.ErrDiskFull)
	n.faults.set(func(f *faults) { f.room = nil })
	in, err = n.Ingest(bg, ingestStart(), func(uint64) error { return nil })
	require.NoError(t, err)
	defer in.Close()
	n.faults.set(func(f *faults) { f.room = engine.ErrDiskFull }) // while the stream goes on
	require.NoError(t, in.Add(1, []Record{record("t", "k4", "v")}))
	require.ErrorIs(t, in.Finish(), engine.ErrDiskFull)
	require.Empty(t, n.get(t, "t", "k4"))

	gone := errors.New("gone")
	n.faults.set(func(f *faults) { f.room = nil })
	in, err = n.Ingest(bg, ingestStart(), func(uint64) error { return gone })
	require.NoError(t, err)
	defer in.Close()
	require.NoError(t, in.Add(1, []Record{record("t", "k5", "v")}))
	require.ErrorIs(t, in.Finish(), gone)

	// A stall that does not end, and a stream that does.
	n.faults.set(func(f *faults) { f.submit = func() error { return &engine.StalledError{RetryAfter: time.Millisecond} } })
	ctx, cancel := context.WithCancel(bg)
	in, err = n.Ingest(ctx, ingestStart(), func(uint64) error { return nil })
	require.NoError(t, err)
	require.NoError(t, in.Add(1, []Record{record("t", "k6", "v")}))
	cancel()
	require.ErrorIs(t, in.Finish(), context.Canceled)
	in.Close()
	n.faults.set(func(f *faults) { f.submit = nil })
}

// Danger: a replica that was away fills a dropped tenant again, or its old life into the new one.
func TestRecordsOfDroppedTenantsAreNotStored(t *testing.T) {
	n := startNode(t, "n")
	_, err := n.tenants.Create(bg, "gone", tenant.Quota{}, 0)
	require.NoError(t, err)
	n.Agree("peer")
	start := func() *Ingest {
		in, err := n.Ingest(bg, ingestStart(), func(uint64) error { return nil })
		require.NoError(t, err)
		return in
	}
	in := start()
	require.NoError(t, in.Add(1, []Record{record("gone", "k", "v"), record("stays", "k", "v")}))
	dropped := make(chan error, 1)
	go func() { _, err := n.tenants.Drop(bg, "gone"); dropped <- err }() // it waits for the unit
	require.NoError(t, <-dropped)
	require.NoError(t, in.Add(2, []Record{record("gone", "k2", "v"), record("stays", "k2", "v")}))
	require.NoError(t, in.Finish())
	in.Close()
	require.EqualValues(t, 1, n.Counts().SkippedRecords)
	require.Equal(t, "v", n.get(t, "stays", "k2"))
	require.Len(t, n.all(t), 2)

	// What the peer sends is of the life that was agreed on, however often it connects.
	_, err = n.tenants.Create(bg, "gone", tenant.Quota{}, 0)
	require.NoError(t, err)
	in = start()
	require.Equal(t, store.ReasonTenantDropping, store.ReasonOf(in.Add(1, []Record{record("gone", "k", "old")})))
	in.Close()
	n.Agree("peer")
	in = start()
	require.NoError(t, in.Add(1, []Record{record("gone", "k", "new")}))
	require.NoError(t, in.Finish())
	in.Close()
	require.Equal(t, "new", n.get(t, "gone", "k"))
}

// Danger: one bad clock becomes that of every node, or a write after a copy is older than what it replaces.
func TestTimesOfRecordsAreTakenAndFollowedWithinTheSkew(t *testing.T) {
	n := startNode(t, "n")
	at := func(key string, ahead time.Duration) Record {
		rec := causal.Record{Siblings: []causal.Sibling{{
			Dot: causal.Dot{Node: "other", Counter: 1}, Value: []byte("v"), Timestamp: causal.Timestamp(time.Now().Add(ahead)),
		}}}
		return Record{Key: ikey.AppendEngineKey(nil, "t", key), Value: rec.Encode(nil)}
	}
	stamp := func(key string) time.Time {
		n.put(t, "t", key, "own")
		r, err := n.store.Read(bg, "t", key, nil)
		require.NoError(t, err)
		return causal.Time(r.Timestamp)
	}
	n.take(t, []Record{at("far", time.Hour)})
	require.Equal(t, "v", n.get(t, "t", "far"))
	require.Less(t, time.Until(stamp("a")), time.Second)
	n.take(t, []Record{at("near", 30*time.Second)})
	require.Greater(t, time.Until(stamp("b")), 25*time.Second)
}
