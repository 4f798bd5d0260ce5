// Package members keeps the cluster as a node knows it: what its members declared, durably, and what the
// pod's health-agent saw of them last. It never decides who is alive.
//
// # Declarations
//
// Each declaration is a record of the system tenant "_members", under the node id, in the encoding of a
// map of one (libs/membership). A report of the health-agent is joined with what is there, and what it
// changed is written in one batch before it counts: the answer to the agent, and what the node says to
// anybody else, is never taken back by a crash. Two nodes' records would merge like any others: whoever
// finds siblings joins them.
//
// One declaration is special: that of the node itself. Its data directory has an incarnation, and a newer
// declaration with another one was made by somebody else under the same name. It is not joined; the node
// goes on and says so. What an earlier directory of that name left behind when it was drained or removed
// is no second node.
//
// # What is seen
//
// The newest report is also the view of who answers. It lives in memory: a view of the time before a
// restart is worth nothing. It stays when the agent goes silent; its age tells.
//
// All of it is one immutable state behind an atomic pointer. A change makes a new one and closes the
// channel of the old one, so that whoever follows finds the newest state, however slow, and nothing waits
// for him.
//
// # Damage
//
// Records that can't be read are left out and reported. A later report that brings the same member writes
// the record anew. Where the store can't even do that, the member is kept in memory: those who are
// alive will bring it again.
package members
