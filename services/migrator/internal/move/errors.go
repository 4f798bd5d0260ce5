package move

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/services/migrator/internal/stream"
)

// Reasons of the wire that decide what happens next (docs/ERRORS.md).
const (
	reasonOtherCluster  = "OTHER_CLUSTER"
	reasonMoveTooOld    = "MOVE_TOO_OLD"
	reasonMoveChanged   = "MOVE_CHANGED"
	reasonMoveNotFound  = "MOVE_NOT_FOUND"
	reasonMoveState     = "MOVE_STATE"
	reasonCorruptedData = "CORRUPTED_DATA"
	reasonTooOld        = "SEQUENCE_TOO_OLD"
)

var (
	// errCalledOff ends a step: the node says that the move is over, failed or called off.
	errCalledOff = errors.New("the move was called off")
	// errCancelling ends what is done inside of a fence.
	errCancelling = errors.New("the move is to be called off")
	// errNews ends a step: the move is not as it was seen.
	errNews = errors.New("the move was changed by somebody else")
	// errAnotherTarget says that the target has a new data directory: what it had is gone.
	errAnotherTarget = errors.New("the target has a new data directory")
	// errRefused says that the target takes no data now.
	errRefused = errors.New("the target takes no data now")
	// errFenceLong says that a hand-over took too long.
	errFenceLong = errors.New("the hand-over took too long")
	// errPutOff says that a hand-over was taken back.
	errPutOff = errors.New("the hand-over was put off")
	// errMalformed is an answer that breaks the contract.
	errMalformed = errors.New("malformed answer")
)

// failure is an error that a person must solve.
type failure struct{ err error }

func (f failure) Error() string { return f.err.Error() }
func (f failure) Unwrap() error { return f.err }

func failf(format string, args ...any) error { return failure{fmt.Errorf(format, args...)} }

// side is an error of a call, and whose it is.
type side struct {
	who string // "node" or "target"
	err error
}

func (s side) Error() string { return s.who + ": " + s.err.Error() }
func (s side) Unwrap() error { return s.err }

func ofNode(err error) error   { return of("node", err) }
func ofTarget(err error) error { return of("target", err) }

func of(who string, err error) error {
	var s side
	if err == nil || errors.As(err, &s) {
		return err
	}
	return side{who, err}
}

// wireStatus returns the status in an error, and its reason.
func wireStatus(err error) (code codes.Code, reason string) {
	var s interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &s) {
		return codes.OK, ""
	}
	st := s.GRPCStatus()
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			reason = info.GetReason()
		}
	}
	return st.Code(), reason
}

func hasReason(err error, reason string) bool {
	_, r := wireStatus(err)
	return r == reason
}

// permanent reports whether a person must solve what went wrong.
func permanent(err error) bool {
	if errors.As(err, &failure{}) {
		return true
	}
	code, reason := wireStatus(err)
	switch reason {
	case reasonOtherCluster, reasonMoveTooOld, reasonCorruptedData:
		return true
	case reasonMoveChanged, reasonMoveNotFound, reasonMoveState, reasonTooOld:
		return false
	}
	switch code {
	case codes.InvalidArgument, codes.Unimplemented, codes.DataLoss, codes.PermissionDenied, codes.Unauthenticated:
		return true
	}
	return false
}

// definite reports whether the other side has answered, and will answer the same again.
func definite(err error) bool {
	switch code, _ := wireStatus(err); code {
	case codes.FailedPrecondition, codes.NotFound, codes.InvalidArgument, codes.Aborted, codes.AlreadyExists, codes.OutOfRange, codes.Unimplemented:
		return true
	}
	return false
}

// causeOf is the label of an error in metrics.
func causeOf(err error) string {
	var s side
	code, reason := wireStatus(err)
	switch {
	case errors.Is(err, errNews), reason == reasonMoveChanged, reason == reasonMoveNotFound, reason == reasonMoveState:
		return "changed"
	case reason == reasonTooOld:
		return "pin"
	case errors.Is(err, stream.ErrStalled):
		return "stalled"
	case errors.Is(err, errRefused), code == codes.ResourceExhausted:
		return "refused"
	case errors.As(err, &s):
		return s.who
	}
	return "other"
}

// say is an error for people: short, and without the frame of gRPC.
func say(err error) string {
	const maxReason = 500
	text := err.Error()
	var s interface{ GRPCStatus() *status.Status }
	var who side
	if errors.As(err, &s) {
		text = s.GRPCStatus().Message()
		if errors.As(err, &who) {
			text = who.who + ": " + text
		}
	} else if errors.Is(err, context.DeadlineExceeded) && errors.As(err, &who) {
		text = who.who + ": no answer in time"
	}
	if len(text) > maxReason {
		text = text[:maxReason]
	}
	return text
}
