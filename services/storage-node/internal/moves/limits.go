package moves

import (
	"cmp"
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// Limits of moves.
const (
	// MaxIDBytes bounds the id of a move or drain.
	MaxIDBytes = 64
	// MaxActive is how many moves are not over at once: a migrator carries out a few at a time, and a node
	// of a large cluster drains to as many as its ranges have new owners.
	MaxActive = 64
	// MaxEnded and MaxEndedBytes bound what is remembered of moves that are over.
	MaxEnded      = 1000
	MaxEndedBytes = 16 << 20
	// MaxEndedDrains is how many drains that are over are remembered.
	MaxEndedDrains = 100
	// MaxKeys and MaxHashRanges bound a selection; all of it has at most MaxSelectionBytes, and all that
	// are active together at most MaxActiveBytes: they are sent to the migrator with each change.
	MaxKeys           = 10_000
	MaxHashRanges     = 4096
	MaxSelectionBytes = 1 << 20
	MaxActiveBytes    = 16 << 20
	// MaxReasonBytes bounds a reason.
	MaxReasonBytes = 1000
	// MaxCursorBytes bounds a cursor: a tenant, a key and what stands around them.
	MaxCursorBytes = 4 << 10
	// MinBytesPerSecond is the least that a move may be limited to: one message of a stream a second.
	MinBytesPerSecond = 64 << 10
	// maxBytesPerSecond is more than any network has: a sum can't overflow.
	maxBytesPerSecond = 1 << 50
	// hashRangeBytes is what a hash range counts in a selection.
	hashRangeBytes = 16
)

func refuse(r store.Reason, format string, args ...any) error {
	return &store.Error{Reason: r, Message: fmt.Sprintf(format, args...)}
}

// CheckID refuses what can't be the id of a move or drain.
func CheckID(id string) error {
	if len(id) < 1 || len(id) > MaxIDBytes {
		return refuse(store.ReasonMove, "the id has %d bytes, 1 to %d are allowed", len(id), MaxIDBytes)
	}
	for _, c := range []byte(id) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.') {
			return refuse(store.ReasonMove, "id %.64q: a-z, 0-9, dash and dot are allowed", id)
		}
	}
	return nil
}

// CheckReason refuses what can't stand in a log as a reason.
func CheckReason(reason string) error {
	if len(reason) > MaxReasonBytes {
		return refuse(store.ReasonMove, "the reason has %d bytes, at most %d are allowed", len(reason), MaxReasonBytes)
	}
	if !utf8.ValidString(reason) || strings.ContainsFunc(reason, unicode.IsControl) {
		return refuse(store.ReasonMove, "the reason contains a control character or invalid UTF-8")
	}
	return nil
}

// bytes is what a selection counts.
func (s *Selection) bytes() int {
	n := len(s.Tenant) + len(s.Start) + len(s.End) + hashRangeBytes*len(s.HashRanges)
	for _, k := range s.Keys {
		n += len(k) + 1
	}
	return n
}

// Validate refuses a selection that is none.
func (s *Selection) Validate() error {
	bad := func(format string, args ...any) error { return refuse(store.ReasonMove, "selection: "+format, args...) }
	switch {
	case s.Tenant == "" && (s.Start != "" || s.End != "" || len(s.Keys) > 0):
		return bad("keys and a range of keys need a tenant")
	case len(s.Keys) > 0 && (s.Start != "" || s.End != ""):
		return bad("either keys or a range of keys")
	case len(s.Keys) > MaxKeys:
		return bad("%d keys, at most %d are allowed", len(s.Keys), MaxKeys)
	case len(s.HashRanges) > MaxHashRanges:
		return bad("%d hash ranges, at most %d are allowed", len(s.HashRanges), MaxHashRanges)
	case s.bytes() > MaxSelectionBytes:
		return bad("%d bytes, at most %d are allowed", s.bytes(), MaxSelectionBytes)
	case s.End != "" && s.Start >= s.End:
		return bad("the range of keys is empty")
	}
	if s.Tenant != "" {
		if err := store.CheckTenant(s.Tenant); err != nil {
			return bad("%v", err)
		}
	}
	for _, bound := range []string{s.Start, s.End} {
		if bound == "" {
			continue
		}
		if err := store.CheckKey(bound); err != nil {
			return bad("%v", err)
		}
	}
	for _, k := range s.Keys {
		if err := store.CheckKey(k); err != nil {
			return bad("%v", err)
		}
	}
	return nil
}

// Check refuses what can't be a target.
func (t *Target) Check() error {
	if !membership.ValidNodeID(t.NodeID) {
		return refuse(store.ReasonTarget, "%.120q is no node id: 1 to %d letters, digits, dashes, underscores and dots are allowed", t.NodeID, membership.MaxNodeIDBytes)
	}
	if t.Addr == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(t.Addr)
	n, perr := strconv.ParseUint(port, 10, 16)
	if len(t.Addr) > membership.MaxAddrBytes || err != nil || perr != nil || n == 0 || host == "" || strings.ContainsFunc(host, notInHost) {
		return refuse(store.ReasonTarget, "target %s: %.300q is not an address: write host:port", t.NodeID, t.Addr)
	}
	return nil
}

func notInHost(r rune) bool { return r <= ' ' || r == '/' || r >= 0x7f }

// Validate refuses what can't be a move of the node.
func (s *Spec) Validate(nodeID string) error {
	if err := CheckID(s.ID); err != nil {
		return err
	}
	if s.Parent != "" {
		if err := CheckID(s.Parent); err != nil {
			return refuse(store.ReasonMove, "parent: %v", err)
		}
	}
	if err := s.Target.Check(); err != nil {
		return err
	}
	if err := s.What.Validate(); err != nil {
		return err
	}
	bad := func(format string, args ...any) error { return refuse(store.ReasonMove, format, args...) }
	narrow := s.What.Tenant != ""
	switch {
	case s.Target.NodeID == nodeID:
		return refuse(store.ReasonTarget, "%s is this node", nodeID)
	case !s.Purpose.known():
		return bad("the purpose %d is unknown", s.Purpose)
	case !s.Mode.known():
		return bad("the mode %d is unknown", s.Mode)
	case s.MaxBytesPerSecond != 0 && (s.MaxBytesPerSecond < MinBytesPerSecond || s.MaxBytesPerSecond > maxBytesPerSecond):
		return bad("%d bytes per second: 0 or at least %d", s.MaxBytesPerSecond, MinBytesPerSecond)
	case s.Purpose == PurposeRepair && (s.HandOver || s.Mode != Once):
		return bad("a repair is done once and hands nothing over")
	case s.HandOver && s.Mode != Once:
		return bad("what is handed over is moved once, and not followed")
	case s.HandOver && len(s.What.HashRanges) == 0:
		return bad("hand_over needs hash ranges: ownership is theirs")
	case s.HandOver && narrow:
		return bad("hand_over is of whole hash ranges, not of a tenant's part of them")
	case s.HandOver && selfOverlap(s.What.HashRanges):
		return bad("the hash ranges overlap one another")
	}
	return nil
}

// span is a range of tokens that does not wrap, both ends included.
type span struct{ from, to uint64 }

// selfOverlap reports whether two of the ranges share a token.
func selfOverlap(ranges []ring.HashRange) bool {
	var all []span
	for _, r := range ranges {
		switch {
		case r.Start < r.End:
			all = append(all, span{r.Start, r.End - 1})
		case r.Start == r.End:
			all = append(all, span{0, math.MaxUint64})
		default:
			all = append(all, span{r.Start, math.MaxUint64})
			if r.End > 0 {
				all = append(all, span{0, r.End - 1})
			}
		}
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	for i := 1; i < len(all); i++ {
		if all[i].from <= all[i-1].to {
			return true
		}
	}
	return false
}
