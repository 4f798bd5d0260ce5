// Package store gives the engine its meaning: tenants, keys, causality and the limits of the wire
// contract. It never sees a proto message, and never decides what a concurrent value is worth.
//
// # Writes
//
// A write takes the stripe locks of its keys in ascending order, reads the newest applied state of
// each key, decides with causal.Apply, and submits one engine batch in which every Set carries the
// sequence of the read it rests on. Then it gives the stripes back and waits until the batch is
// durable. The engine refuses the batch when something overtook a read (an ingest, a range delete;
// other writes are kept away by the stripes), and the decision is made again.
//
// The state that a decision rests on may not be durable yet. So an answer that changes nothing
// (DUPLICATE, STALE) waits until the read's sequence is durable: otherwise a crash could take the
// newer value away after the older one was acknowledged. An answer that changes something needs no
// such wait: its own log entry stands behind everything it rests on. A refusal that tells of the state
// of the key (CONDITION_FAILED, TOO_MANY_SIBLINGS) waits like an unchanged answer.
//
// Repairs are fragments (Merge) and read nothing, except in a batch that also writes their key.
//
// # Conditions and repeats
//
// A condition is judged under the stripe, upon the newest applied state: together with the sequence
// that the Set carries, checking and writing are one step on this node. Other replicas are not asked.
//
// A write with an idempotency key leaves, in its own engine batch, what was asked and answered under a
// key of the system tenant _idempotency. So both are there or neither, after a crash too. A repeat
// finds it and gets the first answer, once that is durable. The stripe of that key is held beside the
// one of the written key: of several repeats at a time one writes. What was refused leaves nothing.
// It is a record like any other, with an expiry of a day: compaction collects it.
//
// # Actors
//
// A write without a clock gets a dot of this node: (actor, counter). A dot must never be given
// twice, or two different writes pass for one and a join loses one of them. The actor is the node
// id and an incarnation that New draws at random for every process; the counter lives in memory.
// Nothing about it is stored, and that is the point: a counter or an incarnation on disk comes back
// with a restored snapshot, a copied directory or a rolled back volume, and then gives dots a second
// time. The price is an entry in the clock of a key for each process that wrote it; entries that
// nobody raises any more are pruned.
//
// # Tenants
//
// Before any work is done for a tenant, Options.Tenants is asked whether the request is taken up, and
// told when it ends. System tenants, which begin with _, are for the node itself and not asked for.
//
// # Reads
//
// Reads see durable state only. Expired values are invisible from their second on; like
// tombstones, they still count in the clock of the key.
package store
