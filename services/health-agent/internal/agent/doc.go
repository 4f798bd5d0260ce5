// Package agent is the health-agent at work: it asks the storage node how it is, judges the pod, gossips,
// and tells the node what it found. It never serves data, and what fails here never stops the node.
//
// One goroutine does all of it, once a second and soon after each change:
//
//	Identity, Health ─▶ judge ─▶ say it to the others (meta) ─▶ declare ─▶ Report ─▶ join what the node
//	remembers into the map ─▶ Emit what was seen of the others
//
// # What it declares
//
// A member declares only itself. The agent declares its node Joining when it is new to the cluster, or
// has another incarnation than the one that is known, and Up once it serves for the first time; after
// that a change of its address, zone or number of virtual nodes is a new version in the same state. It
// declares nothing before the node has told what it remembers, nothing while another member has the same
// node id, and nothing once it was removed.
//
// # Events
//
// Every agent emits what it sees of the others: membership.joined, left and failed, each once per change
// and none for what was there when it came. The id names the observer and is a hash of what was seen, so
// that a repetition after a lost answer is the same event.
package agent
