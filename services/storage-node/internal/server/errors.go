package server

import (
	"context"
	"errors"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/token"
	"github.com/pairdb/pairdb/libs/vfs"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// errorDomain is the domain of every google.rpc.ErrorInfo.
const errorDomain = "pairdb"

// What the server itself refuses.
var (
	// ErrRecovering says that the node has not replayed its commit log yet.
	ErrRecovering = errors.New("node is recovering")
	// ErrStopping says that the node is shutting down.
	ErrStopping = errors.New("node is stopping")
	// ErrSnapshotExists says that the name of a snapshot is taken.
	ErrSnapshotExists = errors.New("snapshot exists")
	// ErrNoSnapshot says that there is no snapshot of that name.
	ErrNoSnapshot = errors.New("no such snapshot")
	// ErrTooManySnapshots says that the node holds as many as it may.
	ErrTooManySnapshots = errors.New("too many snapshots")

	errMalformed    = errors.New("malformed request")
	errSnapshotName = errors.New("invalid snapshot name")
	errRange        = errors.New("invalid range")
	errLimit        = errors.New("limit exceeded")
	errLogLevel     = errors.New("unknown log level")
	errOverloaded   = errors.New("node is overloaded")
	errSlowReader   = errors.New("reader of a stream is too slow")
	errInternal     = errors.New("internal error")
	errUnavailable  = errors.New("not available")
)

// row says what a domain error is on the wire.
type row struct {
	// err or store is what it is in the domain: a sentinel, or a reason of the store.
	err    error
	store  store.Reason
	code   codes.Code
	reason string
	// retry is when the same call may help; 0 is never.
	retry time.Duration
	// when says in the documentation what was wrong.
	when string
}

// table is the one place that turns domain errors into answers. The first row that fits counts, so
// the more specific ones stand first. docs/ERRORS.md is made from it; of rows with one reason it says
// what the first one says.
var table = []row{
	{store: store.ReasonTenant, code: codes.InvalidArgument,
		when: "The tenant id has not 1 to 256 bytes, begins with `_`, or contains a colon, a control character or invalid UTF-8."},
	{store: store.ReasonKey, code: codes.InvalidArgument,
		when: "The key has not 1 to 1,024 bytes, or contains a control character other than tab and newline, or invalid UTF-8."},
	{store: store.ReasonValue, code: codes.InvalidArgument,
		when: "The value is larger than 10 MiB, or a delete has one."},
	{store: store.ReasonClock, code: codes.InvalidArgument,
		when: "A clock or context has more than 1,000 entries, one twice, a counter of 0, a node id that is empty or longer than 128 bytes, or a write of this node that it never made; or both a clock and a context are given."},
	{store: store.ReasonTTL, code: codes.InvalidArgument,
		when: "The time to live is negative or longer than a hundred years."},
	{store: store.ReasonCondition, code: codes.InvalidArgument,
		when: "A condition says nothing, says `absent: false`, has an invalid clock, or a digest that has not 32 bytes."},
	{store: store.ReasonIdempotencyKey, code: codes.InvalidArgument,
		when: "The idempotency key has more than 128 bytes, or contains a control character or invalid UTF-8."},
	{store: store.ReasonTimestamp, code: codes.InvalidArgument,
		when: "A sibling is from further ahead than `PAIRDB_MAX_CLOCK_SKEW`: set the clocks."},
	{store: store.ReasonSiblings, code: codes.InvalidArgument,
		when: "A repair has not 1 to 1,024 siblings, or they contradict one another."},
	{store: store.ReasonBatch, code: codes.InvalidArgument,
		when: "A batch has more than 1,000 operations or 16 MiB, or an operation that is none."},
	{store: store.ReasonRange, code: codes.InvalidArgument,
		when: "A range starts after its end, has an invalid bound, or has too many hash ranges."},
	{store: store.ReasonMaxKeys, code: codes.InvalidArgument,
		when: "The number of keys a page is not 0 to 10,000."},
	{store: store.ReasonPageToken, code: codes.InvalidArgument,
		when: "The page token is damaged, or of another request: begin with the first page."},
	{store: store.ReasonCursor, code: codes.InvalidArgument,
		when: "The cursor is damaged, or of another request: begin without one."},
	// Reading the key again helps, and another idempotency key; the same call does not: no retry.
	{store: store.ReasonConditionFailed, code: codes.FailedPrecondition,
		when: "The condition of a write does not hold for the key on this node; nothing changed. The clock of the key as it is is a detail of type `pairdb.data.v1.VectorClock` if it fits into 4 KiB."},
	{store: store.ReasonKeyReused, code: codes.FailedPrecondition,
		when: "Another request of the tenant had this idempotency key within the last 24 hours; nothing changed."},
	// Merging the siblings helps, the same call again does not: no retry.
	{store: store.ReasonTooManySiblings, code: codes.ResourceExhausted,
		when: "The key has 64 concurrent values, or more than can be stored together. Read it, merge them, and write the result with the clock of the read as context. The siblings are a detail of type `pairdb.data.v1.Record` if they fit into 4 KiB."},
	{store: store.ReasonResponseTooLarge, code: codes.ResourceExhausted,
		when: "The answers before this one of a batch have 16 MiB: read it again in a batch of its own. From `storage.StorageNodeService`: the key does not fit into the 4 MiB of that contract."},
	{store: store.ReasonOverloaded, code: codes.ResourceExhausted, retry: 50 * time.Millisecond,
		when: "The node works on as many requests as it may, or its compactions are behind, or a key was changed by others again and again."},
	{store: store.ReasonCorruptedData, code: codes.DataLoss,
		when: "What is stored is damaged, and is not returned. The message names the file, or the key by the hash that logs use; the metadata `tenant` and `key` have the key. Other replicas have it."},
	// A new snapshot helps, the same call again does not.
	{store: store.ReasonSequenceAhead, code: codes.OutOfRange,
		when: "The sequence to watch from is newer than all that the node has: it is of another node, or of a data directory that is gone. Begin with a new snapshot."},
	{store: store.ReasonSequenceTooOld, code: codes.OutOfRange,
		when: "The commit log does not reach back to the sequence to watch from; the metadata `oldest_sequence` says how far it does. Begin with a new snapshot."},

	{store: store.ReasonOtherCluster, code: codes.FailedPrecondition,
		when: "A node or migrator of another cluster calls (`PAIRDB_CLUSTER_ID`)."},
	{store: store.ReasonMoveTooOld, code: codes.FailedPrecondition,
		when: "Records that are sent were read longer ago than tombstones are kept (`PAIRDB_GC_GRACE`): what was deleted since may be forgotten. Begin anew."},
	{store: store.ReasonTreeUnknown, code: codes.NotFound,
		when: "The tree of an earlier Digest is not kept any more: five minutes have passed, newer ones took its place, or the node was restarted. Digest again."},
	{store: store.ReasonIngest, code: codes.InvalidArgument,
		when: "A stream of records between nodes is not what it says: a record is none or belongs to the node itself, batches are not numbered one after the other, keys are not in the promised order, or the format is unknown."},

	{store: store.ReasonTenantNotFound, code: codes.NotFound,
		when: "The tenant is not known and the node serves known ones only (`PAIRDB_TENANTS=strict`), or it was dropped. CreateTenant makes it known."},
	{store: store.ReasonTenantExists, code: codes.AlreadyExists,
		when: "There is a tenant of that name with another quota or policy: UpdateTenant changes them."},
	{store: store.ReasonTenantDropping, code: codes.FailedPrecondition, retry: time.Second,
		when: "The tenant is being dropped; when that is done, it can be created again."},
	{store: store.ReasonTooManyTenants, code: codes.ResourceExhausted,
		when: "The node knows as many tenants as it may, dropped ones included."},
	{store: store.ReasonQuotaExceeded, code: codes.ResourceExhausted, retry: 50 * time.Millisecond,
		when: "A quota of the tenant is used up. The metadata `quota` and `limit` say which; the delay is when the request would be taken."},
	{store: store.ReasonQuota, code: codes.InvalidArgument,
		when: "A quota is negative."},
	{store: store.ReasonConflictPolicy, code: codes.InvalidArgument,
		when: "The policy for conflicts is unknown."},
	{store: store.ReasonUpdate, code: codes.InvalidArgument,
		when: "An update changes nothing: neither a quota nor a policy is given."},

	{store: store.ReasonReport, code: codes.InvalidArgument,
		when: "A report of a health-agent is not one: more than 1,000 members, one member twice, an unknown state or liveness, or a field that is longer than the protocol allows. Nothing of it counts."},
	{store: store.ReasonMember, code: codes.InvalidArgument,
		when: "The id of a member has not 1 to 100 letters, digits, dashes, underscores and dots."},
	{store: store.ReasonRemoval, code: codes.InvalidArgument,
		when: "The reason of a removal has not 1 to 1,000 bytes, or contains a control character or invalid UTF-8."},
	{store: store.ReasonTooManyMembers, code: codes.ResourceExhausted,
		when: "With the report the node would remember more than 1,000 members, removed ones included."},
	{store: store.ReasonMemberNotFound, code: codes.NotFound,
		when: "No member of that id was ever declared to this node."},
	{store: store.ReasonMemberAlive, code: codes.FailedPrecondition, retry: 5 * time.Second,
		when: "The member to remove answers, or may still answer: drain it, or stop it and wait until it is seen down."},
	{store: store.ReasonMemberSelf, code: codes.FailedPrecondition,
		when: "A node does not remove itself: ask another one."},
	{store: store.ReasonMembersUnseen, code: codes.FailedPrecondition, retry: 5 * time.Second,
		when: "The node has not heard its health-agent for a minute and can't tell whether a member is alive: ask another node, or start the health-agent."},

	{store: store.ReasonNodeDraining, code: codes.Unavailable, retry: time.Second,
		when: "The node was asked to flush and be ready for a restart: it takes no writes until that is over. Reads go on."},
	{store: store.ReasonMove, code: codes.InvalidArgument,
		when: "What is asked of a move or drain is not possible at all: its id has not 1 to 64 of a-z, 0-9, dash and dot, its selection contradicts itself or is over a limit, it hands over without hash ranges, or a number or state is unknown."},
	{store: store.ReasonTarget, code: codes.InvalidArgument,
		when: "A target of a move is no node id or address, is the node itself, stands there twice, or there is none."},
	{store: store.ReasonMoveNotFound, code: codes.NotFound,
		when: "No move or drain of that id is known to this node; of those that are over it remembers the last 1,000."},
	{store: store.ReasonMoveExists, code: codes.AlreadyExists,
		when: "There is a move of that id with other arguments."},
	{store: store.ReasonMoveChanged, code: codes.Aborted,
		when: "The move, the drain or the declared state is not as the caller has seen it: read it again."},
	{store: store.ReasonMoveState, code: codes.FailedPrecondition,
		when: "What is asked does not follow the state in which the move, the drain or the node is; the metadata `state` may have it. A move can't be called off once its ranges have a new owner."},
	{store: store.ReasonMovesOverlap, code: codes.FailedPrecondition,
		when: "Another move hands over a part of these ranges; the metadata `move_id` says which."},
	{store: store.ReasonTooManyMoves, code: codes.ResourceExhausted, retry: 5 * time.Second,
		when: "64 moves are under way, or hold the commit log still; or they select too much together."},
	{store: store.ReasonTargetUnknown, code: codes.FailedPrecondition,
		when: "The target is no member that this node knows, or has no address that it knows; or nobody shares the ranges to compare."},
	{store: store.ReasonTargetUnfit, code: codes.FailedPrecondition,
		when: "The target can't take what is sent: it is drained, removed, draining itself, down, or shares no range to compare."},
	{store: store.ReasonDrainUnsafe, code: codes.FailedPrecondition,
		when: "After the drain ranges would have no owner, or fewer copies than the replication factor. The second can be forced with a reason."},
	{store: store.ReasonDrainExists, code: codes.FailedPrecondition,
		when: "The node is drained already."},

	// Another node helps, the same call here does not: no retry.
	{store: store.ReasonCleanupUnsafe, code: codes.FailedPrecondition,
		when: "What a cleanup would remove could be the only copy: a move still reads it (the answer says when to try again), or it was not brought to a node that owns it since this one lost it. Or an open snapshot still sees it; then the answer has a delay as well."},
	{err: engine.ErrSnapshotHolds, code: codes.FailedPrecondition, reason: string(store.ReasonCleanupUnsafe), retry: snapshotRetry},
	{store: store.ReasonNotOwner, code: codes.FailedPrecondition,
		when: "The range of the key was handed over to another node; nothing changed here. The metadata `owner_node_id` and `owner_addr` say which one and where it serves clients."},
	{store: store.ReasonRangeMoving, code: codes.Unavailable, retry: 100 * time.Millisecond,
		when: "The range of the key is being handed over from one node to another, which takes less than a second: writes are refused at the old owner, everything at the new one. Nothing changed. To a migrator: what the node held of a range when it last had it is removed first."},

	{err: context.Canceled, code: codes.Canceled, reason: "CANCELLED",
		when: "The caller cancelled the call."},
	{err: context.DeadlineExceeded, code: codes.DeadlineExceeded, reason: "DEADLINE_EXCEEDED",
		when: "The deadline passed. A write may have been made."},

	{err: token.ErrInvalid, code: codes.Unauthenticated, reason: "TOKEN_INVALID",
		when: "The node asks clients for tokens (`PAIRDB_TOKEN_KEYS`), and none that counts was sent: it is missing, over, of another cluster, or signed with a key that the node does not know. Ask for a new one."},
	{err: token.ErrNotGranted, code: codes.PermissionDenied, reason: "TOKEN_NOT_GRANTED",
		when: "The token that was sent does not allow to do this with keys of this tenant."},
	{err: errMalformed, code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_MESSAGE",
		when: "The message can't be parsed, or has more than the 4 MiB of `storage.StorageNodeService`."},
	{err: errLimit, code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_BATCH"},
	{err: errRange, code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_RANGE"},
	{err: errSnapshotName, code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_SNAPSHOT_NAME",
		when: "The name of a snapshot is not 1 to 128 of a-z, 0-9, dash and dot, or begins with a dot."},
	{err: event.ErrUnknownKind, code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_EVENT",
		when: "An event of a sidecar has an id that has not 1 to 128 visible ASCII characters, a kind that [the catalogue](EVENTS.md) does not have, no time, or a payload that is not that of its kind or has more than 16 KiB."},
	{err: event.ErrInvalid, code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_EVENT"},
	{err: errLogLevel, code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_LOG_LEVEL",
		when: "The log level is none of debug, info, warn, error."},
	{err: engine.ErrBatchTooLarge, code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_BATCH"},
	{err: engine.ErrInvalidKey, code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_KEY"},

	{err: ErrSnapshotExists, code: codes.AlreadyExists, reason: "SNAPSHOT_EXISTS",
		when: "There is a snapshot of that name."},
	{err: ErrNoSnapshot, code: codes.NotFound, reason: "SNAPSHOT_NOT_FOUND",
		when: "There is no snapshot of that name."},
	{err: ErrTooManySnapshots, code: codes.ResourceExhausted, reason: "TOO_MANY_SNAPSHOTS",
		when: "The node keeps as many snapshots as it may: delete one."},

	{err: ErrRecovering, code: codes.Unavailable, reason: "RECOVERING", retry: 500 * time.Millisecond,
		when: "The node has just started and replays its commit log."},
	{err: ErrStopping, code: codes.Unavailable, reason: "STOPPING", retry: time.Second,
		when: "The node is shutting down. A write may have been made."},
	{err: errUnavailable, code: codes.Unimplemented, reason: "NOT_AVAILABLE",
		when: "The call asks for what this node can't do as it is configured; nothing was begun."},
	{err: engine.ErrClosed, code: codes.Unavailable, reason: "STOPPING", retry: time.Second},
	// No retry here: the process ends, and with it this connection; the client's next one counts.
	{err: engine.ErrPoisoned, code: codes.Unavailable, reason: "ENGINE_POISONED",
		when: "The node could not make writes durable and ends. A write may have been made."},
	{err: engine.ErrDiskFull, code: codes.ResourceExhausted, reason: "DISK_FULL", retry: 5 * time.Second,
		when: "The disk is full (`PAIRDB_DISK_FULL_PERCENT`, `PAIRDB_DISK_RESERVE_BYTES`): reads go on, deletes for as long as there is a reserve for them. Make room."},
	{err: engine.ErrDiskThrottled, code: codes.ResourceExhausted, reason: "DISK_THROTTLED", retry: 5 * time.Second,
		when: "The disk is nearly full (`PAIRDB_DISK_THROTTLED_PERCENT`): writes and batches above 64 KiB are refused, smaller ones are taken. Make room."},
	{err: engine.ErrMemoryPressure, code: codes.ResourceExhausted, reason: "MEMORY_PRESSURE", retry: time.Second,
		when: "The memory of the node is nearly used up (`PAIRDB_MEMORY_CRITICAL_PERCENT`): writes are refused, reads go on."},
	{err: vfs.ErrNoSpace, code: codes.ResourceExhausted, reason: "DISK_FULL", retry: 5 * time.Second},
	{err: engine.ErrTooManyPins, code: codes.ResourceExhausted, reason: string(store.ReasonTooManyMoves), retry: 5 * time.Second},
	{err: engine.ErrStalled, code: codes.ResourceExhausted, reason: "OVERLOADED", retry: 100 * time.Millisecond},
	{err: errOverloaded, code: codes.ResourceExhausted, reason: "OVERLOADED", retry: 100 * time.Millisecond},
	{err: errSlowReader, code: codes.ResourceExhausted, reason: "SLOW_READER", retry: time.Second,
		when: "A stream waited for its reader for a minute: go on after the last cursor."},
	{err: engine.ErrLogWrite, code: codes.Unavailable, reason: "LOG_WRITE", retry: 500 * time.Millisecond,
		when: "The write could not be logged. A crash of the node may still bring it back: repeat it with its idempotency key or its clock."},
	{err: engine.ErrCorrupt, code: codes.DataLoss, reason: "CORRUPTED_DATA"},
}

// internal is the row of what no row names: a fault of ours. Its text stays in the log.
var internal = row{err: errInternal, code: codes.Internal, reason: "INTERNAL",
	when: "A fault of the node; its log has the cause under the request id."}

// Reasons returns every reason that an error of this package can have, sorted: those of the table, and
// the names of codes for what handlers and gRPC say themselves.
func Reasons() []string {
	known := map[string]bool{internal.reason: true}
	for _, r := range table {
		known[r.reason+string(r.store)] = true
	}
	for c := codes.OK + 1; c <= codes.Unauthenticated; c++ {
		known[wireName(c)] = true
	}
	return slices.Sorted(maps.Keys(known))
}

// reasonOf returns the reason of an error, as its status will have it.
func reasonOf(err error) string {
	if s, made := status.FromError(err); made {
		return wireName(s.Code())
	}
	return lookup(err).reason
}

// lookup returns the row of an error, with its reason and the time to retry that the error names.
func lookup(err error) row {
	var refused *store.Error
	if errors.As(err, &refused) {
		for _, r := range table {
			if r.store == refused.Reason {
				r.reason = string(r.store)
				if refused.RetryAfter > 0 {
					r.retry = refused.RetryAfter
				}
				return r
			}
		}
		return internal
	}
	for _, r := range table {
		if r.err != nil && errors.Is(err, r.err) {
			var stalled *engine.StalledError
			if errors.As(err, &stalled) && stalled.RetryAfter > 0 {
				r.retry = stalled.RetryAfter
			}
			return r
		}
	}
	return internal
}

// message returns what a client is told in words.
func (r row) message(err error) string {
	var refused *store.Error
	switch {
	case r.code == codes.Internal:
		return "internal error; the log of the node has the cause"
	case errors.As(err, &refused):
		return refused.Message // the reason stands beside it
	}
	return err.Error()
}

// itemError returns what the call of one item of a batch would have answered.
func itemError(err error) *storagev1.ItemError {
	r := lookup(err)
	return &storagev1.ItemError{
		Code: int32(r.code), Reason: r.reason, Message: strings.ToValidUTF8(r.message(err), "?"), RetryAfterMs: retryMillis(r.retry),
	}
}

// nodesFault reports whether a code says that the node failed, and not the caller.
func nodesFault(c codes.Code) bool {
	switch c {
	case codes.Internal, codes.DataLoss, codes.Unknown, codes.Unavailable, codes.DeadlineExceeded:
		return true
	}
	return false
}

// maxDetailBytes bounds the siblings or the clock in an error: details travel in headers, which many peers cut
// off at 8 KiB.
const maxDetailBytes = 4 << 10

// toStatus returns what the client gets for an error. A status that a handler made itself keeps its
// code and words.
func toStatus(err error) *status.Status {
	r := lookup(err)
	s, made := status.FromError(err)
	if !made {
		s = status.New(r.code, r.message(err))
	} else if len(s.Details()) > 0 {
		return s
	} else {
		r = row{code: s.Code(), reason: wireName(s.Code())}
	}
	facts := map[string]string{"retryable": strconv.FormatBool(r.retry > 0)}
	var refused *store.Error
	if errors.As(err, &refused) {
		maps.Copy(facts, refused.Metadata)
	}
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: r.reason, Domain: errorDomain, Metadata: facts}}
	if r.retry > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(r.retry)})
	}
	if state := stateOf(err); state != nil && proto.Size(state) <= maxDetailBytes {
		details = append(details, protoadapt.MessageV1Of(state))
	}
	detailed, err := s.WithDetails(details...)
	if err != nil {
		return s
	}
	return detailed
}

// stateOf returns what an error tells of the state of its key, or nil: the siblings that have to be
// merged, or the clock on which a condition failed, which is empty for a key that was never seen.
func stateOf(err error) proto.Message {
	var refused *store.Error
	if !errors.As(err, &refused) {
		return nil
	}
	switch {
	case refused.Reason == store.ReasonConditionFailed && len(refused.Clock) == 0:
		return &datav1.VectorClock{}
	case refused.Reason == store.ReasonConditionFailed:
		return clockToProto(refused.Clock)
	case len(refused.Record.Siblings) > 0:
		return &datav1.Record{Siblings: siblingsToProto(refused.Record.Siblings)}
	}
	return nil
}

// wireName returns the name of a code as google.rpc.Code has it: PERMISSION_DENIED.
func wireName(c codes.Code) string {
	if c == codes.Canceled {
		return "CANCELLED" // Go spells it with one L
	}
	return strings.ToUpper(snake.ReplaceAllString(c.String(), "${1}_${2}"))
}

var snake = regexp.MustCompile("([a-z])([A-Z])")
