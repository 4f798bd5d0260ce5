// Package membership is the declared map of a cluster: who its members are, what each of them said
// last about itself, and how two such maps become one. It never knows who answers now: silence changes
// nothing here.
//
// # Join
//
// A Map holds one Declaration per node id. Joining two maps keeps, per node, the one that Newer
// prefers: the higher version; of equal versions the higher state; then the order of the remaining
// fields, which means nothing but is the same everywhere. A maximum under a total order is commutative,
// associative and idempotent, so maps that were exchanged often enough in any order are equal.
//
// A member leaves only by a declaration: Removed stays in the map, with a version above all that the
// member had said, so that old news can't bring it back. A new data directory under the name of a
// removed or drained member (another incarnation) is another member and begins anew as Joining, with a
// higher version.
//
// # Encoding
//
// Encode and Decode are what health-agents exchange. All numbers are minimal unsigned varints, all
// texts UTF-8 behind their length:
//
//	format    1 byte, 1
//	count     number of declarations, at most MaxMembers
//	then for each, by ascending node id, none twice:
//	  node id, version, state, incarnation, gRPC address, zone, virtual nodes, declared at
//
// One map has one encoding, of at most MaxBytes. Decode accepts nothing else, and allocates by what is
// there, not by what a count claims.
package membership
