package store

import (
	"errors"
	"fmt"
	"time"

	"github.com/pairdb/pairdb/libs/causal"
)

// Reason is the machine-readable name of an error; it is part of the wire contract.
type Reason string

// Reasons of the errors of this package and of package tenant. Errors of the engine come through as
// they are, wrapped.
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
)

// Error is a refusal with its reason. Message says which limit was violated, and by what.
type Error struct {
	Reason  Reason
	Message string
	// RetryAfter is when the same call may succeed; 0 means never.
	RetryAfter time.Duration
	// Record is what has to be merged first, for ReasonTooManySiblings.
	Record causal.Record
	// Metadata are facts for machines, by names of the wire contract.
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

// corrupted names the key and never the bytes.
func corrupted(key []byte, err error) error {
	return &Error{Reason: ReasonCorruptedData, Message: fmt.Sprintf("record of %q: %v", key, err), Err: err}
}
