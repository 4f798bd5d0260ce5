// Package stream carries records from one node to another: connections to targets, streams of records
// with a window of what is not acknowledged, and limits of bytes per second. It never decides what is
// sent, and keeps no record longer than until it is on the wire.
//
// A sender hands over parts of a stream, each with a mark: how far the source is behind the part. The
// mark comes back when everything up to it is durable at the target. So the caller stores marks, and
// nothing that was sent and not acknowledged is ever taken for sent.
//
// Two senders exist. Ingest speaks to nodes of this design (pairdb.replica.v1). Contract speaks to
// those that know the contract of existing coordinators only, record by record.
package stream
