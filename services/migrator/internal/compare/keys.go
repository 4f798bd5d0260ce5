package compare

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"

	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
)

const (
	// chunkKeys and chunkBytes bound what is exchanged at once: FetchRequest takes 10,000 keys, and a gRPC
	// message of 4 MiB must do for their names, which have up to 1.3 KiB each.
	chunkKeys  = 10_000
	chunkBytes = 2 << 20
	// maxOpenKeys bounds the keys that are looked at again; what is above is told as different.
	maxOpenKeys = 100_000
)

// keys compares the keys of leaves that differ, and exchanges those that do.
func (r *run) keys(ctx context.Context, leaves []*replicav1.LeafID) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var streams [2]*digests
	err := both(ctx, func(_ context.Context, i int) error {
		s := r.side(i)
		// The stream lives longer than the call: its context is that of keys.
		stream, err := s.Client.KeyDigests(ctx, &replicav1.KeyDigestsRequest{Peer: r.Peer, Tree: r.tree[i], Leaves: leaves})
		if err != nil {
			return fmt.Errorf("key digests of %s: %w", s.Name, err)
		}
		streams[i] = &digests{name: s.Name, stream: stream}
		return streams[i].next()
	})
	if err != nil {
		return err
	}
	c := chunk{max: chunkKeys, maxBytes: chunkBytes}
	a, b := streams[own], streams[other]
	for !a.done || !b.done {
		// The next key of either, and what each side says of it.
		order := compareHeads(a, b)
		differs, key := false, a.key
		switch {
		case order == 0:
			differs = !bytes.Equal(a.digest, b.digest)
		case order < 0:
			differs = len(a.digest) > 0
		default:
			differs, key = len(b.digest) > 0, b.key
		}
		if differs {
			if c.full(key) {
				if err := r.exchange(ctx, c.take(), true); err != nil {
					return err
				}
			}
			if _, ok := r.rangeOf(key); !ok {
				return fmt.Errorf("key digests: %w: a key that was not asked for", errMalformed)
			}
			c.add(key)
		}
		if order <= 0 {
			if err := a.next(); err != nil {
				return err
			}
		}
		if order >= 0 {
			if err := b.next(); err != nil {
				return err
			}
		}
	}
	return r.exchange(ctx, c.take(), true)
}

// compareHeads orders the next keys of two streams; one that is done is behind.
func compareHeads(a, b *digests) int {
	switch {
	case a.done:
		return 1
	case b.done:
		return -1
	}
	return bytes.Compare(a.key, b.key)
}

// digests reads a stream of key digests one by one.
type digests struct {
	name   string
	stream grpc.ServerStreamingClient[replicav1.KeyDigestsResponse]
	rest   []*replicav1.KeyDigest
	// key and digest are the next ones unless done.
	key, digest []byte
	done        bool
}

func (d *digests) next() error {
	for len(d.rest) == 0 {
		m, err := d.stream.Recv()
		if errors.Is(err, io.EOF) {
			d.done, d.key, d.digest = true, nil, nil
			return nil
		}
		if err != nil {
			return fmt.Errorf("key digests of %s: %w", d.name, err)
		}
		d.rest = m.GetKeys()
	}
	head := d.rest[0]
	d.rest = d.rest[1:]
	if n := len(head.GetDigest()); n != 0 && n != digestBytes {
		return fmt.Errorf("key digests of %s: %w: a digest of %d bytes", d.name, errMalformed, n)
	}
	if bytes.Compare(head.GetKey(), d.key) <= 0 { // the first is above the empty key too
		return fmt.Errorf("key digests of %s: %w: keys out of order", d.name, errMalformed)
	}
	d.key, d.digest = head.GetKey(), head.GetDigest()
	return nil
}

// chunk gathers keys up to a size.
type chunk struct {
	max, maxBytes int
	keys          [][]byte
	bytes         int
}

// full reports whether a key has no room any more. A key always has in an empty chunk.
func (c *chunk) full(key []byte) bool {
	return len(c.keys) > 0 && (len(c.keys) >= c.max || c.bytes+len(key) > c.maxBytes)
}

func (c *chunk) add(key []byte) {
	c.keys = append(c.keys, key)
	c.bytes += len(key)
}

func (c *chunk) take() [][]byte {
	keys := c.keys
	c.keys, c.bytes = nil, 0
	return keys
}

// chunks calls f with the keys in chunks.
func chunks(keys [][]byte, maxKeys int, f func(some [][]byte) error) error {
	c := chunk{max: maxKeys, maxBytes: chunkBytes}
	for _, k := range keys {
		if c.full(k) {
			if err := f(c.take()); err != nil {
				return err
			}
		}
		c.add(k)
	}
	if len(c.keys) == 0 {
		return nil
	}
	return f(c.take())
}
