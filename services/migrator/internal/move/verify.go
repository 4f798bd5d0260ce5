package move

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/sidecar"
	"github.com/pairdb/pairdb/services/migrator/internal/stream"

	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
)

// compare makes both sides equal in all that the move selects.
func (r *Runner) compare(ctx context.Context, both bool) error {
	t, err := r.sendTo(ctx)
	if err != nil {
		return err
	}
	defer t.release()
	if t.contract {
		return failf("the target knows the established contract only: it can't be compared")
	}
	if err := r.tenants(ctx, t); err != nil {
		return err
	}
	_, err = r.o.Compare(ctx, Comparison{
		MoveID: r.id, Own: r.o.Replica, Other: t.replica, Peer: r.peer, What: r.move().GetWhat(),
		CollectedBefore: r.collectedBefore(), BothWays: both, Limits: r.limits, Progress: r.comparedKeys,
	})
	return firstCause(ctx, err)
}

// comparedKeys notes what a comparison has found since it last said so.
func (r *Runner) comparedKeys(compared, repaired int64) {
	r.o.Metrics.comparedKeys(compared, repaired)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.is.progress.ComparedKeys += compared
	r.is.progress.RepairedKeys += repaired
	r.is.reached += compared
}

// collectedBefore is from when on both sides have all deletions still.
func (r *Runner) collectedBefore() uint64 {
	if r.o.GCGrace <= 0 {
		return 0
	}
	return causal.Timestamp(time.Now().Add(-r.o.GCGrace))
}

// repair compares both ways, and is done.
func (r *Runner) repair(ctx context.Context) error {
	stop := r.reporting(ctx)
	defer stop()
	if err := r.compare(ctx, true); err != nil {
		return err
	}
	stop()
	return r.advance(ctx, step{state: movev1.State_STATE_COMMITTED, verified: true})
}

// maxCompareKeys is the limit of CompareKeysRequest.
const maxCompareKeys = 1000

// equalize makes sure that the target has all that the node has of the keys, as they are now: it is equal,
// or contained in what the target has.
func (r *Runner) equalize(ctx context.Context, t *target, keys [][]byte) error {
	slices.SortFunc(keys, bytes.Compare)
	before := r.collectedBefore()
	for part := range slices.Chunk(keys, maxCompareKeys) {
		for round := 0; len(part) > 0; round++ {
			var err error
			if part, err = r.lacking(ctx, t, part, before, round > 0); err != nil {
				return err
			}
			if round > 1 {
				_ = sidecar.Pause(ctx, time.Duration(round)*10*time.Millisecond)
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
	}
	return nil
}

// lacking returns the keys of which the target seemed to lack something, after it has sent them. again says
// that they were sent before: then what the target has is read, since it may have more than the node.
func (r *Runner) lacking(ctx context.Context, t *target, keys [][]byte, before uint64, again bool) ([][]byte, error) {
	own, err := r.digests(ctx, r.o.Replica, keys, before)
	if err != nil {
		return nil, ofNode(err)
	}
	other, err := r.digests(ctx, t.replica, keys, before)
	if err != nil {
		return nil, ofTarget(err)
	}
	var differ [][]byte
	for i, k := range keys {
		if len(own[i]) > 0 && !bytes.Equal(own[i], other[i]) {
			differ = append(differ, k)
		}
	}
	if len(differ) == 0 {
		return nil, nil
	}
	records, err := r.fetch(ctx, r.o.Replica, differ)
	if err != nil {
		return nil, ofNode(err)
	}
	if again {
		if records, err = r.notContained(ctx, t, records); err != nil || len(records) == 0 {
			return nil, err
		}
	}
	if err := r.sendRecords(ctx, t, records); err != nil {
		return nil, err
	}
	left := make([][]byte, len(records))
	for i, e := range records {
		left[i] = e.GetKey()
	}
	return left, nil
}

func (r *Runner) digests(ctx context.Context, c replicav1.ReplicaServiceClient, keys [][]byte, before uint64) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, r.o.Times.Call)
	defer cancel()
	a, err := c.CompareKeys(ctx, &replicav1.CompareKeysRequest{Peer: r.peer, Keys: keys, CollectedBefore: before})
	if err != nil {
		return nil, err
	}
	if len(a.GetDigests()) != len(keys) {
		return nil, fmt.Errorf("%w: %d digests of %d keys", errMalformed, len(a.GetDigests()), len(keys))
	}
	return a.GetDigests(), nil
}

// fetch reads the records of keys that exist.
func (r *Runner) fetch(ctx context.Context, c replicav1.ReplicaServiceClient, keys [][]byte) ([]*movev1.EncodedRecord, error) {
	ctx, cancel := context.WithTimeout(ctx, r.o.Times.Stall)
	defer cancel()
	s, err := c.Fetch(ctx, &replicav1.FetchRequest{Peer: r.peer, Keys: keys})
	if err != nil {
		return nil, err
	}
	var out []*movev1.EncodedRecord
	for {
		a, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if out = append(out, a.GetRecords()...); len(out) > len(keys) {
			return nil, fmt.Errorf("%w: more than %d records of as many keys", errMalformed, len(keys))
		}
	}
}

// notContained returns the records that have something which the target has not.
func (r *Runner) notContained(ctx context.Context, t *target, records []*movev1.EncodedRecord) ([]*movev1.EncodedRecord, error) {
	keys := make([][]byte, len(records))
	for i, e := range records {
		keys[i] = e.GetKey()
	}
	found, err := r.fetch(ctx, t.replica, keys)
	if err != nil {
		return nil, ofTarget(err)
	}
	has := make(map[string][]byte, len(found))
	for _, e := range found {
		has[string(e.GetKey())] = e.GetValue()
	}
	var out []*movev1.EncodedRecord
	for _, e := range records {
		contained, err := contains(has[string(e.GetKey())], e.GetValue())
		if err != nil {
			return nil, fmt.Errorf("compare records: %w", err)
		}
		if !contained {
			out = append(out, e)
		}
	}
	return out, nil
}

// contains reports whether a record has all that another one has: joining them adds nothing to it.
func contains(record, other []byte) (bool, error) {
	if len(record) == 0 {
		return false, nil
	}
	joined, err := causal.JoinEncoded(nil, other, record)
	if err != nil {
		return false, err
	}
	alone, err := causal.JoinEncoded(nil, record, record) // in the form that a join has
	if err != nil {
		return false, err
	}
	return bytes.Equal(joined, alone), nil
}

// batchBytes of keys and values are one message of Ingest, which stays below 64 KiB with its frame.
const batchBytes = 48 << 10

// sendRecords joins records into the target, durably.
func (r *Runner) sendRecords(ctx context.Context, t *target, records []*movev1.EncodedRecord) error {
	s, err := r.sink(ctx, t, stream.Options{ReadAt: time.Now(), Acked: func(m stream.Mark) {
		r.o.Metrics.bytes.WithLabelValues("repair").Add(float64(m.Bytes))
		r.o.Metrics.records.WithLabelValues("repair").Add(float64(m.Records))
	}})
	if err != nil {
		return err
	}
	defer s.Close()
	var batch stream.Records
	flush := func() error {
		err := s.Send(ctx, &batch, stream.Mark{})
		batch = stream.Records{}
		return ofTarget(err)
	}
	for _, e := range records {
		if size := int64(len(e.GetKey()) + len(e.GetValue())); batch.Len() > 0 && batch.Bytes()+size > batchBytes {
			if err := flush(); err != nil {
				return err
			}
		}
		batch.Append(e.GetKey(), e.GetValue())
	}
	if err := flush(); err != nil {
		return err
	}
	return ofTarget(s.Finish(ctx))
}
