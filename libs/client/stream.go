package client

import (
	"context"
	"fmt"
	"iter"
	"unicode/utf8"

	"google.golang.org/grpc"

	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

// Record is the complete state of one key as the node knows it.
type Record = datav1.Record

// Winner returns the value of a record as a read would: the first live sibling.
func Winner(r *Record) (value []byte, found bool) {
	for _, s := range r.Siblings {
		if !s.Tombstone {
			return s.Value, true
		}
	}
	return nil, false
}

// Keys lists the live keys in [start, end), in order; an empty end is the end of the tenant.
func (c *Client) Keys(ctx context.Context, start, end string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		req := &storagev1.GetKeyRangeRequest{
			Tenant: c.options.Tenant, Range: &datav1.KeyRange{Start: start, End: end}, MaxKeys: 10_000,
		}
		for {
			page, err := call(ctx, c, reads, func(ctx context.Context, o grpc.CallOption) (*storagev1.GetKeyRangeResponse, error) {
				return c.storage.GetKeyRange(ctx, req, o)
			})
			if err != nil {
				yield("", fmt.Errorf("list keys: %w", err))
				return
			}
			for _, k := range page.Keys {
				if !yield(k.Key, nil) {
					return
				}
			}
			if page.NextPageToken == "" {
				return
			}
			req.PageToken = page.NextPageToken
		}
	}
}

// ScanOption changes one scan.
type ScanOption func(*scanOptions)

type scanOptions struct{ sequence *uint64 }

// SnapshotSequence stores at to, before the first record is delivered, the sequence after which a Watch
// has every change that the scan has not seen. Open that at once: the node keeps changes only as long as
// its commit log, and longer while a watch needs them.
func SnapshotSequence(to *uint64) ScanOption { return func(o *scanOptions) { o.sequence = to } }

// Scan walks the records in [start, end) in key order. A broken stream is resumed from its cursor,
// without a gap and without a repeat; the records after a resumption are of a newer snapshot.
func (c *Client) Scan(ctx context.Context, start, end string, opts ...ScanOption) iter.Seq2[*Record, error] {
	var o scanOptions
	for _, f := range opts {
		f(&o)
	}
	return func(yield func(*Record, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		req := &storagev1.StreamKeysRequest{
			Tenant: c.options.Tenant,
			What:   &storagev1.StreamKeysRequest_Range{Range: &datav1.KeyRange{Start: start, End: end}},
		}
		retry := c.newRetrier()
		sequence := o.sequence
		for {
			done, err := c.scanOnce(ctx, req, retry, &sequence, yield)
			if done {
				return
			}
			if e := asError(err); !retry.wait(ctx, e) {
				yield(nil, fmt.Errorf("scan: %w", e))
				return
			}
		}
	}
}

// scanOnce runs one stream and keeps the cursor in req. It reports true when the walk has ended. The
// sequence is that of the first snapshot: the records that are delivered already are of that.
func (c *Client) scanOnce(ctx context.Context, req *storagev1.StreamKeysRequest, retry *retrier, sequence **uint64, yield func(*Record, error) bool) (bool, error) {
	stream, err := c.storage.StreamKeys(ctx, req)
	if err != nil {
		return false, err
	}
	for {
		msg, err := stream.Recv()
		if err != nil {
			return isEOF(err), err
		}
		retry.progress()
		if *sequence != nil {
			**sequence, *sequence = msg.Sequence, nil
		}
		for _, r := range msg.Records {
			if !yield(r, nil) {
				return true, nil
			}
		}
		req.Cursor = msg.Cursor
	}
}

// Prefix returns the range [start, end) of the keys that begin with prefix, for Keys, Scan and Watch.
func Prefix(prefix string) (start, end string) { return prefix, prefixEnd(prefix) }

// prefixEnd is the smallest valid key above every key with the prefix: keys are UTF-8, so the last
// code point that can be raised is.
func prefixEnd(prefix string) string {
	r := []rune(prefix)
	for i := len(r) - 1; i >= 0; i-- {
		next := r[i] + 1
		if next == 0xD800 { // surrogates are no code points
			next = 0xE000
		}
		if next == 0x7F {
			next = 0x80 // DEL is a control character, which no key contains
		}
		if next >= 0x80 && next < 0xA0 {
			next = 0xA0 // likewise the C1 controls
		}
		if next <= utf8.MaxRune {
			return string(append(r[:i:i], next))
		}
	}
	return ""
}
