// Package journal is what one writer does to a node, step by step, and what the node may answer for it
// afterwards. A step follows from the writer's name and its number alone, so that a journal of numbers is
// enough to judge a node after its process, or its machine, has died. It starts and kills nothing.
package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"slices"

	"github.com/pairdb/pairdb/libs/client"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// Change is the new value of a key; nil is a delete.
type Change struct {
	Key   string
	Value []byte
}

// batchPuts is how many records a step writes that is a batch.
const batchPuts = 6

// Step returns the changes of step n of a writer. Several are an atomic batch. The same for ever: a later
// process checks what an earlier one wrote.
func Step(writer string, n int) []Change {
	put := func(i int) Change { return Change{key(writer, i), value(writer, n, i)} }
	first := n * (batchPuts + 1) // each step has numbers of its own
	before := func(steps int) int { return max(first-steps*(batchPuts+1), 0) }
	switch n % 10 {
	case 4:
		return []Change{{Key: key(writer, before(3))}}
	case 7:
		return []Change{put(before(5))}
	case 9:
		var batch []Change
		for i := range batchPuts {
			batch = append(batch, put(first+i))
		}
		return append(batch, Change{Key: key(writer, before(8))}, put(before(4)))
	}
	return []Change{put(first)}
}

// key spreads the records of neighbouring steps over the writer's keys: tables that do not overlap are
// moved, not merged.
func key(writer string, i int) string { return fmt.Sprintf("%s/%06d", writer, i*7919%1_000_003) }

// value is random, so that nothing packs it: 0.1 to 4 KiB, and now and then 24.
func value(writer string, n, i int) []byte {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s/%d/%d", writer, n, i)
	r := rand.New(rand.NewPCG(h.Sum64(), 1))
	size := 100 + r.IntN(4000)
	if n%16 == 3 {
		size = 24 << 10
	}
	b := make([]byte, size)
	for j := range b {
		b[j] = byte(r.Uint32())
	}
	return b
}

// Write does a step. The client must not repeat what failed (RetryFor below 0): a step is done once.
func Write(ctx context.Context, c *client.Client, writer string, n int) error {
	changes := Step(writer, n)
	if len(changes) > 1 {
		b := client.Batch{Atomic: true}
		for _, ch := range changes {
			if ch.Value == nil {
				b.Delete(ch.Key)
			} else {
				b.Put(ch.Key, ch.Value)
			}
		}
		return c.Write(ctx, &b)
	}
	var err error
	if changes[0].Value == nil {
		_, err = c.Delete(ctx, changes[0].Key)
	} else {
		_, err = c.Put(ctx, changes[0].Key, changes[0].Value)
	}
	return err
}

// Upkeep does what an operator does between the steps, so that each part of the node writes: it flushes
// often, merges everything sometimes, and makes a snapshot and removes it again. Most steps have none.
func Upkeep(ctx context.Context, c *client.Client, writer string, n int) error {
	if n%12 == 11 {
		if _, err := c.Admin().Flush(ctx, &adminv1.FlushRequest{}); err != nil {
			return fmt.Errorf("flush: %w", err)
		}
	}
	if n%36 == 35 {
		if err := compact(ctx, c); err != nil {
			return fmt.Errorf("compact: %w", err)
		}
	}
	if n%60 == 30 {
		name := fmt.Sprintf("%s-%d", writer, n)
		if _, err := c.Admin().Snapshot(ctx, &adminv1.SnapshotRequest{Name: name}); err != nil {
			return fmt.Errorf("snapshot: %w", err)
		}
		if _, err := c.Admin().DeleteSnapshot(ctx, &adminv1.DeleteSnapshotRequest{Name: name}); err != nil {
			return fmt.Errorf("delete the snapshot: %w", err)
		}
	}
	return nil
}

func compact(ctx context.Context, c *client.Client) error {
	progress, err := c.Admin().Compact(ctx, &adminv1.CompactRequest{})
	for err == nil {
		_, err = progress.Recv()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// Check reads all that the node has of a writer and judges it.
func Check(ctx context.Context, c *client.Client, writer string, acked []bool) error {
	there := map[string][]byte{}
	var doubled []error
	start, end := client.Prefix(writer + "/")
	for rec, err := range c.Scan(ctx, start, end) {
		if err != nil {
			return fmt.Errorf("read the keys of %s: %w", writer, err)
		}
		if value, live := client.Winner(rec); live {
			there[rec.Key] = append([]byte{}, value...)
		}
		if len(rec.Siblings) > 1 {
			doubled = append(doubled, fmt.Errorf("%s has %d values; its only writer never wrote two at once", rec.Key, len(rec.Siblings)))
		}
	}
	return errors.Join(append(doubled, Judge(writer, acked, there))...)
}

// known is what may be the value of a key.
type known struct {
	value []byte // of the last step that was acknowledged; nil: there is none
	open  []int  // later steps that nobody has heard of
	maybe [][]byte
}

// Judge compares what is there with what a writer was told. acked[n] says that step n was acknowledged,
// otherwise it was begun and may have happened; the step behind the last one may have been under way. All
// that is wrong comes as one error.
func Judge(writer string, acked []bool, there map[string][]byte) error {
	state := expect(writer, acked)
	var wrong []error
	for key := range there {
		if _, ok := state[key]; !ok {
			wrong = append(wrong, fmt.Errorf("%s was never written", key))
		}
	}
	happened := map[int]bool{} // by open step, as far as its keys tell
	for key, k := range state {
		got := there[key]
		i := slices.IndexFunc(k.maybe, func(v []byte) bool { return same(v, got) })
		if len(k.open) == 1 && !same(k.value, k.maybe[0]) {
			if before, seen := happened[k.open[0]]; seen && before != (i >= 0) {
				wrong = append(wrong, fmt.Errorf("half of the batch of step %d is there: %s", k.open[0], key))
			}
			happened[k.open[0]] = i >= 0
		}
		switch {
		case i >= 0 || same(got, k.value):
		case got == nil:
			wrong = append(wrong, fmt.Errorf("%s is lost", key))
		case k.value == nil:
			wrong = append(wrong, fmt.Errorf("%s is back", key))
		default:
			wrong = append(wrong, fmt.Errorf("%s has another value than the one that was acknowledged last", key))
		}
	}
	return errors.Join(wrong...)
}

func same(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

func expect(writer string, acked []bool) map[string]known {
	state := map[string]known{}
	for n := range len(acked) + 1 {
		for _, ch := range Step(writer, n) {
			k := state[ch.Key]
			if n < len(acked) && acked[n] {
				k = known{value: ch.Value}
			} else {
				k.open, k.maybe = append(k.open, n), append(k.maybe, ch.Value)
			}
			state[ch.Key] = k
		}
	}
	return state
}
