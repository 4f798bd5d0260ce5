package server

import (
	"context"
	"errors"
	"regexp"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

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
	errOverloaded   = errors.New("node is overloaded")
	errSlowReader   = errors.New("reader of a stream is too slow")
	errInternal     = errors.New("internal error")
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
}

// table is the one place that turns domain errors into answers. The first row that fits counts, so
// the more specific ones stand first.
var table = []row{
	{store: store.ReasonTenant, code: codes.InvalidArgument},
	{store: store.ReasonKey, code: codes.InvalidArgument},
	{store: store.ReasonValue, code: codes.InvalidArgument},
	{store: store.ReasonClock, code: codes.InvalidArgument},
	{store: store.ReasonTTL, code: codes.InvalidArgument},
	{store: store.ReasonTimestamp, code: codes.InvalidArgument},
	{store: store.ReasonSiblings, code: codes.InvalidArgument},
	{store: store.ReasonBatch, code: codes.InvalidArgument},
	{store: store.ReasonRange, code: codes.InvalidArgument},
	{store: store.ReasonMaxKeys, code: codes.InvalidArgument},
	{store: store.ReasonPageToken, code: codes.InvalidArgument},
	{store: store.ReasonCursor, code: codes.InvalidArgument},
	// Merging the siblings helps, the same call again does not: no retry.
	{store: store.ReasonTooManySiblings, code: codes.ResourceExhausted},
	{store: store.ReasonResponseTooLarge, code: codes.ResourceExhausted},
	{store: store.ReasonOverloaded, code: codes.ResourceExhausted, retry: 50 * time.Millisecond},
	{store: store.ReasonCorruptedData, code: codes.DataLoss},

	{err: context.Canceled, code: codes.Canceled, reason: "CANCELLED"},
	{err: context.DeadlineExceeded, code: codes.DeadlineExceeded, reason: "DEADLINE_EXCEEDED"},

	{err: errMalformed, code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_MESSAGE"},
	{err: errLimit, code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_BATCH"},
	{err: errRange, code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_RANGE"},
	{err: errSnapshotName, code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_SNAPSHOT_NAME"},
	{err: engine.ErrBatchTooLarge, code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_BATCH"},
	{err: engine.ErrInvalidKey, code: codes.InvalidArgument, reason: "INVALID_ARGUMENT_KEY"},

	{err: ErrSnapshotExists, code: codes.AlreadyExists, reason: "SNAPSHOT_EXISTS"},
	{err: ErrNoSnapshot, code: codes.NotFound, reason: "SNAPSHOT_NOT_FOUND"},
	{err: ErrTooManySnapshots, code: codes.ResourceExhausted, reason: "TOO_MANY_SNAPSHOTS"},

	{err: ErrRecovering, code: codes.Unavailable, reason: "RECOVERING", retry: 500 * time.Millisecond},
	{err: ErrStopping, code: codes.Unavailable, reason: "STOPPING", retry: time.Second},
	{err: engine.ErrClosed, code: codes.Unavailable, reason: "STOPPING", retry: time.Second},
	// No retry here: the process ends, and with it this connection; the client's next one counts.
	{err: engine.ErrPoisoned, code: codes.Unavailable, reason: "ENGINE_POISONED"},
	{err: engine.ErrDiskFull, code: codes.ResourceExhausted, reason: "DISK_FULL", retry: 5 * time.Second},
	{err: vfs.ErrNoSpace, code: codes.ResourceExhausted, reason: "DISK_FULL", retry: 5 * time.Second},
	{err: engine.ErrStalled, code: codes.ResourceExhausted, reason: "OVERLOADED", retry: 100 * time.Millisecond},
	{err: errOverloaded, code: codes.ResourceExhausted, reason: "OVERLOADED", retry: 100 * time.Millisecond},
	{err: errSlowReader, code: codes.ResourceExhausted, reason: "SLOW_READER", retry: time.Second},
	{err: engine.ErrLogWrite, code: codes.Unavailable, reason: "LOG_WRITE", retry: 500 * time.Millisecond},
	{err: engine.ErrCorrupt, code: codes.DataLoss, reason: "CORRUPTED_DATA"},
}

// internal is the row of what no row names: a fault of ours. Its text stays in the log.
var internal = row{err: errInternal, code: codes.Internal, reason: "INTERNAL"}

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

// maxDetailBytes bounds the siblings in an error: details travel in headers, which many peers cut
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
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{
		Reason: r.reason, Domain: errorDomain,
		Metadata: map[string]string{"retryable": strconv.FormatBool(r.retry > 0)},
	}}
	if r.retry > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(r.retry)})
	}
	var refused *store.Error
	if errors.As(err, &refused) && len(refused.Record.Siblings) > 0 {
		record := &datav1.Record{Siblings: siblingsToProto(refused.Record.Siblings)}
		if proto.Size(record) <= maxDetailBytes {
			details = append(details, protoadapt.MessageV1Of(record))
		}
	}
	detailed, err := s.WithDetails(details...)
	if err != nil {
		return s
	}
	return detailed
}

// wireName returns the name of a code as the wire writes it: PERMISSION_DENIED.
func wireName(c codes.Code) string {
	return strings.ToUpper(snake.ReplaceAllString(c.String(), "${1}_${2}"))
}

var snake = regexp.MustCompile("([a-z])([A-Z])")
