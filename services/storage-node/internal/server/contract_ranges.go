package server

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"slices"

	"github.com/pairdb/pairdb/libs/ring"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
)

// maxContractRanges is how many ranges a stream may be asked for. A node has 150 places on the ring
// unless it is told otherwise, and a coordinator names one range for each that it gives up.
const maxContractRanges = 4096

// tokens are the tokens from first to last, both included, first ≤ last: what half-open ranges of 64 bits
// can't express, the whole ring beside none of it, they can.
type tokens struct{ first, last uint64 }

// contractRanges returns the ranges of a coordinator, which include both of their ends, as half-open ones:
// sorted, none touching another, and so the same for everybody who means the same tokens. A range whose
// start is above its end wraps; one that starts where it ends is the whole ring.
func contractRanges(in []*storagenodev1.KeyRange) ([]ring.HashRange, error) {
	if len(in) == 0 {
		return nil, fmt.Errorf("%w: key_ranges is empty, so there is nothing to stream", errLimit)
	}
	if len(in) > maxContractRanges {
		return nil, fmt.Errorf("%w: %d key_ranges, at most %d allowed", errLimit, len(in), maxContractRanges)
	}
	parts := make([]tokens, 0, len(in)+1)
	for _, r := range in {
		switch start, end := r.GetStartHash(), r.GetEndHash(); {
		case start == end:
			parts = append(parts, tokens{0, math.MaxUint64})
		case start < end:
			parts = append(parts, tokens{start, end})
		default:
			parts = append(parts, tokens{start, math.MaxUint64}, tokens{0, end})
		}
	}
	parts = join(parts)
	n := len(parts)
	if n > 1 && parts[0].first == 0 && parts[n-1].last == math.MaxUint64 {
		parts[n-1].last = parts[0].last // it wraps
		parts = parts[1:]
	}
	out := make([]ring.HashRange, len(parts))
	for i, p := range parts {
		out[i] = ring.HashRange{Start: p.first, End: p.last + 1} // behind the last token is the first one
	}
	return out, nil
}

// join sorts tokens and makes one of those that overlap or follow each other.
func join(parts []tokens) []tokens {
	slices.SortFunc(parts, func(a, b tokens) int { return cmp.Compare(a.first, b.first) })
	out := parts[:1]
	for _, p := range parts[1:] {
		last := &out[len(out)-1]
		if last.last == math.MaxUint64 || p.first <= last.last+1 {
			last.last = max(last.last, p.last)
			continue
		}
		out = append(out, p)
	}
	return out
}

// contractMoveID returns the beginning of the ids of all moves for the same order of a coordinator: what
// it is, and everything that it names.
func contractMoveID(kind string, parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write(p)
	}
	return kind + "-" + hex.EncodeToString(h.Sum(nil)[:8]) + "-"
}

// rangeBytes is ranges for contractMoveID.
func rangeBytes(ranges []ring.HashRange) []byte {
	out := make([]byte, 0, 16*len(ranges))
	for _, r := range ranges {
		out = binary.BigEndian.AppendUint64(out, r.Start)
		out = binary.BigEndian.AppendUint64(out, r.End)
	}
	return out
}
