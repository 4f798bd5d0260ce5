package store

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
)

// Reason is the machine-readable name of an error; it is part of the wire contract.
type Reason string

// Reasons of the errors of this package and of those beside and above it that refuse requests. Errors of
// the engine come through as they are, wrapped.
const (
	ReasonTenant           Reason = "INVALID_ARGUMENT_TENANT"
	ReasonKey              Reason = "INVALID_ARGUMENT_KEY"
	ReasonValue            Reason = "INVALID_ARGUMENT_VALUE"
	ReasonClock            Reason = "INVALID_ARGUMENT_CLOCK"
	ReasonTTL              Reason = "INVALID_ARGUMENT_TTL"
	ReasonCondition        Reason = "INVALID_ARGUMENT_CONDITION"
	ReasonIdempotencyKey   Reason = "INVALID_ARGUMENT_IDEMPOTENCY_KEY"
	ReasonTimestamp        Reason = "INVALID_ARGUMENT_TIMESTAMP"
	ReasonSiblings         Reason = "INVALID_ARGUMENT_SIBLINGS"
	ReasonBatch            Reason = "INVALID_ARGUMENT_BATCH"
	ReasonRange            Reason = "INVALID_ARGUMENT_RANGE"
	ReasonMaxKeys          Reason = "INVALID_ARGUMENT_MAX_KEYS"
	ReasonPageToken        Reason = "INVALID_ARGUMENT_PAGE_TOKEN"
	ReasonCursor           Reason = "INVALID_ARGUMENT_CURSOR"
	ReasonConditionFailed  Reason = "CONDITION_FAILED"
	ReasonKeyReused        Reason = "IDEMPOTENCY_KEY_REUSED"
	ReasonTooManySiblings  Reason = "TOO_MANY_SIBLINGS"
	ReasonOverloaded       Reason = "OVERLOADED"
	ReasonCorruptedData    Reason = "CORRUPTED_DATA"
	ReasonResponseTooLarge Reason = "RESPONSE_TOO_LARGE"
	ReasonSequenceAhead    Reason = "SEQUENCE_AHEAD"
	ReasonSequenceTooOld   Reason = "SEQUENCE_TOO_OLD"
	ReasonTenantNotFound   Reason = "TENANT_NOT_FOUND"
	ReasonTenantExists     Reason = "TENANT_EXISTS"
	ReasonTenantDropping   Reason = "TENANT_DROPPING"
	ReasonTooManyTenants   Reason = "TOO_MANY_TENANTS"
	ReasonQuotaExceeded    Reason = "QUOTA_EXCEEDED"
	ReasonQuota            Reason = "INVALID_ARGUMENT_QUOTA"
	ReasonConflictPolicy   Reason = "INVALID_ARGUMENT_CONFLICT_POLICY"
	ReasonUpdate           Reason = "INVALID_ARGUMENT_UPDATE"
	ReasonReport           Reason = "INVALID_ARGUMENT_REPORT"
	ReasonMember           Reason = "INVALID_ARGUMENT_MEMBER"
	ReasonRemoval          Reason = "INVALID_ARGUMENT_REMOVAL"
	ReasonTooManyMembers   Reason = "TOO_MANY_MEMBERS"
	ReasonMemberNotFound   Reason = "MEMBER_NOT_FOUND"
	ReasonMemberAlive      Reason = "MEMBER_ALIVE"
	ReasonMemberSelf       Reason = "MEMBER_SELF"
	ReasonMembersUnseen    Reason = "MEMBERS_UNSEEN"
	ReasonNotOwner         Reason = "NOT_OWNER"
	ReasonNodeDraining     Reason = "NODE_DRAINING"
	ReasonRangeMoving      Reason = "RANGE_MOVING"
	ReasonMove             Reason = "INVALID_ARGUMENT_MOVE"
	ReasonTarget           Reason = "INVALID_ARGUMENT_TARGET"
	ReasonMoveNotFound     Reason = "MOVE_NOT_FOUND"
	ReasonMoveExists       Reason = "MOVE_EXISTS"
	ReasonMoveChanged      Reason = "MOVE_CHANGED"
	ReasonMoveState        Reason = "MOVE_STATE"
	ReasonMovesOverlap     Reason = "MOVES_OVERLAP"
	ReasonTooManyMoves     Reason = "TOO_MANY_MOVES"
	ReasonTargetUnknown    Reason = "TARGET_UNKNOWN"
	ReasonTargetUnfit      Reason = "TARGET_UNFIT"
	ReasonDrainUnsafe      Reason = "DRAIN_UNSAFE"
	ReasonDrainExists      Reason = "DRAIN_EXISTS"
	ReasonOtherCluster     Reason = "OTHER_CLUSTER"
	ReasonMoveTooOld       Reason = "MOVE_TOO_OLD"
	ReasonTreeUnknown      Reason = "TREE_UNKNOWN"
	ReasonIngest           Reason = "INVALID_ARGUMENT_INGEST"
	ReasonCleanupUnsafe    Reason = "CLEANUP_UNSAFE"
)

// Error is a refusal with its reason. Message says which limit was violated, and by what.
type Error struct {
	Reason  Reason
	Message string
	// RetryAfter is when the same call may succeed; 0 means never.
	RetryAfter time.Duration
	// Record is what has to be merged first, for ReasonTooManySiblings.
	Record causal.Record
	// Metadata are facts for machines, by names of the wire contract. They are told to the client and
	// never logged: they may have a key in them.
	Metadata map[string]string
	// Clock is that of the key as it is, for ReasonConditionFailed; empty if there is none.
	Clock causal.Clock
	// Err is the cause, if there is one.
	Err error
}

// Error returns reason and message.
func (e *Error) Error() string { return string(e.Reason) + ": " + e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ReasonOf returns the reason of an error of this package, "" for any other.
func ReasonOf(err error) Reason {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

func refuse(r Reason, format string, args ...any) error {
	return &Error{Reason: r, Message: fmt.Sprintf(format, args...)}
}

// errContention says that others overtook a write's reads again and again.
func errContention(attempts int) error {
	return &Error{
		Reason: ReasonOverloaded, RetryAfter: 50 * time.Millisecond,
		Message: fmt.Sprintf("the key changed under %d attempts to write it", attempts),
	}
}

// corrupted names the key by its hash, since the error is logged, and never the bytes. The key itself is
// for the client alone.
func corrupted(key []byte, err error) error {
	e := &Error{Reason: ReasonCorruptedData, Message: fmt.Sprintf("record of key %s: %v", ikey.Hash(key), err), Err: err}
	if tenant, user, split := ikey.SplitEngineKey(key); split == nil {
		e.Metadata = map[string]string{"tenant": strings.ToValidUTF8(string(tenant), "?"), "key": strings.ToValidUTF8(string(user), "?")}
	}
	return e
}
