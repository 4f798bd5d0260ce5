package event

import (
	"slices"

	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	eventv1 "github.com/pairdb/pairdb/proto/pairdb/event/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// The kinds of the catalogue.
const (
	NodeStarted  = "node.started"
	NodeReady    = "node.ready"
	NodeDegraded = "node.degraded"
	NodeStopping = "node.stopping"

	MembershipJoined = "membership.joined"
	MembershipLeft   = "membership.left"
	MembershipFailed = "membership.failed"

	MoveRequested = "move.requested"
	MoveStarted   = "move.started"
	MoveProgress  = "move.progress"
	MoveCompleted = "move.completed"
	MoveFailed    = "move.failed"
	MoveCancelled = "move.cancelled"

	DrainRequested = "drain.requested"
	DrainStarted   = "drain.started"
	DrainProgress  = "drain.progress"
	DrainCompleted = "drain.completed"
	DrainFailed    = "drain.failed"
	DrainCancelled = "drain.cancelled"

	ReplicationLag = "replication.lag"

	CompactionDegraded    = "compaction.degraded"
	CompactionQuarantined = "compaction.quarantined"
	CompactionRecovered   = "compaction.recovered"

	DiskWarning   = "disk.warning"
	DiskThrottled = "disk.throttled"
	DiskFull      = "disk.full"
	DiskRecovered = "disk.recovered"

	EnginePoisoned  = "engine.poisoned"
	TableCorrupt    = "table.corrupt"
	SnapshotCreated = "snapshot.created"
)

// Kind is a row of the catalogue.
type Kind struct {
	// Name is two lower-case words with a dot between them.
	Name string
	// When says in a sentence when it is sent.
	When string
	// Example is a payload; all payloads of the kind are messages of its type. Nobody changes it.
	Example proto.Message
}

// Empty returns a new payload of the kind.
func (k Kind) Empty() proto.Message { return k.Example.ProtoReflect().New().Interface() }

// Kinds returns the catalogue in the order of its page.
func Kinds() []Kind { return slices.Clone(catalogue) }

// Lookup returns the row of a kind.
func Lookup(name string) (Kind, bool) {
	i := slices.IndexFunc(catalogue, func(k Kind) bool { return k.Name == name })
	if i < 0 {
		return Kind{}, false
	}
	return catalogue[i], true
}

// exampleMember is the member of the examples; seen says how it is seen.
func exampleMember(liveness clusterv1.Liveness, ready bool) *eventv1.MembershipChanged {
	return &eventv1.MembershipChanged{Member: &clusterv1.Member{
		Declared: &clusterv1.Declaration{
			NodeId: "node-1", Version: 3, State: clusterv1.MemberState_MEMBER_STATE_UP, Incarnation: "5f0c3a9be1d24c77",
			GrpcAddr: "node-1.pods:8080", Zone: "a", VirtualNodes: 150, DeclaredAtMs: 1796000000000,
		},
		Liveness: liveness, SinceMs: 1796000060000, Version: "v0.3.0", GossipAddr: "10.0.0.12:7946",
		Ready: ready, DiskUsedPercent: 41,
	}}
}

// exampleMove is the move of the examples.
func exampleMove(s movev1.State, reason string) *eventv1.MoveChanged {
	m := &movev1.Move{
		Id: "to-the-archive", Version: 4, Purpose: movev1.Purpose_PURPOSE_REPLICATE, Mode: movev1.Mode_MODE_ONCE,
		What: &movev1.Selection{Tenant: "shop"}, SourceNodeId: "node-1", Target: &movev1.Target{NodeId: "node-4", Addr: "node-4.pods:8080"},
		State: s, Reason: reason, CreatedAtMs: 1796000000000, UpdatedAtMs: 1796000060000,
	}
	if s != movev1.State_STATE_PLANNED {
		m.PinnedSequence = 81234
		m.Progress = &movev1.Progress{CopiedRecords: 120000, CopiedBytes: 73400320, TotalBytes: 734003200, BytesPerSecond: 33554432, RemainingSeconds: 20, LagMs: -1}
	}
	if s == movev1.State_STATE_FAILED {
		m.ResumeState = movev1.State_STATE_COPYING
	}
	return &eventv1.MoveChanged{Move: m}
}

// exampleDrain is the drain of the examples.
func exampleDrain(s movev1.DrainState, reason string, done, total int32) *eventv1.DrainChanged {
	return &eventv1.DrainChanged{Drain: &movev1.Drain{
		Id: "drain-4kq2hx7b", Version: 3, State: s, Reason: reason, MovesDone: done, MovesTotal: total,
		CreatedAtMs: 1796000000000, UpdatedAtMs: 1796000060000,
	}}
}

// catalogue is the one table of kinds.
var catalogue = []Kind{
	{NodeStarted, "A storage-node has taken its data directory and begins to recover.",
		&eventv1.NodeStarted{Version: "v0.3.0", Incarnation: "5f0c3a9be1d24c77"}},
	{NodeReady, "It serves requests.",
		&eventv1.NodeReady{TookMs: 840}},
	{NodeDegraded, "The set of things that don't work as they should, while requests are served, has changed and stayed changed for five seconds. It lists all that hold; an empty list says that all is well again.",
		&eventv1.NodeDegraded{Reasons: []*clusterv1.Reason{{Name: "compaction", Detail: "no compactor is connected"}}}},
	{NodeStopping, "It takes no new requests and ends, asked to or because it can't go on.",
		&eventv1.NodeStopping{Reason: "asked to stop"}},

	{MembershipJoined, "A node's health-agent, once it has seen the cluster that it joined, sees a new member, or one again that was down or had left.",
		exampleMember(clusterv1.Liveness_LIVENESS_ALIVE, true)},
	{MembershipLeft, "A member said goodbye: its pod stops. Its data stays its own.",
		exampleMember(clusterv1.Liveness_LIVENESS_LEFT, false)},
	{MembershipFailed, "Nobody reaches a member any more. That moves no data: only declarations do.",
		exampleMember(clusterv1.Liveness_LIVENESS_DOWN, false)},

	{MoveRequested, "A move of records to another node was asked for and is durable; nothing has happened yet.",
		exampleMove(movev1.State_STATE_PLANNED, "")},
	{MoveStarted, "The migrator has begun it, or begun it anew because its place in the commit log was lost.",
		exampleMove(movev1.State_STATE_PINNED, "")},
	{MoveProgress, "It goes on; at most every ten seconds for each move.",
		exampleMove(movev1.State_STATE_COPYING, "")},
	{MoveCompleted, "It is over: both sides were compared and equal, its ranges are the target's if it hands them over, and nothing is held for it.",
		exampleMove(movev1.State_STATE_RELEASED, "")},
	{MoveFailed, "It can't go on until somebody looks; it can be resumed where it stood.",
		exampleMove(movev1.State_STATE_FAILED, "the target belongs to another cluster")},
	{MoveCancelled, "It was called off; the source serves as before.",
		exampleMove(movev1.State_STATE_CANCELLED, "not needed any more")},

	{DrainRequested, "A node was asked to give everything away and durably knows it.",
		exampleDrain(movev1.DrainState_DRAIN_STATE_REQUESTED, "", 0, 0)},
	{DrainStarted, "Its moves are planned and under way.",
		exampleDrain(movev1.DrainState_DRAIN_STATE_MOVING, "", 0, 3)},
	{DrainProgress, "One of its moves is over.",
		exampleDrain(movev1.DrainState_DRAIN_STATE_MOVING, "", 1, 3)},
	{DrainCompleted, "Everything is at its next owner, and the node is declared drained: it can be stopped for good.",
		exampleDrain(movev1.DrainState_DRAIN_STATE_COMPLETED, "", 3, 3)},
	{DrainFailed, "One of its moves can't go on, and so can't the drain until that is resumed or the drain is cancelled.",
		exampleDrain(movev1.DrainState_DRAIN_STATE_MOVING, "", 1, 3)},
	{DrainCancelled, "It was called off; the node is up as before.",
		exampleDrain(movev1.DrainState_DRAIN_STATE_CANCELLED, "the new node is not ready", 1, 3)},

	{ReplicationLag, "A target that follows this node has been more than ten seconds behind for ten seconds, or is less than one behind again.",
		&eventv1.ReplicationLag{MoveId: "to-the-archive", TargetNodeId: "node-4", LagMs: 14200, LagRecords: 81234, Behind: true}},

	{CompactionDegraded, "No compactor has been there for half a minute: the node merges tables itself, if it may.",
		&eventv1.CompactionChanged{Reason: "no worker for 30s"}},
	{CompactionQuarantined, "A merge was given up: its tables stay as they are and are kept out of merges.",
		&eventv1.CompactionChanged{Reason: "3 attempts failed, the last one: checksum of an output", Job: "000093.e3", QuarantinedTables: 1}},
	{CompactionRecovered, "A compactor is there again.",
		&eventv1.CompactionChanged{Reason: "compactor-7@1002 is there"}},

	{DiskWarning, "The data volume fills up; nothing is refused yet.",
		&eventv1.DiskChanged{TotalBytes: 107374182400, FreeBytes: 14173392076, UsedPercent: 86.8}},
	{DiskThrottled, "The data volume is so full that large writes are refused.",
		&eventv1.DiskChanged{TotalBytes: 107374182400, FreeBytes: 9663676416, UsedPercent: 91}},
	{DiskFull, "The data volume is so full that all writes are refused; reads and deletes go on.",
		&eventv1.DiskChanged{TotalBytes: 107374182400, FreeBytes: 4294967296, UsedPercent: 96}},
	{DiskRecovered, "There is room on the data volume again: nothing is refused because of it.",
		&eventv1.DiskChanged{TotalBytes: 107374182400, FreeBytes: 64424509440, UsedPercent: 40}},

	{EnginePoisoned, "A sync failed: nothing can be made durable any more, and the node ends.",
		&eventv1.EnginePoisoned{Error: "sync log/000012.log: input/output error"}},
	{TableCorrupt, "Damage was found in a table. Its file stays and reads that need it fail; other replicas have the data.",
		&eventv1.TableCorrupt{Table: 187, Error: "sst/000187.sst: offset 4096: block checksum does not fit"}},
	{SnapshotCreated, "A named snapshot is whole and durable.",
		&eventv1.SnapshotCreated{Name: "before-upgrade", Sequence: 81234, SizeBytes: 73400320}},
}
