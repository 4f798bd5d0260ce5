package inspect

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
)

// key is an engine key. In objects, bytes that are no UTF-8 are base64 under another name.
type key struct {
	Tenant       string  `json:"tenant,omitempty"`
	Key          *string `json:"key,omitempty"`
	KeyBytes     []byte  `json:"key_base64,omitempty"`
	EngineKey    []byte  `json:"engine_key_base64,omitempty"` // no tenant and key in it
	engineKeyRaw []byte
}

func newKey(engineKey []byte) key {
	k := key{engineKeyRaw: engineKey}
	tenant, user, err := ikey.SplitEngineKey(engineKey)
	if err != nil || !utf8.Valid(tenant) {
		k.EngineKey = engineKey
		return k
	}
	k.Tenant = string(tenant)
	k.Key, k.KeyBytes = textOrBytes(user)
	return k
}

func textOrBytes(b []byte) (*string, []byte) {
	if !utf8.Valid(b) {
		return nil, b
	}
	s := string(b)
	return &s, nil
}

func (k key) String() string {
	tenant, user, err := ikey.SplitEngineKey(k.engineKeyRaw)
	if err != nil {
		return fmt.Sprintf("engine key %q", k.engineKeyRaw)
	}
	return fmt.Sprintf("tenant %q key %q", tenant, user)
}

// entry is a change in the commit log, or an entry or a range delete of a table.
type entry struct {
	Type   string `json:"type"` // change, entry or range-delete
	File   string `json:"file"`
	Offset *int64 `json:"offset,omitempty"` // of the frame that holds a change
	Seq    uint64 `json:"sequence"`
	Kind   string `json:"kind"`
	key
	// End is that of a range delete, exclusive.
	End *key `json:"end,omitempty"`
	// Bytes is the length of the encoded record.
	Bytes    int       `json:"record_bytes"`
	Siblings []sibling `json:"siblings,omitempty"`
	Problem  string    `json:"problem,omitempty"`
}

// sibling is one of the values of a key.
type sibling struct {
	Dot        *actor  `json:"dot,omitempty"`
	Clock      []actor `json:"clock"`
	Timestamp  uint64  `json:"timestamp,string"` // hybrid logical; more bits than a number of JSON keeps
	Time       string  `json:"time"`
	ExpiresAt  int64   `json:"expires_at,omitempty"`
	Tombstone  bool    `json:"tombstone,omitempty"`
	ValueBytes int     `json:"value_bytes"`
	Value      *string `json:"value,omitempty"`
	Value64    []byte  `json:"value_base64,omitempty"`

	value []byte // nil: only its length is wanted
}

// actor is an entry of a clock, or a dot.
type actor struct {
	Node    string `json:"node"`
	Counter uint64 `json:"counter"`
	Raised  int64  `json:"raised,omitempty"`
}

// newEntry shows one entry. What can't be decoded is said in Problem.
func newEntry(kind, file string, k ikey.Key, value []byte, values bool) entry {
	e := entry{Type: kind, File: file, Seq: uint64(k.Seq()), Kind: k.Kind().String(), key: newKey(k.User)}
	switch k.Kind() {
	case ikey.KindRangeDelete:
		end := newKey(value)
		e.End = &end
		return e
	case ikey.KindSet, ikey.KindMerge:
	default:
		return e
	}
	e.Bytes = len(value)
	r, err := causal.Decode(value)
	if err != nil {
		e.Problem = err.Error()
		return e
	}
	for _, s := range r.Siblings {
		e.Siblings = append(e.Siblings, newSibling(s, values))
	}
	return e
}

func newSibling(s causal.Sibling, values bool) sibling {
	v := sibling{
		Clock: []actor{}, Timestamp: s.Timestamp, Time: wallTime(s.Timestamp), ExpiresAt: s.ExpiresAt,
		Tombstone: s.Tombstone, ValueBytes: len(s.Value),
	}
	if !s.Dot.IsZero() {
		v.Dot = &actor{Node: s.Dot.Node, Counter: s.Dot.Counter}
	}
	for _, e := range s.Clock {
		v.Clock = append(v.Clock, actor(e))
	}
	if values && !s.Tombstone {
		v.value = append([]byte{}, s.Value...)
		v.Value, v.Value64 = textOrBytes(s.Value)
	}
	return v
}

// wallTime prints the wall part of a hybrid logical timestamp; its counter stands behind the plus.
func wallTime(ts uint64) string {
	return fmt.Sprintf("%s+%d", time.UnixMilli(int64(ts>>16)).UTC().Format("2006-01-02T15:04:05.000Z"), ts&0xffff)
}

func (e entry) text(w io.Writer) {
	fmt.Fprintf(w, "    #%d %s %s", e.Seq, e.Kind, e.key)
	switch {
	case e.End != nil:
		fmt.Fprintf(w, " to %s", *e.End)
	case e.Problem != "":
		fmt.Fprintf(w, ": record of %d bytes: %s", e.Bytes, e.Problem)
	case e.Kind != ikey.KindDelete.String():
		fmt.Fprintf(w, ": record of %d bytes, %d siblings", e.Bytes, len(e.Siblings))
	}
	fmt.Fprintln(w)
	for _, s := range e.Siblings {
		s.text(w)
	}
}

func (s sibling) text(w io.Writer) {
	fmt.Fprint(w, "      ")
	if s.Dot != nil {
		fmt.Fprintf(w, "dot %s ", s.Dot)
	}
	clock := make([]string, len(s.Clock))
	for i, a := range s.Clock {
		clock[i] = a.String()
	}
	fmt.Fprintf(w, "clock {%s} %s", strings.Join(clock, " "), s.Time)
	if s.ExpiresAt != 0 {
		fmt.Fprintf(w, " expires %s", time.Unix(s.ExpiresAt, 0).UTC().Format(time.RFC3339))
	}
	switch {
	case s.Tombstone:
		fmt.Fprint(w, " tombstone")
	case s.value != nil:
		fmt.Fprintf(w, " value %q", s.value)
	default:
		fmt.Fprintf(w, " value of %d bytes", s.ValueBytes)
	}
	fmt.Fprintln(w)
}

func (a actor) String() string {
	s := fmt.Sprintf("%q:%d", a.Node, a.Counter)
	if a.Raised != 0 {
		s += "@" + time.Unix(a.Raised, 0).UTC().Format(time.RFC3339)
	}
	return s
}

func digest(d uint64) string { return fmt.Sprintf("%016x", d) }
