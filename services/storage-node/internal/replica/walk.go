package replica

import (
	"bytes"
	"context"
	"fmt"

	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

const (
	// bytesPerIter is what one engine iterator serves: a new one from the same snapshot lets go of
	// memtables and files that the old one pinned.
	bytesPerIter = 4 << 20
	// recordsPerIter is the same for records that are small.
	recordsPerIter = 200_000
	// recordsPerLook is how often a walk looks whether it was cut off.
	recordsPerLook = 256
)

// walk calls take with the records of spans in the snapshot, in their order, and renewed whenever it
// begins with a new iterator, with what was read since the last one. Key and value are valid until take
// returns.
func walk(ctx context.Context, snap store.Snapshot, spans []store.KeySpan, take func(key, value []byte) error, renewed func(bytes int) error) error {
	for _, span := range spans {
		for more := true; more; {
			var err error
			if more, err = walkPart(ctx, snap, &span, take, renewed); err != nil {
				return err
			}
		}
	}
	return nil
}

// walkPart walks with one iterator. more: there may be more, from span.Start on.
func walkPart(ctx context.Context, snap store.Snapshot, span *store.KeySpan, take func(key, value []byte) error, renewed func(bytes int) error) (more bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	it, err := snap.NewIter(span.Start, span.End)
	if err != nil {
		return false, fmt.Errorf("walk: %w", err)
	}
	size, n := 0, 0
	defer func() {
		if cerr := it.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("walk: %w", cerr)
		}
		if err == nil {
			err = renewed(size)
		}
	}()
	for ok := it.First(); ok; ok = it.Next() {
		if n++; n%recordsPerLook == 0 {
			if err := ctx.Err(); err != nil {
				return false, err
			}
		}
		key, value := it.Key(), it.Value()
		if err := it.Err(); err != nil {
			return false, fmt.Errorf("walk: %w", err)
		}
		if err := take(key, value); err != nil {
			return false, err
		}
		size += len(key) + len(value)
		if size >= bytesPerIter || n >= recordsPerIter {
			span.Start = append(bytes.Clone(it.Key()), 0)
			return true, nil
		}
	}
	return false, nil // Close returns the iterator's error
}
