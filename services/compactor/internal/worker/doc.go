// Package worker pulls compaction jobs from a storage node, does them, and reports. It never
// decides what is merged or whether a result counts, reads no clock that could change a result, and
// touches no file but its inputs, read-only, and the outputs that the node has made for it.
//
// One Worker has a number of slots. It asks for as many jobs as slots are free (a long poll); each
// job is an attempt of its own: one goroutine merges, another sends heartbeats, so that a slow disk
// does not look like a dead worker. The node's answer to a heartbeat may stop the attempt, and so
// does a node that can't be reached for as long as a lease: then somebody else may have the job.
// A stopped attempt closes its files and forgets; its directory is the node's to remove.
//
// When the node restarts, its answers carry that every old lease is void; the worker drops its
// attempts and asks the new one. When the worker is told to end, it gives its jobs back (SHUTDOWN),
// which costs them no attempt.
package worker
