package compare

import (
	"bytes"
	"context"
	"fmt"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/sidecar"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
)

const (
	// compareKeys is the limit of CompareKeysRequest.
	compareKeys = 1000
	// maxProvenKeys bounds the keys that are looked at one by one in the end.
	maxProvenKeys = 1000
)

// exchange sends the records of keys that differ to the side that lacks them, and keeps those that differ
// still in r.open. first says that the keys are seen for the first time. Keys ascend.
func (r *run) exchange(ctx context.Context, keys [][]byte, first bool) error {
	if len(keys) == 0 {
		return nil
	}
	rest, moved, err := r.send(ctx, keys)
	if err != nil {
		return err
	}
	if first {
		r.result.DifferingKeys += int64(len(keys))
		r.result.RepairedKeys += int64(moved)
	}
	r.Options.Progress(r.result.Progress)
	for _, k := range rest {
		if len(r.open) < maxOpenKeys {
			r.open = append(r.open, k)
		} else {
			r.giveUp(k, r.unequal)
		}
	}
	return nil
}

// send sends records of keys and returns the keys that differ after it, and how many were sent in any
// direction.
func (r *run) send(ctx context.Context, keys [][]byte) (rest [][]byte, moved int, err error) {
	there, err := r.transfer(ctx, own, other, keys)
	if err != nil {
		return nil, 0, err
	}
	if !r.Both {
		// Keys that Own does not have are nothing to Other.
		rest, err = r.lacking(ctx, among(keys, there))
		return rest, len(there), err
	}
	rest = keys
	if len(there) > 0 {
		if rest, err = r.differing(ctx, keys); err != nil {
			return nil, 0, err
		}
	}
	// Other has what Own had: only where it has more is there anything to send back.
	back, err := r.transfer(ctx, other, own, rest)
	if err != nil {
		return nil, 0, err
	}
	if rest, err = r.differing(ctx, rest); err != nil {
		return nil, 0, err
	}
	moved = len(there)
	for k := range back {
		if !there[k] {
			moved++
		}
	}
	return rest, moved, nil
}

// among returns the keys that are in a set, in their order.
func among(keys [][]byte, set map[string]bool) (out [][]byte) {
	for _, k := range keys {
		if set[string(k)] {
			out = append(out, k)
		}
	}
	return out
}

// settleOpen looks at keys that differ again, after pauses, and gives up those that differ at last.
func (r *run) settleOpen(ctx context.Context) error {
	for look := 1; look < r.Rounds && len(r.open) > 0; look++ {
		if err := sidecar.Pause(ctx, r.Pause(look)); err != nil {
			return err
		}
		r.result.Rounds++
		open := r.open
		r.open = nil
		err := chunks(open, chunkKeys, func(some [][]byte) error {
			differ := r.differing
			if !r.Both {
				differ = r.lacking
			}
			some, err := differ(ctx, some)
			if err != nil {
				return err
			}
			return r.exchange(ctx, some, false)
		})
		if err != nil {
			return err
		}
	}
	for n, k := range r.open {
		to := r.unequal
		if n < maxProvenKeys {
			proven, err := r.prove(ctx, k)
			if err != nil {
				return err
			}
			if proven {
				to = r.exchanged
			}
		}
		r.giveUp(k, to)
	}
	r.open = nil
	return nil
}

// giveUp notes the range of a key that was never seen equal.
func (r *run) giveUp(key []byte, in map[uint32]bool) {
	r.result.OpenKeys++
	if i, ok := r.rangeOf(key); ok {
		in[i] = true
	}
}

// prove reports whether a side has all that the other one had at a moment after the snapshots, and the
// other way round if Both. It believes no acknowledgement: it reads back.
func (r *run) prove(ctx context.Context, key []byte) (bool, error) {
	steps := [][2]int{{own, other}}
	if r.Both {
		steps = append(steps, [2]int{other, own})
	}
	for _, s := range steps {
		had, err := r.one(ctx, s[0], key)
		if err != nil {
			return false, err
		}
		if had == nil {
			continue
		}
		if _, err := r.transfer(ctx, s[0], s[1], [][]byte{key}); err != nil {
			return false, err
		}
		has, err := r.one(ctx, s[1], key)
		if err != nil {
			return false, err
		}
		if covered, err := r.covers(has, had); err != nil || !covered {
			return false, err
		}
	}
	return true, nil
}

// one reads a record.
func (r *run) one(ctx context.Context, i int, key []byte) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f, err := r.fetch(ctx, i, [][]byte{key})
	if err != nil {
		return nil, err
	}
	value, err := f.of(key)
	if err != nil {
		return nil, err
	}
	return value, f.end()
}

// differing returns the keys whose digests differ now.
func (r *run) differing(ctx context.Context, keys [][]byte) (out [][]byte, err error) {
	err = chunks(keys, compareKeys, func(some [][]byte) error {
		var told [2][][]byte
		err := both(ctx, func(ctx context.Context, i int) error {
			s := r.side(i)
			a, err := s.Client.CompareKeys(ctx, &replicav1.CompareKeysRequest{Peer: r.Peer, Keys: some, CollectedBefore: r.CollectedBefore})
			if err != nil {
				return fmt.Errorf("compare keys of %s: %w", s.Name, err)
			}
			if told[i] = a.GetDigests(); len(told[i]) != len(some) {
				return fmt.Errorf("compare keys of %s: %w: %d digests of %d keys", s.Name, errMalformed, len(told[i]), len(some))
			}
			for _, d := range told[i] {
				if n := len(d); n != 0 && n != digestBytes {
					return fmt.Errorf("compare keys of %s: %w: a digest of %d bytes", s.Name, errMalformed, n)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for i, k := range some {
			if !bytes.Equal(told[own][i], told[other][i]) {
				out = append(out, k)
			}
		}
		return nil
	})
	return out, err
}

// lacking returns the keys of which Other has not all that Own has. Other may well have more: so where
// digests differ the records themselves are compared.
func (r *run) lacking(ctx context.Context, keys [][]byte) (out [][]byte, err error) {
	keys, err = r.differing(ctx, keys)
	if err != nil {
		return nil, err
	}
	err = chunks(keys, chunkKeys, func(some [][]byte) error {
		var streams [2]*records
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		// Own first: what it has then is to be at Other, whatever is written after it.
		for i := range streams {
			if streams[i], err = r.fetch(ctx, i, some); err != nil {
				return err
			}
		}
		for _, k := range some {
			mine, err := streams[own].of(k)
			if err != nil {
				return err
			}
			theirs, err := streams[other].of(k)
			if err != nil {
				return err
			}
			covered, err := r.covers(theirs, mine)
			if err != nil {
				return err
			}
			if !covered {
				out = append(out, k)
			}
		}
		return streams[own].end(streams[other])
	})
	return out, err
}

// covers reports whether a record has all that another has, apart from what may be collected.
func (r *run) covers(has, wanted []byte) (bool, error) {
	if wanted == nil {
		return true, nil
	}
	joined := wanted
	if has != nil {
		var err error
		if joined, err = causal.JoinEncoded(nil, has, wanted); err != nil {
			return false, fmt.Errorf("join two records: %w", err)
		}
	}
	var sides [2][]byte
	for i, b := range [...][]byte{has, joined} {
		if b == nil {
			continue
		}
		out, _, left, err := causal.CollectEncoded(nil, b, r.CollectedBefore)
		if err != nil {
			return false, fmt.Errorf("collect a record: %w", err)
		}
		if left {
			sides[i] = out
		}
	}
	return bytes.Equal(sides[0], sides[1]), nil
}
