package engine

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
)

// model is what an engine should hold: for each key every state it ever had, by the sequence of the
// engine that made it.
type model struct {
	keys   map[string][]state
	sorted []string // all keys ever written, ascending
	marks  []ikey.Seq
}

type state struct {
	at     ikey.Seq
	record []byte // nil: absent
}

func newModel() *model { return &model{keys: make(map[string][]state), marks: []ikey.Seq{0}} }

// op is one change as batches, ingested tables and the model know it.
type op struct {
	kind     ikey.Kind
	key, end string
	record   []byte
}

// apply makes the changes of one batch the state from at on.
func (m *model) apply(ops []op, at ikey.Seq) {
	for _, o := range ops {
		switch o.kind {
		case ikey.KindSet:
			m.put(o.key, o.record, at)
		case ikey.KindDelete:
			m.put(o.key, nil, at)
		case ikey.KindMerge:
			m.put(o.key, join(o.record, m.get(o.key, ikey.MaxSeq)), at)
		case ikey.KindRangeDelete:
			from, to := sort.SearchStrings(m.sorted, o.key), sort.SearchStrings(m.sorted, o.end)
			for _, k := range m.sorted[from:max(from, to)] {
				m.put(k, nil, at)
			}
		}
	}
	m.marks = append(m.marks, at)
}

func join(newer, older []byte) []byte {
	if older == nil {
		return newer
	}
	joined, err := causal.JoinEncoded(nil, newer, older)
	if err != nil {
		panic(err)
	}
	return joined
}

func (m *model) put(key string, record []byte, at ikey.Seq) {
	states := m.keys[key]
	if states == nil {
		if record == nil {
			return
		}
		i := sort.SearchStrings(m.sorted, key)
		m.sorted = slices.Insert(m.sorted, i, key)
	}
	if n := len(states); n > 0 && states[n-1].at == at {
		states = states[:n-1]
	}
	m.keys[key] = append(states, state{at: at, record: record})
}

// get returns the record of key at a sequence, nil if it is absent.
func (m *model) get(key string, at ikey.Seq) []byte {
	states := m.keys[key]
	for i := len(states) - 1; i >= 0; i-- {
		if states[i].at <= at {
			return states[i].record
		}
	}
	return nil
}

// present returns the keys in [lower, upper) that are there at a sequence; empty bounds are none.
func (m *model) present(at ikey.Seq, lower, upper string) []string {
	from, to := 0, len(m.sorted)
	if lower != "" {
		from = sort.SearchStrings(m.sorted, lower)
	}
	if upper != "" {
		to = sort.SearchStrings(m.sorted, upper)
	}
	var out []string
	for i := from; i < to; i++ {
		if m.get(m.sorted[i], at) != nil {
			out = append(out, m.sorted[i])
		}
	}
	return out
}

// last returns the sequence of the newest change.
func (m *model) last() ikey.Seq { return m.marks[len(m.marks)-1] }

// cut forgets everything after a sequence: a crash lost it.
func (m *model) cut(at ikey.Seq) {
	for key, states := range m.keys {
		n := len(states)
		for n > 0 && states[n-1].at > at {
			n--
		}
		m.keys[key] = states[:n]
	}
	for m.last() > at {
		m.marks = m.marks[:len(m.marks)-1]
	}
}

// trim forgets what no sequence in keep and nothing from newest on can see.
func (m *model) trim(keep []ikey.Seq, newest ikey.Seq) {
	oldest := newest
	for _, s := range keep {
		oldest = min(oldest, s)
	}
	for key, states := range m.keys {
		i := 0
		for i+1 < len(states) && states[i+1].at <= oldest {
			i++
		}
		m.keys[key] = states[i:]
	}
	i := 0
	for i+1 < len(m.marks) && m.marks[i+1] <= oldest {
		i++
	}
	m.marks = m.marks[i:]
}

// randomRecord returns an encoded record with one sibling, whose clock often relates to those of
// others.
func randomRecord(rng *rand.Rand, size int) []byte {
	nodes := [...]string{"a", "b", "c"}
	var entries []causal.Entry
	for _, n := range nodes {
		if rng.IntN(2) == 0 {
			entries = append(entries, causal.Entry{Node: n, Counter: 1 + rng.Uint64N(6), Raised: 1})
		}
	}
	clock, err := causal.NewClock(entries)
	if err != nil {
		panic(err)
	}
	s := causal.Sibling{Clock: clock, Timestamp: rng.Uint64N(1 << 40)}
	if len(clock) == 0 || rng.IntN(2) == 0 {
		n := nodes[rng.IntN(len(nodes))]
		s.Dot = causal.Dot{Node: n, Counter: clock.Get(n) + 1 + rng.Uint64N(3)}
	}
	if rng.IntN(8) == 0 {
		s.Tombstone = true
	} else {
		s.Value = randomValue(rng, size)
	}
	r, err := causal.NewRecord([]causal.Sibling{s})
	if err != nil {
		panic(err)
	}
	return r.Encode(nil)
}

// randomValue returns bytes of which about half repeat.
func randomValue(rng *rand.Rand, size int) []byte {
	b := make([]byte, size)
	for i := 0; i < len(b); i += 8 {
		if rng.IntN(2) == 0 {
			copy(b[i:], "pairdb..")
		} else {
			copy(b[i:], fmt.Sprintf("%08x", rng.Uint32()))
		}
	}
	return b
}
