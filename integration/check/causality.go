// Package check judges histories of a cluster and what is left of it at the end. It never talks to the
// cluster: the same history gets the same verdict.
package check

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pairdb/pairdb/integration/history"
)

// Rule names what was violated.
type Rule string

// The rules of Causality and Durable.
const (
	// Lost: a write that was acknowledged is in no clock, or it is in the clock of an answer that neither
	// shows its value nor has a write that superseded it.
	Lost Rule = "acknowledged write lost"
	// Forgotten: a node that acknowledged a write answers later as if it had never seen it.
	Forgotten Rule = "node forgot what it acknowledged"
	// Resurrected: a value stands where a write that superseded it is known: it came back, or it is shown as a
	// sibling of its successor, although both writers were ordered.
	Resurrected Rule = "superseded value shown"
	// Phantom: a value that nobody wrote to this key, not yet, or whose write was refused.
	Phantom Rule = "value that was not written"
	// Expired: a value is shown after its time to live.
	Expired Rule = "expired value shown"
)

// Violation is one breach of a rule.
type Violation struct {
	Rule Rule
	Key  string
	Text string
	// Ops are those that show it.
	Ops []history.Op
}

// String is the violation on some lines.
func (v Violation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s: %s", v.Rule, v.Key, v.Text)
	for _, op := range v.Ops {
		fmt.Fprintf(&b, "\n    %s", describe(op))
	}
	return b.String()
}

func describe(op history.Op) string {
	text := fmt.Sprintf("[%s, %s] %s of %s at %s: %s %s", op.Start.Round(time.Microsecond), op.End.Round(time.Microsecond), op.Kind, op.Client, op.Node, op.ID, op.Outcome)
	if op.Kind == history.Read {
		text += fmt.Sprintf(" %q", op.Values)
	} else if !op.Blind {
		text += fmt.Sprintf(" seen %v", op.Seen)
	}
	return text + fmt.Sprintf(" dot %v clock %v %s", op.Dot, op.Clock, op.Error)
}

const (
	// early and late are how far an expiry may be from what the client computes: lifetimes are whole seconds,
	// and begin when the node takes the write.
	early, late = 1500 * time.Millisecond, 2500 * time.Millisecond
)

// write is all that is known of one write.
type write struct {
	ops  []history.Op
	id   string
	kind history.Kind
	dot  history.Dot
	// ok: somebody acknowledged it. open: somebody's answer was lost.
	ok, open bool
	// start is the first moment at which it may have been made, end the last answer.
	start, end time.Duration
	ttl        time.Duration
	// over are writes that superseded it, and those that may have: blind ones without an answer.
	over []*write
}

// covers reports whether w supersedes a write, by its own words or those of the node that took it.
func (w *write) covers(x *write) bool {
	for _, op := range w.ops {
		past := op.Seen
		if op.Blind {
			past = op.Clock
		}
		if past.Contains(x.dot) {
			return true
		}
	}
	return false
}

// mayCover reports whether w is a write of which nobody knows if it was made, and what it superseded then.
func (w *write) mayCover() bool { return w.open && !w.ok && w.ops[0].Blind }

// keyed are the operations of one key.
type keyed struct {
	key    string
	writes []*write
	byID   map[string]*write
	reads  []history.Op
}

// byKey sorts a history by key and puts the operations of each write together.
func byKey(ops []history.Op) []*keyed {
	keys := map[string]*keyed{}
	for _, op := range ops {
		k := keys[op.Key]
		if k == nil {
			k = &keyed{key: op.Key, byID: map[string]*write{}}
			keys[op.Key] = k
		}
		if op.Kind == history.Read {
			if op.Outcome == history.OK {
				k.reads = append(k.reads, op)
			}
			continue
		}
		w := k.byID[op.ID]
		if w == nil {
			w = &write{id: op.ID, kind: op.Kind, start: op.Start, ttl: op.TTL}
			k.byID[op.ID] = w
			k.writes = append(k.writes, w)
		}
		w.ops = append(w.ops, op)
		w.start, w.end = min(w.start, op.Start), max(w.end, op.End)
		w.ok = w.ok || op.Outcome == history.OK
		w.open = w.open || op.Outcome == history.Unknown
		if op.Dot != (history.Dot{}) {
			w.dot = op.Dot
		}
	}
	out := make([]*keyed, 0, len(keys))
	for _, k := range keys {
		for _, w := range k.writes {
			for _, x := range k.writes {
				if x != w && (x.covers(w) || x.mayCover()) {
					w.over = append(w.over, x)
				}
			}
		}
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b *keyed) int { return cmp.Compare(a.key, b.key) })
	return out
}

// Causality judges every answer of a history by what was written: nothing that was acknowledged is missing
// without a successor, nothing superseded is shown, no value is made up. It needs nothing but vector clocks:
// which node had heard what from whom does not matter.
func Causality(ops []history.Op) []Violation {
	var out []Violation
	for _, k := range byKey(ops) {
		out = append(out, k.forgotten()...)
		for _, r := range k.reads {
			out = append(out, k.judge(r)...)
		}
	}
	return out
}

// forgotten compares the answers of each node with what it had acknowledged before.
func (k *keyed) forgotten() []Violation {
	type ack struct {
		op history.Op
		w  *write
	}
	acks := map[string][]ack{} // by node
	for _, w := range k.writes {
		for _, op := range w.ops {
			if op.Outcome == history.OK && w.dot != (history.Dot{}) {
				acks[op.Node] = append(acks[op.Node], ack{op, w})
			}
		}
	}
	var out []Violation
	for _, r := range k.reads {
		for _, a := range acks[r.Node] {
			if a.op.End < r.Start && !r.Clock.Contains(a.w.dot) {
				out = append(out, Violation{Forgotten, k.key, fmt.Sprintf("%s acknowledged %s and knows nothing of it %s later", r.Node, a.w.id, (r.Start - a.op.End).Round(time.Millisecond)), []history.Op{a.op, r}})
			}
		}
	}
	return out
}

// judge compares one answer with the writes that its clock contains.
func (k *keyed) judge(r history.Op) []Violation {
	var out []Violation
	add := func(rule Rule, text string, of ...*write) {
		v := Violation{Rule: rule, Key: k.key, Text: text, Ops: []history.Op{r}}
		for _, w := range of {
			v.Ops = append(v.Ops, w.ops...)
		}
		out = append(out, v)
	}
	for i, id := range r.Values {
		w := k.byID[id]
		switch {
		case w == nil:
			add(Phantom, fmt.Sprintf("%s shows %q, which nobody wrote", r.Node, id))
			continue
		case w.kind != history.Put || !w.ok && !w.open:
			add(Phantom, fmt.Sprintf("%s shows %q, whose write was refused", r.Node, id), w)
		case w.start > r.End:
			add(Phantom, fmt.Sprintf("%s shows %q before it was written", r.Node, id), w)
		case w.dot != (history.Dot{}) && !r.Clock.Contains(w.dot):
			add(Phantom, fmt.Sprintf("%s shows %q and its clock does not contain it", r.Node, id), w)
		case slices.Contains(r.Values[:i], id):
			add(Phantom, fmt.Sprintf("%s shows %q twice", r.Node, id), w)
		case w.ttl != 0 && !w.open && r.Start > w.end+w.ttl+late:
			add(Expired, fmt.Sprintf("%s shows %q %s after its end", r.Node, id, (r.Start-w.end-w.ttl).Round(time.Millisecond)), w)
		}
		for _, o := range w.over {
			if r.Clock.Contains(o.dot) && o.covers(w) {
				add(Resurrected, fmt.Sprintf("%s shows %q and knows of %q, which superseded it", r.Node, id, o.id), w, o)
			}
		}
	}
	for _, w := range k.writes {
		if w.kind != history.Put || !r.Clock.Contains(w.dot) || slices.Contains(r.Values, w.id) {
			continue
		}
		if w.ttl != 0 && r.End >= w.start+w.ttl-early {
			continue
		}
		if !slices.ContainsFunc(w.over, func(o *write) bool { return o.start <= r.End && (r.Clock.Contains(o.dot) || o.dot == history.Dot{}) }) {
			add(Lost, fmt.Sprintf("%s knows of %q, does not show it, and knows of no write that superseded it", r.Node, w.id), w)
		}
	}
	return out
}

// Durable requires that every acknowledged write is in what all nodes together have at the end: in the clock
// of its key. That its value is there, or was superseded, is Causality's to say, of the same reads.
func Durable(ops, last []history.Op) []Violation {
	clocks := map[string]history.Clock{}
	for _, r := range last {
		if clocks[r.Key] == nil {
			clocks[r.Key] = history.Clock{}
		}
		clocks[r.Key].Join(r.Clock)
	}
	var out []Violation
	for _, k := range byKey(ops) {
		for _, w := range k.writes {
			if w.ok && w.dot != (history.Dot{}) && !clocks[k.key].Contains(w.dot) {
				out = append(out, Violation{Lost, k.key, fmt.Sprintf("%s was acknowledged and no node has it at the end: %v", w.id, clocks[k.key]), w.ops})
			}
		}
	}
	return out
}

// Diverged is the rule of Equal.
const Diverged Rule = "replicas differ"

// Equal requires that the reads at the end are the same on all nodes: values, conflicts and clocks. It
// requires an answer of each of the nodes for every key.
func Equal(last []history.Op, nodes []string) []Violation {
	type answers map[string]history.Op
	keys := map[string]answers{}
	for _, r := range last {
		if keys[r.Key] == nil {
			keys[r.Key] = answers{}
		}
		keys[r.Key][r.Node] = r
	}
	var out []Violation
	for key, got := range keys {
		first, ok := got[nodes[0]]
		for _, n := range nodes {
			r, found := got[n]
			if !ok || !found {
				out = append(out, Violation{Diverged, key, "no answer of " + n, nil})
				continue
			}
			if state(first) != state(r) {
				out = append(out, Violation{Diverged, key, fmt.Sprintf("%s and %s", first.Node, n), []history.Op{first, r}})
			}
		}
	}
	return out
}

// state is an answer in comparable form.
func state(r history.Op) string {
	return fmt.Sprintf("%q %v", slices.Sorted(slices.Values(r.Values)), r.Clock)
}
