// Package event is what happens in a cluster, as CloudEvents over NATS JetStream: the catalogue of
// kinds, the envelope, the subjects, the stream, the connection and the publisher. It is never the
// only copy of a promise: an event is a hint, and nothing waits for one.
//
// # An event
//
// An Event travels as CloudEvents 1.0 in JSON:
//
//	source          /pairdb/<cluster>/<node>
//	type            pairdb.<kind>
//	id              unique for ever; a repeat has the same one
//	time            when it happened, not when it was sent
//	pairdbsequence  rises with each event of the node
//	data            the payload of the kind: a message of pairdb.event.v1 in JSON
//
// The catalogue (Kinds) says which kinds there are, when each is sent and what it carries;
// docs/EVENTS.md is made from it. A reader may meet kinds and fields that are newer than it is: Decode
// takes them, Event.Payload says ErrUnknownKind.
//
// # Where it goes
//
// The subject is pairdb.<cluster>.event.<node>.<kind>; names of clusters and nodes may contain dots
// and are escaped into one token each (Token). The stream PAIRDB_EVENTS keeps events for a week and
// drops repeats by id for as long, so that an event whose acknowledgement was lost is there once.
//
// # Publishing
//
// A Publisher drains a Source in its order: an event is sent, with its id as Nats-Msg-Id, until the
// stream has acknowledged it; only then the next one is. What is not acknowledged stays with the
// source, so a connection that is away costs nothing but time.
package event
