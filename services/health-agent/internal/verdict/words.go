package verdict

// Word is a reason. The set is closed: alerts, metrics and other agents know no other.
type Word string

// The words. Those that the storage node says of itself come first.
const (
	// Recovering: the node replays its commit log.
	Recovering Word = "recovering"
	// Stopping: the node ends.
	Stopping Word = "stopping"
	// Poisoned: the node can make nothing durable any more.
	Poisoned Word = "poisoned"
	// Stalled: writes wait for the disk.
	Stalled Word = "stalled"
	// Compaction: merges fall behind, or the node does them itself.
	Compaction Word = "compaction"
	// Pressure: writes are delayed or refused.
	Pressure Word = "pressure"
	// Quarantine: damaged tables are set aside.
	Quarantine Word = "quarantine"
	// Disk: the data volume fills up.
	Disk Word = "disk"
	// Memory: the node is near its limit.
	Memory Word = "memory"
	// Files: the node is near its limit of open files.
	Files Word = "files"
	// Events: events wait for their publication.
	Events Word = "events"
	// Members: the node's view of the cluster is old.
	Members Word = "members"
	// Tenants: the list of tenants can't be read or kept as it should be.
	Tenants Word = "tenants"
	// Goroutines: there are far more than requests need.
	Goroutines Word = "goroutines"
	// Moves: the list of moves can't be read as it should be.
	Moves Word = "moves"
	// Draining: the node was asked to flush and takes no writes before its restart.
	Draining Word = "draining"
	// DataDir: the node can't write to its directory.
	DataDir Word = "data-dir"
	// Joining: the node does not know yet whether others own what it is to have.
	Joining Word = "joining"
	// Node: it does not answer.
	Node Word = "node"
	// Compactor: none leases jobs any more.
	Compactor Word = "compactor"
	// Migrator: it was there and is not heard any more.
	Migrator Word = "migrator"
	// Clock: the wall clock jumped.
	Clock Word = "clock"
	// Gossip: it does not run.
	Gossip Word = "gossip"
	// Seeds: none answers, and no other member was found.
	Seeds Word = "seeds"
	// Isolated: other members are declared, and none answers.
	Isolated Word = "isolated"
	// Keyring: the file of the gossip's keys can't be used; the keys before stay.
	Keyring Word = "keyring"
	// DuplicateID: another member had this node id before.
	DuplicateID Word = "duplicate-id"
	// Removed: an operator took this member out of the cluster.
	Removed Word = "removed"
	// AgentMemory: the health-agent is near its own limit.
	AgentMemory Word = "agent-memory"
	// AgentFiles: likewise of open files.
	AgentFiles Word = "agent-files"
	// Other: a newer node or agent says something that this one has no word for.
	Other Word = "other"
)

// words in the order of their bits in gossip: append, never move.
var words = [...]Word{
	Other, Recovering, Stopping, Poisoned, Stalled, Compaction, Pressure, Quarantine, Disk, Memory, Files, Events, Members,
	Node, Compactor, Migrator, Clock, Gossip, Seeds, Isolated, Keyring, DuplicateID, Removed, AgentMemory, AgentFiles,
	Tenants, Goroutines, DataDir, Moves, Draining, Joining,
}

// All returns every word.
func All() []Word { return append([]Word(nil), words[:]...) }

// Bits returns reasons as a set, one bit a word.
func Bits(reasons []Reason) uint64 {
	var bits uint64
	for _, r := range reasons {
		for i, w := range words {
			if w == r.Name {
				bits |= 1 << i
			}
		}
	}
	return bits
}

// FromBits returns the words of a set; bits of newer agents are together Other.
func FromBits(bits uint64) []Word {
	if bits>>len(words) != 0 {
		bits |= 1
	}
	var out []Word
	for i, w := range words {
		if bits&(1<<i) != 0 {
			out = append(out, w)
		}
	}
	return out
}

// FromNode turns a reason that the node says of itself into one of the closed set.
func FromNode(name, detail string) Reason {
	for _, w := range words {
		if string(w) == name {
			return Reason{Name: w, Detail: detail}
		}
	}
	if detail == "" {
		return Reason{Name: Other, Detail: name}
	}
	return Reason{Name: Other, Detail: name + ": " + detail}
}
