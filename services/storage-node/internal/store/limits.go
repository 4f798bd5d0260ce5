package store

import (
	"unicode"
	"unicode/utf8"

	"github.com/pairdb/pairdb/libs/causal"
)

// The limits of the wire contract.
const (
	MaxTenantBytes = 256
	MaxKeyBytes    = 1024
	MaxValueBytes  = 10 << 20
	MaxBatchOps    = 1000
	MaxBatchBytes  = 16 << 20
	// MaxRepairSiblings bounds one repair: 16 replicas that each hold as many siblings as client
	// writes may leave.
	MaxRepairSiblings = 1024
	// MaxIdempotencyKeyBytes is the longest idempotency key.
	MaxIdempotencyKeyBytes = 128
	// MaxTTL is a hundred years in seconds: sums with it can't overflow.
	MaxTTL = 100 * 366 * 24 * 3600
	// MaxPageKeys is the largest page of a key range, DefaultPageKeys that of a request without a
	// number.
	MaxPageKeys     = 10_000
	DefaultPageKeys = 1000
	// MaxHashRanges bounds the ranges of one stream; a node has 256 virtual nodes at most.
	MaxHashRanges = 1024
	// MaxResponseBytes bounds what one BatchRead returns.
	MaxResponseBytes = 16 << 20
)

func checkTenant(tenant string) error {
	if len(tenant) == 0 || len(tenant) > MaxTenantBytes {
		return refuse(ReasonTenant, "tenant id has %d bytes, 1 to %d allowed", len(tenant), MaxTenantBytes)
	}
	if tenant[0] == '_' {
		return refuse(ReasonTenant, "tenant id %q begins with _: reserved for the system", tenant)
	}
	if r, ok := forbidden(tenant, ":", ""); ok {
		return refuse(ReasonTenant, "tenant id contains %q: no colon, control character or invalid UTF-8 allowed", r)
	}
	return nil
}

func checkKey(key string) error {
	if len(key) == 0 || len(key) > MaxKeyBytes {
		return refuse(ReasonKey, "key has %d bytes, 1 to %d allowed", len(key), MaxKeyBytes)
	}
	if r, ok := forbidden(key, "", "\t\n"); ok {
		return refuse(ReasonKey, "key contains %q: no control character but tab and newline, no invalid UTF-8 allowed", r)
	}
	return nil
}

// forbidden returns the first character of s that is a control character not in allowed, in denied,
// or not UTF-8.
func forbidden(s, denied, allowed string) (rune, bool) {
	for i := 0; i < len(s); {
		r, size := rune(s[i]), 1
		if r >= utf8.RuneSelf {
			r, size = utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && size == 1 {
				return rune(s[i]), true
			}
		}
		bad := unicode.IsControl(r)
		for _, a := range allowed {
			bad = bad && a != r
		}
		for _, d := range denied {
			bad = bad || d == r
		}
		if bad {
			return r, true
		}
		i += size
	}
	return 0, false
}

func checkValue(v []byte) error {
	if len(v) > MaxValueBytes {
		return refuse(ReasonValue, "value has %d bytes, at most %d allowed", len(v), MaxValueBytes)
	}
	return nil
}

func checkTTL(ttl int64) error {
	if ttl < 0 || ttl > MaxTTL {
		return refuse(ReasonTTL, "ttl is %d seconds, 0 to %d allowed", ttl, int64(MaxTTL))
	}
	return nil
}

// checkClock also refuses writes of this node that it never made: whoever claims to have seen them
// would make a later write look old.
func (s *Store) checkClock(c causal.Clock) error {
	if err := c.Validate(); err != nil {
		return &Error{Reason: ReasonClock, Message: err.Error(), Err: err}
	}
	if n := c.Get(s.actor); n > 0 {
		return s.checkDot(causal.Dot{Node: s.actor, Counter: n})
	}
	return nil
}

func (s *Store) checkDot(d causal.Dot) error {
	if d.Node == s.actor && d.Counter > s.counter.Load() {
		return refuse(ReasonClock, "clock contains write %d of %s, which made %d", d.Counter, s.actor, s.counter.Load())
	}
	return nil
}

// checkOp validates one write of a batch. The siblings of a repair become its record.
func (s *Store) checkOp(o *Op) error {
	if err := checkKey(o.Key); err != nil {
		return err
	}
	if o.Kind == Repair {
		if o.Condition != nil {
			return refuse(ReasonCondition, "a repair has no condition")
		}
		return s.checkSiblings(o)
	}
	if o.Kind != Put && o.Kind != Delete {
		return refuse(ReasonBatch, "operation %d is unknown", o.Kind)
	}
	if err := checkValue(o.Value); err != nil {
		return err
	}
	if o.Kind == Delete && (len(o.Value) > 0 || o.TTL != 0) {
		return refuse(ReasonValue, "a delete has neither value nor ttl")
	}
	if err := checkTTL(o.TTL); err != nil {
		return err
	}
	if err := s.checkCondition(o.Condition); err != nil {
		return err
	}
	if len(o.Clock) > 0 && o.HasContext {
		return refuse(ReasonClock, "clock and context exclude each other")
	}
	if err := s.checkClock(o.Clock); err != nil || !o.HasContext {
		return err
	}
	return s.checkClock(o.Context)
}

func (s *Store) checkSiblings(o *Op) error {
	if n := len(o.Siblings); n == 0 || n > MaxRepairSiblings {
		return refuse(ReasonSiblings, "repair has %d siblings, 1 to %d allowed", n, MaxRepairSiblings)
	}
	latest := causal.Timestamp(s.now().Add(s.opts.MaxClockSkew))
	for i := range o.Siblings {
		sib := &o.Siblings[i]
		if err := checkValue(sib.Value); err != nil {
			return err
		}
		if sib.Timestamp > latest {
			return refuse(ReasonTimestamp, "sibling %d is from %v, more than %v ahead of this node's clock",
				i, causal.Time(sib.Timestamp).UTC(), s.opts.MaxClockSkew)
		}
		if err := sib.Validate(); err != nil {
			return &Error{Reason: ReasonSiblings, Message: err.Error(), Err: err}
		}
		if err := s.checkClock(sib.Clock); err != nil {
			return err
		}
		if err := s.checkDot(sib.Dot); err != nil {
			return err
		}
		// When an entry was raised does not travel; the sibling's own time is an upper bound of it.
		for j := range sib.Clock {
			if sib.Clock[j].Raised == 0 {
				sib.Clock[j].Raised = causal.Time(sib.Timestamp).Unix()
			}
		}
	}
	rec, err := causal.NewRecord(o.Siblings)
	if err != nil {
		return &Error{Reason: ReasonSiblings, Message: err.Error(), Err: err}
	}
	o.Siblings = rec.Siblings
	return nil
}

// opBytes is what an operation counts towards MaxBatchBytes.
func opBytes(o *Op) int {
	n := len(o.Key) + len(o.Value) + clockBytes(o.Clock) + clockBytes(o.Context)
	if o.Condition != nil {
		n += clockBytes(o.Condition.Clock) + len(o.Condition.Digest)
	}
	for i := range o.Siblings {
		n += len(o.Siblings[i].Value) + clockBytes(o.Siblings[i].Clock) + len(o.Siblings[i].Dot.Node)
	}
	return n
}

func clockBytes(c causal.Clock) int {
	n := 0
	for i := range c {
		n += len(c[i].Node) + 8
	}
	return n
}
