package command

import (
	"encoding/json"
	"errors"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// answer is what a sender gets.
type answer struct {
	RequestID string          `json:"request_id,omitempty"`
	OK        bool            `json:"ok"`
	Result    json.RawMessage `json:"result,omitempty"`
	Error     *answerError    `json:"error,omitempty"`
}

type answerError struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// maxMessageBytes bounds the words of an error: they travel in a header too.
const maxMessageBytes = 512

// succeeded returns the answer to a call that worked.
func succeeded(id string, result proto.Message) (answer, error) {
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(result)
	return answer{RequestID: id, OK: true, Result: b}, err
}

// failedWith returns the answer to a request that was refused, or whose call failed: with the node's
// reason, where it gave one.
func failedWith(id string, err error) answer {
	e := &answerError{Reason: "INTERNAL", Message: err.Error()}
	var refused *refusal
	if errors.As(err, &refused) {
		e.Reason, e.Message = refused.reason, refused.message
	} else if s, ok := status.FromError(err); ok {
		e.Reason, e.Message = code.Code(s.Code()).String(), s.Message()
		for _, d := range s.Details() {
			if info, ok := d.(*errdetails.ErrorInfo); ok {
				e.Reason = info.GetReason()
			}
		}
	}
	if e.Message = oneLine(e.Message); e.Message == "" {
		e.Message = e.Reason // the library wants some words
	}
	return answer{RequestID: id, Error: e}
}

// oneLine makes a text fit for a header.
func oneLine(s string) string {
	s = strings.ToValidUTF8(s[:min(len(s), maxMessageBytes)], "")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// passing reports whether the same call may succeed later: then it is worth a second try under its id.
func passing(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Canceled, codes.Aborted:
		return true
	}
	return false
}
