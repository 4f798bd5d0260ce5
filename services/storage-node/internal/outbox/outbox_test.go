package outbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/errorfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const dir = "/data/outbox"

var data = json.RawMessage(`{"reason":"a test"}`)

// box is an outbox whose goroutine runs.
type box struct {
	*Outbox
	t    *testing.T
	stop context.CancelFunc
	log  *bytes.Buffer
}

func options(fs vfs.FS, log *bytes.Buffer) Options {
	return Options{
		FS: fs, Dir: dir, Cluster: "c", Node: "n.1", Capacity: 100,
		Log: slog.New(slog.NewTextHandler(log, nil)),
	}
}

// start runs an outbox on a directory that is its own.
func start(t *testing.T, o Options, log *bytes.Buffer) *box {
	t.Helper()
	b := &box{Outbox: New(o), t: t, log: log}
	ctx, stop := context.WithCancel(context.Background())
	b.stop = stop
	go b.Run(ctx)
	b.Attach()
	return b
}

func open(t *testing.T, fs vfs.FS) *box {
	t.Helper()
	var log bytes.Buffer
	return start(t, options(fs, &log), &log)
}

func (b *box) end() {
	b.stop()
	<-b.done
}

func (b *box) add(id string) {
	b.t.Helper()
	require.NoError(b.t, b.Add(context.Background(), sidecarEvent(id)))
}

func sidecarEvent(id string) event.Event {
	return event.Event{ID: id, Kind: event.MembershipJoined, Time: time.Now(), Data: data}
}

// next takes the oldest event, without acknowledging it.
func (b *box) next() event.Event {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	e, err := b.Next(ctx)
	require.NoError(b.t, err)
	return e
}

// drain acknowledges all that wait and returns their ids.
func (b *box) drain() (ids []string) {
	b.t.Helper()
	synctest.Wait() // for what is being read or written
	for {
		b.mu.Lock()
		empty := len(b.entries) == 0
		b.mu.Unlock()
		if empty {
			return ids
		}
		e := b.next()
		ids = append(ids, e.ID)
		b.Ack(e.ID)
	}
}

// Danger: events leave in another order than they happened, or with another id after a restart, so
// that a stream can't tell a repeat.
func TestEventsKeepOrderAndIDsOverARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		b := open(t, fs)
		at := time.Now()
		for i := range 5 {
			b.Note(event.NodeStarted, at.Add(time.Duration(i)), data)
		}
		b.add("agent.1")
		first := b.next()
		require.Equal(t, "n.1."+b.session+".1", first.ID)
		require.Equal(t, event.Event{ID: first.ID, Kind: event.NodeStarted, Cluster: "c", Node: "n.1", Time: at.UTC().Round(0), Sequence: 1, Data: data}, first)
		require.Equal(t, first, b.next(), "until it is acknowledged it is the same one")
		b.Ack(first.ID)
		b.end()

		again := open(t, fs)
		var want, got []string
		for i := 2; i <= 5; i++ {
			want = append(want, fmt.Sprintf("n.1.%s.%d", b.session, i))
		}
		want = append(want, "agent.1")
		synctest.Wait()
		require.Equal(t, len(want), again.Status().Length)
		for i := range want {
			e := again.next()
			require.EqualValues(t, i+2, e.Sequence)
			require.Equal(t, event.Event{Cluster: "c", Node: "n.1"}, event.Event{Cluster: e.Cluster, Node: e.Node})
			got = append(got, e.ID)
			again.Ack(e.ID)
		}
		require.Equal(t, want, got)
		again.Note(event.NodeReady, at, data)
		e := again.next()
		require.EqualValues(t, 7, e.Sequence, "a clean stop leaves no number out")
		require.NotContains(t, want, e.ID)
		again.end()
	})
}

// Danger: a sidecar that repeats itself after a lost answer is heard twice.
func TestAnIDIsTakenOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		b := open(t, fs)
		b.add("agent.1")
		b.add("agent.2")
		b.add("agent.1")
		require.Equal(t, []string{"agent.1", "agent.2"}, b.drain())
		b.add("agent.2")
		require.Empty(t, b.drain(), "also after it was published")
		b.end()
		b = open(t, fs)
		b.add("agent.1")
		require.Empty(t, b.drain(), "also after a restart, while the file has it")
		for i := range remembered {
			b.add(fmt.Sprintf("other.%d", i))
			b.drain()
		}
		b.add("agent.1")
		require.Equal(t, []string{"agent.1"}, b.drain(), "memory of ids has an end")
		b.end()
	})
}

// Danger: an outbox that nobody empties eats the memory of the node, or makes it wait.
func TestFullOutboxDropsTheOldestAndCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		b := open(t, fs)
		for i := range 250 {
			b.add(fmt.Sprint("e", i))
		}
		s := b.Status()
		require.Equal(t, 100, s.Length)
		require.EqualValues(t, 150, s.Dropped)
		require.Equal(t, "e150", b.next().ID)
		b.end()
		b = open(t, fs)
		ids := b.drain()
		require.Len(t, ids, 100)
		require.Equal(t, "e150", ids[0])
		require.Equal(t, "e249", ids[99])
		b.end()
	})
}

// Danger: ten thousand events of sixteen KiB are 160 MB that nobody reckoned with.
func TestBytesAreBoundedToo(t *testing.T) {
	var log bytes.Buffer
	o := options(vfs.NewMem(), &log)
	o.Capacity = 1 << 20
	b := New(o)
	b.open()
	large := json.RawMessage(`{"reason":"` + strings.Repeat("x", event.MaxPayloadBytes-20) + `"}`)
	for i := range maxBytes/event.MaxPayloadBytes + 50 {
		e := sidecarEvent(fmt.Sprint(i))
		e.Data = large
		b.take([]item{{event: e}})
	}
	require.LessOrEqual(t, b.bytes, int64(maxBytes))
	require.Positive(t, b.Status().Dropped)
	b.close()
}

// Danger: an engine callback waits for a disk that hangs, or for a directory that is another's.
func TestHandingOverNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		b := New(options(vfs.NewMem(), &log)) // nobody runs it
		for range handOver + 7 {
			b.Note(event.NodeStarted, time.Now(), data)
		}
		s := b.Status()
		require.EqualValues(t, 7, s.Dropped)
		require.Equal(t, handOver, s.Length)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.ErrorIs(t, b.Add(ctx, sidecarEvent("x")), context.DeadlineExceeded)
	})
}

// Danger: the second process on a directory publishes that the node started, or writes into the file.
func TestNothingIsTouchedBeforeTheDirectoryIsOurs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		var log bytes.Buffer
		b := New(options(fs, &log))
		ctx, stop := context.WithCancel(t.Context())
		go b.Run(ctx)
		b.Note(event.NodeStarted, time.Now(), data)
		synctest.Wait()
		_, err := fs.Stat(dir)
		require.Error(t, err)
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = b.Next(short)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		stop()
		<-b.done
		require.ErrorIs(t, b.Add(t.Context(), sidecarEvent("x")), ErrClosed)
		require.False(t, b.WaitEmpty(t.Context()))
	})
}

// Danger: an event that the stream has forgotten is sent again and is there twice.
func TestEventsThatWaitTooLongAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, vfs.NewMem())
		b.add("old")
		time.Sleep(event.MaxWait - time.Minute)
		b.add("young")
		require.Equal(t, "old", b.next().ID)
		time.Sleep(2 * time.Minute)
		require.Equal(t, "young", b.next().ID)
		require.EqualValues(t, 1, b.Status().Dropped)
		b.Ack("old") // the publisher comes too late
		require.Equal(t, "young", b.next().ID)
		b.end()
	})
}

// Danger: a full disk stops the node's events, or nobody learns that they are in memory only.
func TestDiskThatFailsLeavesEventsInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk, inj := vfs.NewMem(), errorfs.None()
		var log bytes.Buffer
		b := start(t, options(errorfs.Wrap(disk, inj), &log), &log)
		b.add("a")
		inj.FailAll(errorfs.Mutating, vfs.ErrNoSpace)
		b.add("b")
		b.add("c")
		require.True(t, b.Status().Memory)
		require.Equal(t, "a", b.next().ID)
		require.Equal(t, 1, strings.Count(log.String(), "goes on in memory"))
		time.Sleep(3 * retryEvery)
		require.Equal(t, 1, strings.Count(log.String(), "goes on in memory"), "said once")
		inj.FailAll(0, nil)
		time.Sleep(retryEvery + 2*settleEvery)
		synctest.Wait()
		require.False(t, b.Status().Memory)
		require.Contains(t, log.String(), "durable again")
		b.end()
		b = open(t, disk)
		require.Equal(t, []string{"a", "b", "c"}, b.drain())
		b.end()
	})
}

// Danger: a disk that does not work at all keeps the node from starting.
func TestDirectoryThatCanNotBeMadeIsNoObstacle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inj := errorfs.None()
		inj.FailAll(errorfs.All, errors.New("input/output error"))
		var log bytes.Buffer
		b := start(t, options(errorfs.Wrap(vfs.NewMem(), inj), &log), &log)
		b.add("a")
		b.Note(event.NodeStarted, time.Now(), data)
		synctest.Wait()
		require.Len(t, b.drain(), 2)
		require.True(t, b.Status().Memory)
		time.Sleep(time.Hour)
		b.end()
	})
}

// Danger: the file grows for as long as the node runs.
func TestFileIsTidied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		b := open(t, fs)
		for i := range 5000 {
			b.add(fmt.Sprint("e", i))
			if i > 0 {
				e := b.next()
				b.Ack(e.ID)
			}
			if i%100 == 0 {
				time.Sleep(2 * settleEvery)
			}
		}
		time.Sleep(2 * settleEvery)
		synctest.Wait()
		info, err := fs.Stat(dir + "/" + fileName)
		require.NoError(t, err)
		require.Less(t, info.Size(), int64(2*tidyBytes))
		b.end()
		b = open(t, fs)
		require.Equal(t, []string{"e4999"}, b.drain())
		b.end()
	})
}

// Danger: a node ends before its last event is out, or waits for a NATS that is away.
func TestWaitEmptyWaitsForAllThatWasHandedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, vfs.NewMem())
		require.True(t, b.WaitEmpty(t.Context()))
		b.Note(event.NodeStopping, time.Now(), data)
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.False(t, b.WaitEmpty(short))
		go func() {
			e, err := b.Next(context.Background())
			if err == nil {
				b.Ack(e.ID)
			}
		}()
		require.True(t, b.WaitEmpty(t.Context()))
		b.end()
	})
}

// Danger: two outboxes write one file.
func TestSecondOutboxOfADirectoryStaysInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		a := open(t, fs)
		a.add("a")
		b := open(t, fs)
		b.add("b")
		require.True(t, b.Status().Memory)
		require.Equal(t, []string{"b"}, b.drain())
		b.end()
		a.end()
		a = open(t, fs)
		require.Equal(t, []string{"a"}, a.drain())
		a.end()
	})
}

// Danger: what a sidecar sends can't be encoded, and stops the publisher for ever.
func TestWhatCanNotBeSentIsNotTaken(t *testing.T) {
	var log bytes.Buffer
	b := New(options(vfs.NewMem(), &log))
	for _, change := range []func(*event.Event){
		func(e *event.Event) { e.ID = "" },
		func(e *event.Event) { e.Data = json.RawMessage(`[]`) },
		func(e *event.Event) { e.Time = time.Time{} },
	} {
		e := sidecarEvent("x")
		change(&e)
		require.ErrorIs(t, b.Add(t.Context(), e), event.ErrInvalid)
	}
	require.Zero(t, b.Status().Length)
}
