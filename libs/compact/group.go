package compact

import (
	"bytes"
	"fmt"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/iterator"
	"github.com/pairdb/pairdb/libs/sstable"
)

// version is an entry that may be written. Its value is in memory of its own: as it is stored in the
// input, if the output takes it like that.
type version struct {
	trailer  ikey.Trailer
	stripe   int
	value    []byte
	stored   sstable.Stored
	isStored bool
}

func (v *version) setKind(k ikey.Kind) { v.trailer = ikey.MakeTrailer(v.trailer.Seq(), k) }

// group folds the versions of one engine key, given newest first. It holds at most one value for
// each stripe, whatever number of versions there are.
type group struct {
	job   *Job
	stats *Stats
	frags []span // those that may cover this key or later ones
	// takes reports whether the outputs take a value as it is stored; nil: none.
	takes func(sstable.Stored) bool

	user     []byte
	covers   []ikey.Seq // range deletes over user, newest first
	bottom   bool
	bottoms  int       // index of the first bottommost range that does not end before user
	versions []version // one for each stripe with something to keep, newest first
	stripe   int
	// dropTo is the key's cut in Job.Drop: a border of stripes of its own, so that what goes is never
	// joined with what stays. 0 for none.
	dropTo  ikey.Seq
	old     bool // the stripe lies at or below dropTo
	open    bool // a stripe has begun
	has     bool // the last of versions belongs to the stripe
	done    bool // nothing older in the stripe counts
	scratch []byte
}

// begin starts the key user; keys ascend.
func (g *group) begin(user []byte) {
	g.user = append(g.user[:0], user...)
	for len(g.frags) > 0 && bytes.Compare(g.frags[0].end, g.user) <= 0 {
		g.frags = g.frags[1:]
	}
	g.covers = nil
	if len(g.frags) > 0 && bytes.Compare(g.frags[0].start, g.user) <= 0 {
		g.covers = g.frags[0].seqs
	}
	bottom := g.job.Bottommost
	for g.bottoms < len(bottom) && len(bottom[g.bottoms].End) > 0 && bytes.Compare(bottom[g.bottoms].End, g.user) <= 0 {
		g.bottoms++
	}
	g.bottom = g.bottoms < len(bottom) && bytes.Compare(bottom[g.bottoms].Start, g.user) <= 0
	g.versions = g.versions[:0]
	g.open, g.has, g.done, g.old = false, false, false, false
	g.dropTo = 0
	if len(g.job.Drop) > 0 {
		if token, ok := TokenOf(g.user); ok {
			g.dropTo, _ = CutOf(g.job.Drop, token)
		}
	}
}

// cover returns the newest range delete over the key in the stripe; ok is false if there is none.
func (g *group) cover() (seq ikey.Seq, ok bool) {
	for _, seq := range g.covers {
		if stripe(g.job.Snapshots, seq) == g.stripe {
			return seq, true
		}
	}
	return 0, false
}

// add folds the next older version, on which it stands.
func (g *group) add(it iterator.Iterator) error {
	t := it.Key().Trailer
	g.stats.EntriesIn++
	if s, old := stripe(g.job.Snapshots, t.Seq()), t.Seq() <= g.dropTo; !g.open || s != g.stripe || old != g.old {
		g.endStripe()
		g.open, g.stripe, g.old = true, s, old
	}
	if !g.done {
		if seq, ok := g.cover(); ok && t.Seq() < seq {
			g.done = true
		}
	}
	if g.done {
		g.stats.Shadowed++
		return nil
	}
	if !g.has {
		if err := g.keep(t, it); err != nil {
			return err
		}
		g.done = t.Kind() != ikey.KindMerge
		return nil
	}
	newest := &g.versions[len(g.versions)-1] // a Merge
	if t.Kind() == ikey.KindDelete {
		newest.setKind(ikey.KindSet)
		g.done = true
		g.stats.Shadowed++
		return nil
	}
	value := it.Value()
	if err := it.Err(); err != nil {
		return err
	}
	joined, err := causal.JoinEncoded(g.scratch[:0], newest.value, value)
	if err != nil {
		newer, older := ikey.Key{User: g.user, Trailer: newest.trailer}, ikey.Key{User: g.user, Trailer: t}
		return fmt.Errorf("join %s with %s: %w", newer.Redacted(), older.Redacted(), err)
	}
	newest.value, g.scratch = joined, newest.value
	newest.setKind(t.Kind())
	g.done = t.Kind() == ikey.KindSet
	g.stats.Joined++
	return nil
}

// keep makes an entry the version of its stripe. Its value is unpacked only if somebody must look
// into it: a fragment may be joined, and a collectible record collected.
func (g *group) keep(t ikey.Trailer, it iterator.Iterator) error {
	n := len(g.versions)
	if n < cap(g.versions) {
		g.versions = g.versions[:n+1]
	} else {
		g.versions = append(g.versions, version{})
	}
	v := &g.versions[n]
	v.trailer, v.stripe, v.isStored = t, g.stripe, false
	g.has = true
	if t.Kind() == ikey.KindSet && g.takes != nil {
		if w, ok := iterator.Source(it).(*walk); ok {
			if s, ok := w.stored(); ok && g.takes(s) {
				v.stored, v.isStored = s.Clone(v.stored.Bytes()), true
				return nil
			}
		}
	}
	value := it.Value()
	v.value = append(v.value[:0], value...)
	if value == nil {
		return it.Err()
	}
	return nil
}

// endStripe ends a stripe: nothing older of it comes.
func (g *group) endStripe() {
	if g.has {
		v := &g.versions[len(g.versions)-1]
		// Every older entry is under the range delete; above dropTo only if that is not between the two.
		if seq, covered := g.cover(); covered && v.trailer.Kind() == ikey.KindMerge && (g.old || seq > g.dropTo) {
			v.setKind(ikey.KindSet)
		}
	}
	g.has, g.done = false, false
}

// finish returns the versions to write, newest first; they are valid until begin.
func (g *group) finish() ([]version, error) {
	g.endStripe()
	for len(g.versions) > 0 {
		v := &g.versions[len(g.versions)-1] // nothing older is kept
		switch gone, err := g.goes(v); {
		case err != nil:
			return nil, err
		case !gone:
			for i := range g.versions {
				if g.versions[i].trailer.Seq() <= g.dropTo {
					g.stats.DropLeft++
				}
			}
			return g.versions, nil
		}
		g.versions = g.versions[:len(g.versions)-1]
	}
	return nil, nil
}

// goes reports whether nothing is left of a version, and counts it then. It may change it.
func (g *group) goes(v *version) (bool, error) {
	if v.trailer.Seq() <= g.dropTo && v.stripe == len(g.job.Snapshots) {
		g.stats.Dropped++
		return true, nil
	}
	if !g.bottom {
		return false, nil
	}
	gone, err := g.settle(v)
	if gone {
		g.stats.Collected++
	}
	return gone, err
}

// releases reports whether the key's cut lets a version go: its replicas have had it since.
func (g *group) releases(v *version) bool {
	if !g.job.CutsInForce {
		return true
	}
	token, ok := TokenOf(g.user)
	if !ok {
		return true // a tenant of the node itself has no replicas
	}
	cut, ok := CutOf(g.job.Cuts, token)
	return ok && v.trailer.Seq() <= cut
}

// settle changes a version below which nothing exists, and reports whether nothing is left of it.
func (g *group) settle(v *version) (gone bool, err error) {
	switch v.trailer.Kind() {
	case ikey.KindDelete:
		return true, nil
	case ikey.KindMerge:
		v.setKind(ikey.KindSet)
	}
	// What a snapshot sees stays as it is, and what is stored is never collectible.
	if v.isStored || v.stripe < len(g.job.Snapshots) || g.job.GCBefore == 0 {
		return false, nil
	}
	// The token is a hash over the key: it is computed only for what is old enough.
	if at, ok := causal.Inspect(v.value); !ok || at >= g.job.GCBefore || !g.releases(v) {
		return false, nil
	}
	rest, _, left, err := causal.CollectEncoded(g.scratch[:0], v.value, g.job.GCBefore)
	if err != nil {
		return false, fmt.Errorf("collect %s: %w", ikey.Key{User: g.user, Trailer: v.trailer}.Redacted(), err)
	}
	if !left {
		return true, nil
	}
	v.value, g.scratch = rest, v.value
	return false, nil
}
