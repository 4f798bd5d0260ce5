// Package antientropy remembers when ranges of the ring were equal on this node and on each other replica,
// durably, and says by it what this node may collect. It never compares anything itself, and never
// collects.
//
// # Facts
//
// A fact is (peer, range, sequence, time): everything that this node had of the range at a snapshot of
// this sequence, the peer has had since that time, because digests of both were equal, or because all that
// differed was exchanged. A range with facts of all its other replicas has a cut, the smallest of their
// sequences. Absent replicas count: only a declaration takes a member out.
//
// # Why a cut is safe
//
// A delete D of a key, whose newest entry here has a sequence of at most the cut, is collected when it is
// older than the grace besides. The danger is a replica that still has a value v which D hides, and gives
// it to others when D is forgotten.
//
//  1. At its fact each replica had D, joined into its record of the key, so v was not in that record any
//     more: a join never brings back what a clock contains. Equal digests say so where D was in the digest.
//  2. Digests leave out what is older than the initiator's now − grace − skew, so that replicas which have
//     collected are equal with those which have not yet. D may have been left out. But v was not: it is no
//     delete and has not expired. Had the peer v and this node D, which hides it, the digests of the key
//     would have differed, and the exchange of the whole records, D among them, would have ended v. Equal
//     digests with collectable things left out mean: no side has anything that a delete of the other hides.
//  3. What any node collects must be left out of every digest, or the exchange would bring D back for ever.
//     So in a cluster nodes collect what is older than their now − grace − 2 × skew: clocks differ by at most
//     the skew, and that is older than now − grace − skew by any initiator's clock. See Registry.GCBefore.
//  4. Afterwards v can't come from another replica either, since the cut is the smallest of all of them. A
//     replica that gets v from elsewhere between two comparisons gets D with it or, where D was left out,
//     hands it on: whoever takes D from another holds it under a new sequence, above all its cuts, until it
//     was itself compared with everybody. So the last node that has D does not collect it while v is anywhere.
//
// A time can't be the cut: a write can come late, with an old timestamp, after a comparison.
//
// # What ends a fact
//
// A fact speaks of two data directories and of a range that both kept all the time. It is forgotten,
// durably, before anything is collected by a newer one, when the peer has another incarnation, is removed,
// or drains; when the range is not one of both any more, by the declared members or by those that would be
// if all who are joining were up; when this node loses the range or gets it back (Forget). Where declarations
// have changed in a way that could hide one of these, all facts are forgotten: to compare again costs little.
// A comparison that began before such a change does not count when it is reported after it.
//
// A job that was offered before a fact ended may still collect by it. That is right: the cut says what all
// replicas of that time had, and who becomes a replica later has it from one of them.
//
// # Records
//
// Facts are records of the system tenant "_equal", one for each peer under its node id, and the members that
// they were judged by under "members:", which is no node id. All that belongs together is written in one
// batch. A record that can't be read is no fact.
package antientropy
