// Package gossip keeps a health-agent in touch with those of the other pods: who answers, what each
// says lightly of itself, and the declared map of the cluster. It never decides what a member's silence
// means for its data, and never speaks with a storage node.
//
// It is hashicorp/memberlist (SWIM: every agent probes the others in turn, asks third ones before it
// suspects, and lets the suspect object before it counts as down) with the rules of a cluster of pods:
//
//   - The label of every packet is the cluster id, so that two clusters that meet stay two. With a
//     keyring everything is encrypted and authenticated.
//   - What each says of itself lightly is Meta, at most 512 bytes beside its address.
//   - The declared map travels whole with every push/pull, and each change of it at once as a message.
//   - Seeds are tried for ever. Members that went are tried again, so that a network that was split
//     becomes one again whatever the seeds are.
//
// # What is refused
//
// Another label, what no key decrypts, packets, states and messages that can't be read, meta that is
// too long or malformed, members beyond the limit: each is counted by reason and logged once per peer,
// and changes nothing. memberlist tells of some of these only in its log, which is therefore read; a
// test of each notices when its words change.
//
// # Two members with one node id
//
// The one that is there stays, in every view: memberlist keeps the address that it knows while that one
// answers. Both learn of it, and the one that started later is the duplicate: it says so and nothing
// else, declares nothing, and does not take leave in the name of the other. It asks again every few
// seconds and is a member once the other is gone. One with the same incarnation is an earlier life of
// this pod whose end the others have not noticed yet, since a data directory is opened only once; it
// gets the time for that before it counts as another.
//
// # Locks
//
// memberlist calls Events, Conflict and Alive with its own lock held; these take the view's lock and
// call nothing of memberlist. The view's lock is held for maps only, never around a call.
package gossip
