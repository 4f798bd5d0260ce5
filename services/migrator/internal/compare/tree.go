package compare

import (
	"bytes"
	"context"
	"fmt"
	"math/bits"

	"github.com/pairdb/pairdb/libs/merkle"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
)

const (
	digestBytes = merkle.DigestBytes
	// maxLeavesPerRange and maxLeaves are the limits of DigestRequest.
	maxLeavesPerRange = 65_536
	maxLeaves         = 1 << 20
	// maxToldLeaves of one answer: half of what is allowed, since 262,144 are just above the 4 MiB that a
	// gRPC message may have by default.
	maxToldLeaves = 131_072
	// maxAskedLeaves of one KeyDigests. Each call reads the whole selection: fewer are better.
	maxAskedLeaves = 65_536
	// recordsPerLeaf is what the choice of leaves aims at: one key that differs has so many digests sent.
	recordsPerLeaf = 64
	// leavesUnknown is the number of leaves of a selection of unknown size: a mebibyte in the node.
	leavesUnknown = 65_536
)

// leavesPerRange is the power of two that gives leaves of about recordsPerLeaf records.
func leavesPerRange(ranges int, records uint64) uint32 {
	want := uint64(leavesUnknown)
	if records > 0 {
		want = records / recordsPerLeaf
	}
	want = min(want, maxLeaves) / uint64(ranges)
	return uint32(1) << (bits.Len64(max(min(want, maxLeavesPerRange), 1)) - 1)
}

// own and other are the indexes of the two sides.
const own, other = 0, 1

func (r *run) side(i int) Side {
	if i == own {
		return r.Own
	}
	return r.Other
}

// both calls f for either side at once and waits for both. The first error ends the other call.
func both(ctx context.Context, f func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, 2)
	for _, i := range [...]int{own, other} {
		go func() { errs <- f(ctx, i) }()
	}
	first := <-errs
	if first != nil {
		cancel()
	}
	if second := <-errs; first == nil {
		return second
	}
	return first
}

// all is Run.
func (r *run) all(ctx context.Context) error {
	var trees [2]*replicav1.DigestResponse
	err := both(ctx, func(ctx context.Context, i int) (err error) {
		trees[i], err = r.digest(ctx, r.side(i))
		return err
	})
	if err != nil {
		return err
	}
	r.tree = [...]uint64{trees[own].GetTree(), trees[other].GetTree()}
	r.result.OwnTree, r.result.OtherTree = r.tree[own], r.tree[other]
	r.result.OwnSequence, r.result.OtherSequence = trees[own].GetSequence(), trees[other].GetSequence()
	r.result.ComparedKeys = int64(min(max(trees[own].GetRecords(), trees[other].GetRecords()), 1<<62))
	var differ []uint32
	for i, root := range trees[own].GetRoots() {
		if bytes.Equal(root, trees[other].GetRoots()[i]) {
			r.result.EqualRanges = append(r.result.EqualRanges, uint32(i))
		} else {
			differ = append(differ, uint32(i))
		}
	}
	r.Options.Progress(r.result.Progress)
	if len(differ) == 0 {
		return nil
	}
	if err := r.ranges(ctx, differ); err != nil {
		return err
	}
	r.conclude()
	return nil
}

// conclude tells each range as equal, exchanged or unequal.
func (r *run) conclude() {
	r.result.EqualRanges = r.result.EqualRanges[:0]
	for i := range uint32(r.result.Ranges) {
		to := &r.result.EqualRanges
		switch {
		case r.unequal[i]:
			to = &r.result.UnequalRanges
		case r.exchanged[i]:
			to = &r.result.ExchangedRanges
		}
		*to = append(*to, i)
	}
}

func (r *run) digest(ctx context.Context, s Side) (*replicav1.DigestResponse, error) {
	d, err := s.Client.Digest(ctx, &replicav1.DigestRequest{
		Peer: r.Peer, What: r.What, LeavesPerRange: r.LeavesPerRange, CollectedBefore: r.CollectedBefore, Renew: r.Renew,
	})
	if err != nil {
		return nil, fmt.Errorf("digest of %s: %w", s.Name, err)
	}
	if len(d.GetRoots()) != r.result.Ranges {
		return nil, fmt.Errorf("digest of %s: %w: %d roots of %d ranges", s.Name, errMalformed, len(d.GetRoots()), r.result.Ranges)
	}
	for _, root := range d.GetRoots() {
		if len(root) != digestBytes {
			return nil, fmt.Errorf("digest of %s: %w: a root of %d bytes", s.Name, errMalformed, len(root))
		}
	}
	return d, nil
}

// ranges compares the leaves of ranges whose roots differ, and the keys of leaves that differ.
func (r *run) ranges(ctx context.Context, differ []uint32) error {
	r.result.Rounds = 1
	var leaves []*replicav1.LeafID
	for len(differ) > 0 {
		n := min(max(maxToldLeaves/int(r.LeavesPerRange), 1), len(differ))
		some, err := r.leaves(ctx, differ[:n])
		if err != nil {
			return err
		}
		differ = differ[n:]
		leaves = append(leaves, some...)
		for len(leaves) >= maxAskedLeaves || len(differ) == 0 && len(leaves) > 0 {
			n := min(maxAskedLeaves, len(leaves))
			if err := r.keys(ctx, leaves[:n]); err != nil {
				return err
			}
			leaves = leaves[n:]
		}
	}
	return r.settleOpen(ctx)
}

// leaves returns the leaves that differ.
func (r *run) leaves(ctx context.Context, ranges []uint32) (out []*replicav1.LeafID, err error) {
	n := int(r.LeavesPerRange)
	if n == 1 { // the root is the leaf
		for _, i := range ranges {
			out = append(out, &replicav1.LeafID{Range: i})
		}
		return out, nil
	}
	var told [2][]byte
	err = both(ctx, func(ctx context.Context, i int) error {
		s := r.side(i)
		a, err := s.Client.Leaves(ctx, &replicav1.LeavesRequest{Peer: r.Peer, Tree: r.tree[i], Ranges: ranges})
		if err != nil {
			return fmt.Errorf("leaves of %s: %w", s.Name, err)
		}
		if told[i] = a.GetDigests(); len(told[i]) != len(ranges)*n*digestBytes {
			return fmt.Errorf("leaves of %s: %w: %d bytes of %d leaves", s.Name, errMalformed, len(told[i]), len(ranges)*n)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for at := 0; at < len(told[own]); at += digestBytes {
		if !bytes.Equal(told[own][at:at+digestBytes], told[other][at:at+digestBytes]) {
			leaf := at / digestBytes
			out = append(out, &replicav1.LeafID{Range: ranges[leaf/n], Leaf: uint32(leaf % n)})
		}
	}
	return out, nil
}
