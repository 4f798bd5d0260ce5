// Package replica takes records out of a node in bulk, brings them in, and tells what the node holds so
// that two nodes can be compared. It never decides where records belong, nor talks to another node.
//
// # Out
//
// Export walks a Selection over all tenants of clients in one durable snapshot, in the order of engine
// keys; after a restart it goes on behind its cursor in a new one. Follow hands on what changes meanwhile.
// Both send records as they are stored. Whoever receives them joins them, so what is sent twice, or in
// another order, does no harm; and a snapshot that is newer than the pin from which changes are followed
// does none either. A pin holds the commit log from before the first snapshot on: the snapshot has every
// change up to its sequence, the feed every one from the pin on, and the pin is not above the snapshot.
//
// Physical deletes and range deletes are never handed on: they are collected garbage, data that is no
// longer owned, and dropped tenants, which travel as generations.
//
// # In
//
// Ingest adds records as fragments that are joined with what is there, and says what of them is durable.
// Fragments read nothing, so they need no lock of their keys. A record is validated as if a client had
// sent it, but for its time: clocks of other nodes can't be set from here, so a timestamp from too far
// ahead is taken and never followed by this node's clock. Records of a tenant that was dropped, or lives
// another life than when the stream began, are passed over and counted.
//
// # Comparing
//
// Digest adds up what a Selection holds in one snapshot (libs/merkle), without what is collectable at a
// cut that both sides use. Trees are kept for a few minutes, and named in later calls. One that may be
// renewed is kept longer: the next Digest like it hashes only leaves that have changed (docs/adr/0012).
package replica
