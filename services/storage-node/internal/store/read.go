package store

import (
	"context"
	"fmt"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/stages"
)

// ReadResult is the state of a key.
type ReadResult struct {
	// Found: there is at least one live value. Then Value, Timestamp and ExpiresAt are those of the
	// winner.
	Found     bool
	Value     []byte
	Timestamp uint64
	ExpiresAt int64
	// Clock joins everything known of the key, tombstones and expired values included. Empty for a
	// key that this node has never seen.
	Clock causal.Clock
	// Siblings are all live values and tombstones, the winner first, if there are several or a
	// tombstone.
	Siblings []causal.Sibling
	// Buf holds the values; pass it to the next Read when they are no longer needed.
	Buf []byte
}

// Read returns the durable state of a key; that it is absent is an answer. Values are in buf[:0] if
// they fit, else in new memory; either way in the result's Buf.
func (s *Store) Read(ctx context.Context, tenant, key string, buf []byte) (r ReadResult, err error) {
	t := stages.From(ctx)
	admission, err := s.admit(tenant, Demand{Keys: 1, Bytes: len(key)})
	if err != nil {
		return ReadResult{}, err
	}
	defer func() { admission.Release(0, r.bytes()) }()
	if err := checkKey(key); err != nil {
		return ReadResult{}, err
	}
	if err := s.serves(tenant, key, false); err != nil {
		return ReadResult{}, err
	}
	if err := ctx.Err(); err != nil {
		return ReadResult{}, err
	}
	sc := s.scratch.Get().(*scratch)
	defer s.release(sc)
	sc.keys = ikey.AppendEngineKey(sc.keys[:0], tenant, key)
	now := s.now()
	if t == nil {
		return s.get(sc.keys, buf, now.Unix(), admission.LastWriterWins(), nil)
	}
	t.Lap(stages.Limits, now)
	r, err = s.get(sc.keys, buf, now.Unix(), admission.LastWriterWins(), t)
	t.Lap(stages.Read, s.now())
	return r, err
}

// bytes is the size of the record that was read.
func (r *ReadResult) bytes() int {
	if len(r.Clock) == 0 {
		return 0 // there was none; Buf is the caller's
	}
	return len(r.Buf)
}

// get reads one key; t may be nil.
func (s *Store) get(key, buf []byte, now int64, lastWriterWins bool, t *stages.Trail) (ReadResult, error) {
	var value []byte
	var found bool
	var err error
	if t != nil && s.trailing != nil {
		value, found, err = s.trailing.GetTrail(key, buf[:0], t)
	} else {
		value, found, err = s.e.Get(key, buf[:0])
	}
	if err != nil {
		return ReadResult{Buf: buf}, fmt.Errorf("read: %w", err)
	}
	if !found {
		s.counts.misses.Add(1)
		return ReadResult{Buf: buf}, nil
	}
	rec, err := causal.Decode(value)
	if err != nil {
		return ReadResult{Buf: buf}, corrupted(key, err)
	}
	r := view(rec, now)
	if lastWriterWins && len(rec.Siblings) > 1 {
		r = viewWinner(rec, now)
	}
	r.Buf = value
	s.counts.read(&r)
	return r, nil
}

// view is what a reader is shown of a record.
func view(rec causal.Record, now int64) ReadResult {
	r := ReadResult{Clock: rec.Clock()}
	live := rec.Live(now)
	if w := causal.Winner(live); w >= 0 {
		r.Found, r.Value, r.Timestamp, r.ExpiresAt = true, live[w].Value, live[w].Timestamp, live[w].ExpiresAt
	}
	if len(rec.Siblings) == 1 && len(live) == 1 {
		return r
	}
	shown := make([]causal.Sibling, 0, len(rec.Siblings))
	shown = append(shown, live...)
	for _, sib := range rec.Siblings {
		if sib.Tombstone {
			shown = append(shown, sib)
		}
	}
	if len(live) > 0 {
		w := causal.Winner(live)
		shown[0], shown[w] = shown[w], shown[0]
	} else if w := causal.Winner(shown); w > 0 {
		shown[0], shown[w] = shown[w], shown[0]
	}
	if len(shown) > 1 || len(live) == 0 && len(shown) == 1 {
		r.Siblings = shown
	}
	return r
}

// viewWinner is view for a tenant whose last writer wins: the newest of all siblings is the state of
// the key, be it a value, a tombstone or expired. The clock is still that of all, so that the next
// write supersedes them.
func viewWinner(rec causal.Record, now int64) ReadResult {
	w := causal.Winner(rec.Siblings)
	r := view(causal.Record{Siblings: rec.Siblings[w : w+1]}, now)
	r.Clock = rec.Clock()
	return r
}

// BatchReadResult is the answer for one key.
type BatchReadResult struct {
	ReadResult
	Err error
}

// BatchRead returns the state of up to MaxBatchOps keys, one result each. Once MaxResponseBytes are
// together, the remaining keys get ReasonResponseTooLarge. The keys are not read at one moment.
func (s *Store) BatchRead(ctx context.Context, tenant string, keys []string) ([]BatchReadResult, error) {
	if len(keys) > MaxBatchOps {
		return nil, refuse(ReasonBatch, "batch has %d keys, at most %d allowed", len(keys), MaxBatchOps)
	}
	d := Demand{Keys: len(keys)}
	for _, key := range keys {
		d.Bytes += len(key)
	}
	admission, err := s.admit(tenant, d)
	if err != nil {
		return nil, err
	}
	total := 0
	defer func() { admission.Release(0, total) }()
	sc := s.scratch.Get().(*scratch)
	defer s.release(sc)
	out := make([]BatchReadResult, len(keys))
	began, full, t := s.now(), false, stages.From(ctx)
	now := began.Unix()
	if t != nil {
		t.Lap(stages.Limits, began)
		defer func() { t.Lap(stages.Read, s.now()) }()
	}
	var mem arena
	for i, key := range keys {
		if i%64 == 0 {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
		}
		r := &out[i]
		if r.Err = checkKey(key); r.Err != nil {
			continue
		}
		if full {
			r.Err = errTooLarge()
			continue
		}
		if r.Err = s.serves(tenant, key, false); r.Err != nil {
			continue
		}
		sc.keys = ikey.AppendEngineKey(sc.keys[:0], tenant, key)
		r.ReadResult, r.Err = s.get(sc.keys, mem.room(), now, admission.LastWriterWins(), t)
		if r.Err != nil {
			r.ReadResult = ReadResult{}
			continue
		}
		if total += len(r.Buf) + clockBytes(r.Clock); total > MaxResponseBytes {
			*r, full = BatchReadResult{Err: errTooLarge()}, true
			continue
		}
		mem.take(r.Buf)
	}
	return out, nil
}

func errTooLarge() error {
	return refuse(ReasonResponseTooLarge, "the answer exceeds %d bytes; read this key again", MaxResponseBytes)
}

// arena lends memory to values of unknown length, so that a thousand small ones cost few
// allocations.
type arena struct{ free []byte }

const arenaBytes = 32 << 10

// room returns memory for the next value.
func (a *arena) room() []byte {
	if cap(a.free) < arenaBytes/8 {
		a.free = make([]byte, 0, arenaBytes)
	}
	return a.free
}

// take keeps what was returned for the last room, if it was put there.
func (a *arena) take(v []byte) {
	if len(v) > 0 && len(v) <= cap(a.free) && &v[0] == &a.free[:1][0] {
		a.free = a.free[len(v):len(v):cap(a.free)]
	}
}
