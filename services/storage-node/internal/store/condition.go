package store

import (
	"bytes"
	"crypto/sha256"

	"github.com/pairdb/pairdb/libs/causal"
)

// When says what a Condition is about.
type When uint8

// The conditions of a write.
const (
	// Absent: the key has no live value.
	Absent When = iota + 1
	// ClockEquals: the clock of the key is this one, tombstones and expired values included; an empty
	// one is that of a key which this node has never seen.
	ClockEquals
	// DigestEquals: the value that a read returns has this SHA-256.
	DigestEquals
)

// Condition must hold for the newest state of the key on this node, or the write is refused with
// ReasonConditionFailed. Checking it and writing are one step. In a batch it sees the operations on
// the key in front of it.
type Condition struct {
	When   When
	Clock  causal.Clock // for ClockEquals
	Digest []byte       // for DigestEquals
}

func (s *Store) checkCondition(c *Condition) error {
	if c == nil {
		return nil
	}
	switch c.When {
	case Absent:
		return nil
	case ClockEquals:
		return s.checkClock(c.Clock)
	case DigestEquals:
		if len(c.Digest) != sha256.Size {
			return refuse(ReasonCondition, "SHA-256 of the condition has %d bytes, %d expected", len(c.Digest), sha256.Size)
		}
		return nil
	}
	return refuse(ReasonCondition, "condition is empty: absent=true, a clock or a SHA-256 expected")
}

// judge refuses the operation when its condition does not hold for the key as it is before it.
func (d *decision) judge(cur causal.Record, c *Condition) error {
	if c == nil {
		return nil
	}
	holds, message := false, ""
	switch c.When {
	case Absent:
		holds, message = len(cur.Live(d.s.now().Unix())) == 0, "the key has a value"
	case ClockEquals:
		holds, message = cur.Clock().Compare(c.Clock) == causal.Equal, "the clock of the key is another one"
	case DigestEquals:
		live := cur.Live(d.s.now().Unix())
		w := causal.Winner(live)
		if message = "the key has no value"; w >= 0 {
			sum := sha256.Sum256(live[w].Value)
			holds, message = bytes.Equal(sum[:], c.Digest), "the value of the key has another SHA-256"
		}
	}
	if holds {
		return nil
	}
	if d.mode.atomic {
		cur = d.before // what the operations in front would have done is not done either
	}
	return &Error{Reason: ReasonConditionFailed, Message: message, Clock: cur.Clock()}
}
