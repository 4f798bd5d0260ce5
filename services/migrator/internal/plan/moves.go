package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"

	"github.com/pairdb/pairdb/libs/ring"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

const (
	// maxRanges is how many hash ranges a move may have.
	maxRanges = 4096
	// maxIDBytes is how long the id of a move may be.
	maxIDBytes = 64
)

// stands returns where a move stands: for one that failed, where it goes on.
func stands(m *movev1.Move) movev1.State {
	if m.GetState() == movev1.State_STATE_FAILED {
		return m.GetResumeState()
	}
	return m.GetState()
}

// ended reports whether nothing follows any more.
func ended(m *movev1.Move) bool {
	return m.GetState() == movev1.State_STATE_RELEASED || m.GetState() == movev1.State_STATE_CANCELLED
}

// reached reports whether a move has done what it is for: its ranges have their owner, or the copy is
// complete.
func reached(m *movev1.Move) bool {
	s := stands(m)
	return s == movev1.State_STATE_COMMITTED || s == movev1.State_STATE_RELEASED
}

// cancellable reports whether a move can be called off at once.
func cancellable(m *movev1.Move) bool {
	return !ended(m) && !m.GetCancelling() && stands(m) < movev1.State_STATE_FENCED
}

// rangesOf returns the ranges of moves that are accepted by a function, in normal form.
func rangesOf(moves []*movev1.Move, accept func(*movev1.Move) bool) []ring.HashRange {
	var all []ring.HashRange
	for _, m := range moves {
		if accept(m) {
			all = append(all, fromWire(m.GetWhat().GetHashRanges())...)
		}
	}
	return ring.Normal(all)
}

// word makes a part of an id from a node id: what may not stand in an id, or is too long, is told apart by
// a hash.
func word(nodeID string, maxBytes int) string {
	lower := strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.' {
			return c
		}
		if c >= 'A' && c <= 'Z' {
			return c - 'A' + 'a'
		}
		return '-'
	}, nodeID)
	if lower == nodeID && len(nodeID) <= maxBytes {
		return nodeID
	}
	sum := sha256.Sum256([]byte(nodeID))
	tail := "-" + hex.EncodeToString(sum[:4])
	return lower[:max(min(len(lower), maxBytes-len(tail)), 0)] + tail
}

// bootstrapID returns what the moves of a bootstrap are called: the same for one life of a data directory.
func bootstrapID(incarnation string) string { return bootstrapPrefix + shortID(incarnation) }

// returnID is that of what comes back from drains that were called off.
func returnID(incarnation string) string { return returnPrefix + shortID(incarnation) }

const bootstrapPrefix, returnPrefix = "bootstrap-", "return-"

// shortID makes a part of ids from an incarnation.
func shortID(incarnation string) string {
	short := incarnation[:min(len(incarnation), 8)]
	if word(short, 8) != short || short == "" {
		sum := sha256.Sum256([]byte(incarnation))
		short = hex.EncodeToString(sum[:4])
	}
	return short
}

// suffixBytes of an id are kept free for its number.
const suffixBytes = 6

// moveID returns the first id of <prefix><node> and <prefix><node>.2, .3… that is not taken.
func moveID(prefix, nodeID string, taken func(id string) bool) string {
	base := prefix + word(nodeID, maxIDBytes-suffixBytes-len(prefix))
	id := base
	for n := 2; taken(id); n++ {
		id = base + "." + strconv.Itoa(n)
	}
	return id
}

// chunked cuts ranges into lists that a move may have.
func chunked(ranges []ring.HashRange) [][]ring.HashRange {
	return slices.Collect(slices.Chunk(ranges, maxRanges))
}
