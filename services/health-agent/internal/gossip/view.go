package gossip

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/pairdb/pairdb/libs/membership"
)

// Liveness is what this agent sees of a member now. It moves no data.
type Liveness int

// What is seen of a member.
const (
	// Alive answers.
	Alive Liveness = iota
	// Suspect missed a probe, and those who were asked did not reach it either.
	Suspect
	// Down was given up.
	Down
	// Unseen is declared and was not seen since this agent started.
	Unseen
	// Left said goodbye.
	Left

	livenesses = 5
)

var livenessNames = [livenesses]string{"alive", "suspect", "down", "unseen", "left"}

func (l Liveness) String() string {
	if l >= 0 && l < livenesses {
		return livenessNames[l]
	}
	return fmt.Sprintf("Liveness(%d)", int(l))
}

// Member is a declared member and what is seen of it.
type Member struct {
	Declared membership.Declaration
	Liveness Liveness
	// Since is when Liveness changed, by the clock of this agent.
	Since time.Time
	// Meta is what it said last, of an unseen one nothing.
	Meta Meta
	// Addr is where its agent gossips, host:port; empty of an unseen one.
	Addr string
}

func (m Member) gone() bool { return m.Declared.State == membership.Removed }

// View is what the agent knows of the cluster at one moment.
type View struct {
	// Members are the declared members by node id, this one included once it is declared.
	Members []Member
	// Declared is the map itself, a copy.
	Declared membership.Map
	// Joined: a seed has answered, or none was needed. Unanswered: all were tried and none did.
	Joined, Unanswered bool
	// Duplicate is where the member is that had this node id before; empty when there is none.
	Duplicate string
	// Contested: there is such a member, which may still be an earlier life of this one.
	Contested bool
	// Keyring says what is wrong with the file of the keys.
	Keyring string
}

// Transition is a change of what is seen of another member.
type Transition struct {
	// Member is how it is after the change; Declared has only the node id when it is not declared.
	Member Member
	// From is what was seen before; Unseen for one that was never seen.
	From Liveness
}

const (
	// maxTransitions bounds those that nobody has taken yet; the oldest go first.
	maxTransitions = 1000
	// earlierLife is how long a member with our node id and incarnation counts as our own earlier life:
	// the others notice its end within 10 s.
	earlierLife = 15 * time.Second
	// duplicateHold is how long a duplicate stays one after it last met the other. It asks every few
	// seconds; failing to meet it because a seed is away must not make the verdict flap.
	duplicateHold = 12 * time.Second
)

// view is the state behind View. All methods may be called concurrently.
type view struct {
	self    string
	started time.Time
	changes chan struct{} // capacity 1: something changed since it was read

	mu          sync.Mutex // guards all below
	seen        map[string]*seen
	declared    membership.Map
	joined      bool
	unanswered  bool
	transitions []Transition
	conflict    *conflict
	confirmed   time.Time // another agent listed us where we are
	keyring     string
	own         Meta
	addr        string
}

// seen is what was seen of another member.
type seen struct {
	liveness Liveness
	since    time.Time
	meta     Meta
	addr     string
}

// conflict is a member elsewhere that had our node id before.
type conflict struct {
	addr        string
	first, last time.Time
	earlier     bool // it has our incarnation
}

func newView(self string, own Meta, now time.Time) *view {
	return &view{
		self: self, started: now, own: own, changes: make(chan struct{}, 1),
		seen: map[string]*seen{}, declared: membership.Map{},
	}
}

// changed tells whoever listens.
func (v *view) changed() {
	select {
	case v.changes <- struct{}{}:
	default: // there is a token already
	}
}

// observe notes that a member is seen like this. meta and addr are kept when they are given.
func (v *view) observe(id string, l Liveness, meta *Meta, addr string, now time.Time) {
	if id == v.self {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	s, known := v.seen[id]
	if !known {
		if l != Alive {
			return // nothing to lose
		}
		v.makeRoomLocked()
		s = &seen{liveness: Unseen}
		v.seen[id] = s
	}
	if meta != nil {
		s.meta = *meta
	}
	if addr != "" {
		s.addr = addr
	}
	if s.liveness != l {
		from := s.liveness
		s.liveness, s.since = l, now
		if v.joined || from != Unseen { // who is there when the agent begins is no news
			v.transitions = append(v.transitions, Transition{Member: v.memberLocked(id), From: from})
			v.transitions = v.transitions[max(0, len(v.transitions)-maxTransitions):]
		}
	}
	v.changed()
}

// suspect notes that a member missed its probes. It answers again, or is given up.
func (v *view) suspect(id string, now time.Time) {
	v.mu.Lock()
	s, known := v.seen[id]
	alive := known && s.liveness == Alive
	v.mu.Unlock()
	if alive {
		v.observe(id, Suspect, nil, "", now)
	}
}

// answered notes that a member answered a probe.
func (v *view) answered(id string, now time.Time) {
	v.mu.Lock()
	s, known := v.seen[id]
	suspect := known && s.liveness == Suspect
	v.mu.Unlock()
	if suspect {
		v.observe(id, Alive, nil, "", now)
	}
}

// leaves notes that the life of a member that began then takes leave, and reports whether that is
// news. It may be late: then the member counts as down already, and did not fail.
func (v *view) leaves(id string, since int64, now time.Time) bool {
	v.mu.Lock()
	s, known := v.seen[id]
	news := known && s.meta.since == since && !s.meta.leaving
	if news {
		s.meta.leaving = true
	}
	late := news && s.liveness == Down
	v.mu.Unlock()
	if late {
		v.observe(id, Left, nil, "", now)
	}
	return news
}

// lost notes that a member went: it left when it had said so, else it is down.
func (v *view) lost(id string, now time.Time) {
	v.mu.Lock()
	s, known := v.seen[id]
	leaving := known && s.meta.leaving
	v.mu.Unlock()
	if leaving {
		v.observe(id, Left, nil, "", now)
	} else {
		v.observe(id, Down, nil, "", now)
	}
}

// room reports whether a member that is not known can be taken.
func (v *view) room(id string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, known := v.seen[id]; known || len(v.seen) < membership.MaxMembers {
		return true
	}
	return v.spareLocked() != ""
}

// makeRoomLocked forgets one that went and is not declared when the view is full.
func (v *view) makeRoomLocked() {
	if len(v.seen) >= membership.MaxMembers {
		delete(v.seen, v.spareLocked())
	}
}

func (v *view) spareLocked() string {
	for id, s := range v.seen {
		if _, declared := v.declared[id]; !declared && (s.liveness == Down || s.liveness == Left) {
			return id
		}
	}
	return ""
}

// meet notes that another member has our node id, and returns whether it had it before us.
func (v *view) meet(other Meta, addr string, now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	// The clocks of two machines may differ; then the order is wrong and still the same for both.
	if cmp.Or(cmp.Compare(other.since, v.own.since), cmp.Compare(addr, v.addr)) >= 0 {
		return false
	}
	if v.conflict == nil || v.conflict.addr != addr {
		v.conflict = &conflict{addr: addr, first: now, earlier: other.Incarnation != "" && other.Incarnation == v.own.Incarnation}
	}
	v.conflict.last = now
	v.changed()
	return true
}

// confirm notes that another agent lists us where we are.
func (v *view) confirm(now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.confirmed = now
}

// unmet notes the end of push/pulls that began then. When somebody listed us where we are, and nobody
// another one under our node id, we are the member of that name. Not having met the other is not
// enough: while it is suspected, nobody lists either.
func (v *view) unmet(began time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.conflict == nil || v.confirmed.Before(began) {
		return
	}
	quiet := began.Sub(v.conflict.last)
	if v.duplicateLocked() == "" && quiet > 0 || quiet >= duplicateHold {
		v.conflict = nil
		v.changed()
	}
}

// conflicting reports whether another has our node id, even one that may be our earlier life.
func (v *view) conflicting() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.conflict != nil
}

func (v *view) duplicateLocked() string {
	c := v.conflict
	if c == nil || c.earlier && c.last.Sub(c.first) < earlierLife {
		return ""
	}
	return fmt.Sprintf("%s was at %s before", v.self, c.addr)
}

// merge joins declarations and returns those that were new.
func (v *view) merge(declarations []membership.Declaration) ([]membership.Declaration, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	changed, err := v.declared.Merge(declarations...)
	if len(changed) > 0 {
		v.changed()
	}
	return changed, err
}

// set changes a field under the lock.
func (v *view) set(change func(*view)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change(v)
	v.changed()
}

// encoded returns the declared map for a push/pull.
func (v *view) encoded() ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return membership.Encode(v.declared)
}

// say replaces what this agent says of itself, and reports whether that is news for the others. It is
// none for this agent, so that saying something does not wake who says it.
func (v *view) say(m Meta) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	m.since, m.leaving = v.own.since, v.own.leaving
	news := m != v.own
	v.own = m
	return news
}

func (v *view) ownMeta() Meta {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.own
}

// isJoined reports whether a seed has answered, or none was needed.
func (v *view) isJoined() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.joined
}

// alive counts the members that answer, this one included.
func (v *view) alive() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := 1
	for _, s := range v.seen {
		if s.liveness == Alive || s.liveness == Suspect {
			n++
		}
	}
	return n
}

// addresses returns where others gossip: those that answer, and those that do not and are not gone for
// good. One that left comes back by itself.
func (v *view) addresses() (answering, lost []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for id, s := range v.seen {
		switch {
		case s.liveness == Alive || s.liveness == Suspect:
			answering = append(answering, s.addr)
		case s.liveness == Down && v.declared[id].State != membership.Removed:
			lost = append(lost, s.addr)
		}
	}
	return answering, lost
}

func (v *view) memberLocked(id string) Member {
	d, ok := v.declared[id]
	if !ok {
		d = membership.Declaration{NodeID: id}
	}
	if id == v.self {
		return Member{Declared: d, Liveness: Alive, Since: v.started, Meta: v.own, Addr: v.addr}
	}
	s, ok := v.seen[id]
	if !ok {
		return Member{Declared: d, Liveness: Unseen, Since: v.started}
	}
	return Member{Declared: d, Liveness: s.liveness, Since: s.since, Meta: s.meta, Addr: s.addr}
}

func (v *view) snapshot() View {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := View{Declared: v.declared.Clone(), Joined: v.joined, Unanswered: v.unanswered, Duplicate: v.duplicateLocked(), Contested: v.conflict != nil, Keyring: v.keyring}
	for _, id := range slices.Sorted(maps.Keys(v.declared)) {
		out.Members = append(out.Members, v.memberLocked(id))
	}
	return out
}

func (v *view) takeTransitions() []Transition {
	v.mu.Lock()
	defer v.mu.Unlock()
	t := v.transitions
	v.transitions = nil
	return t
}
