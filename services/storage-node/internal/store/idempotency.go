package store

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"time"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
)

const (
	// idempotencyTenant is the system tenant of what is remembered; its keys are tenant ‖ 0x00 ‖
	// idempotency key.
	idempotencyTenant = "_idempotency"
	// rememberFor is how long a repeat gets the first answer, in seconds: a day.
	rememberFor = 24 * 3600
)

// idempotencyBounds returns the half-open range of engine keys that hold what is remembered of the
// requests of a tenant.
func idempotencyBounds(tenant string) (lower, upper []byte) {
	return ikey.TenantBounds(idempotencyTenant + string(rune(ikey.Separator)) + tenant)
}

// once is a write on its way that has an idempotency key. What it leaves is the value of a record:
//
//	version digest outcome siblings clock
//	clock = count (id-length id counter)*
//
// version and outcome are bytes, digest is the SHA-256 of the request; the other numbers are unsigned
// varints. The clock is not that of the record, which has a limit of its own: the clock of a key joins
// those of all its siblings.
type once struct {
	key string

	// Set by prepare.
	name   []byte // engine key of what is remembered
	hash   uint64
	digest [sha256.Size]byte

	readSeq ikey.Seq // of the newest recall
	locked  [2]item
}

const answerVersion = 1

func checkIdempotencyKey(key string) error {
	if len(key) == 0 || len(key) > MaxIdempotencyKeyBytes {
		return refuse(ReasonIdempotencyKey, "idempotency key has %d bytes, 1 to %d allowed", len(key), MaxIdempotencyKeyBytes)
	}
	if r, ok := forbidden(key, "", ""); ok {
		return refuse(ReasonIdempotencyKey, "idempotency key contains %q: no control character or invalid UTF-8 allowed", r)
	}
	return nil
}

func (o *once) prepare(s *Store, tenant string, op *Op) error {
	if err := checkIdempotencyKey(o.key); err != nil {
		return err
	}
	lower, _ := idempotencyBounds(tenant)
	o.name = append(lower, o.key...)
	o.hash = maphash.Bytes(s.seed, o.name)
	o.digest = digestOf(op)
	return nil
}

// stripes returns what is locked for a write: its own key and that of what is remembered.
func (o *once) stripes(write item) []item {
	o.locked = [2]item{write, {hash: o.hash}}
	if o.hash < write.hash {
		o.locked = [2]item{{hash: o.hash}, write}
	}
	return o.locked[:]
}

// recall looks for an earlier request with the key. If it was the same one, r is its answer.
func (o *once) recall(s *Store, sc *scratch, r *OpResult) (found bool, err error) {
	value, found, readSeq, err := s.e.GetLatest(o.name, sc.read[:0])
	if err != nil {
		return false, err
	}
	o.readSeq = readSeq
	if !found {
		return false, nil
	}
	sc.read = value
	rec, err := causal.Decode(value)
	if err != nil {
		return false, corrupted(o.name, err)
	}
	w := causal.Winner(rec.Siblings)
	if w < 0 || rememberUntil(rec.Siblings[w].Timestamp) <= s.now().Unix() {
		return false, nil
	}
	digest, answer, err := parseAnswer(rec.Siblings[w].Value)
	if err != nil {
		return false, corrupted(o.name, err)
	}
	if digest != o.digest {
		return false, refuse(ReasonKeyReused, "the idempotency key was used for another request; take a new one for each")
	}
	*r = OpResult{WriteResult: answer}
	r.Replayed = true
	return true, nil
}

// rememberUntil returns the Unix second from which on what was remembered at a timestamp counts no more.
// It is rounded up, so that nothing is forgotten too early.
func rememberUntil(timestamp uint64) int64 {
	return (causal.Time(timestamp).UnixMilli()+999)/1000 + rememberFor
}

// remember adds the answer to the batch of the write. It says that it expires as much earlier as expired
// values are kept: no other node has it, so compaction may take it after its day.
func (o *once) remember(s *Store, sc *scratch, r *WriteResult) error {
	now := s.hlc.Now()
	rec := causal.Record{Siblings: []causal.Sibling{{
		Dot:   causal.Dot{Node: s.actor, Counter: s.counter.Add(1)},
		Value: appendAnswer(nil, o.digest, r), Timestamp: now,
		ExpiresAt: max(rememberUntil(now)-int64(s.opts.GCGrace/time.Second), 1),
	}}}
	sc.enc = rec.Encode(sc.enc[:0])
	if size := changeOverhead + len(o.name) + len(sc.enc); sc.batch.Bytes()+size > s.opts.EngineBatchBytes {
		return refuse(ReasonTooManySiblings, "the values and the clock of the key exceed what can be stored together; merge them")
	}
	sc.batch.SetIfUnchanged(o.name, sc.enc, o.readSeq)
	return nil
}

// digestOf returns the SHA-256 over everything that a write is meant to do, but its tenant, which is in
// the key of what is remembered. The clock that a coordinator made is not part of it: it raises its
// entry for each attempt of one request. The digest is compared with those on disk: another layout would
// refuse the repeats of a day.
func digestOf(op *Op) (digest [sha256.Size]byte) {
	b := binary.AppendUvarint([]byte{byte(op.Kind)}, uint64(len(op.Key)))
	b = append(b, op.Key...)
	b = append(b, flagByte(op.HasContext)...)
	b = appendClock(b, op.Context)
	b = binary.AppendUvarint(b, uint64(op.TTL))
	c := op.Condition
	if c == nil {
		c = &Condition{}
	}
	b = append(b, byte(c.When))
	b = appendClock(b, c.Clock)
	b = binary.AppendUvarint(b, uint64(len(c.Digest)))
	b = append(b, c.Digest...)
	h := sha256.New()
	h.Write(b)
	h.Write(op.Value) // the last part needs no length
	return [sha256.Size]byte(h.Sum(digest[:0]))
}

func appendAnswer(b []byte, digest [sha256.Size]byte, r *WriteResult) []byte {
	b = append(append(b, answerVersion), digest[:]...)
	b = append(b, byte(r.Outcome))
	b = binary.AppendUvarint(b, uint64(r.Siblings))
	return appendClock(b, r.Clock)
}

// appendClock appends the entries of a clock, without when they were raised.
func appendClock(b []byte, c causal.Clock) []byte {
	b = binary.AppendUvarint(b, uint64(len(c)))
	for i := range c {
		b = binary.AppendUvarint(b, uint64(len(c[i].Node)))
		b = append(b, c[i].Node...)
		b = binary.AppendUvarint(b, c[i].Counter)
	}
	return b
}

var errAnswer = errors.New("malformed answer under an idempotency key")

// minEntryBytes is what an entry of a clock takes at least: two numbers and a byte of its id.
const minEntryBytes = 3

// parseAnswer reads what appendAnswer wrote. The result shares no memory with b.
func parseAnswer(b []byte) (digest [sha256.Size]byte, r WriteResult, err error) {
	const head = 1 + sha256.Size + 1
	if len(b) < head || b[0] != answerVersion {
		return digest, r, errAnswer
	}
	copy(digest[:], b[1:])
	r.Outcome = causal.Outcome(b[head-1])
	b = b[head:]
	next := func() (v uint64) {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			err = errAnswer
			return 0
		}
		b = b[n:]
		return v
	}
	r.Siblings = int(next())
	count := next()
	if err != nil || count > uint64(len(b)/minEntryBytes) {
		return digest, WriteResult{}, errAnswer
	}
	r.Clock = make(causal.Clock, count)
	for i := range r.Clock {
		size := next()
		if err != nil || size == 0 || size > uint64(len(b)) {
			return digest, WriteResult{}, errAnswer
		}
		r.Clock[i].Node = string(b[:size])
		b = b[size:]
		r.Clock[i].Counter = next()
	}
	if err != nil || len(b) > 0 {
		return digest, WriteResult{}, errAnswer
	}
	return digest, r, nil
}
