package transfer

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/codes"

	"github.com/pairdb/pairdb/libs/client"
)

// Writer stores a batch durably before it returns. *client.Client is one.
type Writer interface {
	Write(ctx context.Context, b *client.Batch) error
}

// ImportOptions of one import.
type ImportOptions struct {
	Format Format
	// Skip bad lines and refused records, and count them, instead of stopping at the first.
	Skip bool
	// OnSkip is told each skipped line; calls come one at a time.
	OnSkip func(*LineError)
	// FromLine is the first line that is stored; the lines before it are read and checked only.
	// Default 1.
	FromLine int64
	// Parallel is how many batches are under way at once; default 4.
	Parallel int
	// BatchRecords and BatchBytes limit one batch; default 1,000 and 256 KiB.
	BatchRecords, BatchBytes int
	// Progress is told the bytes of input that are stored; may be called from several goroutines.
	Progress func(bytes int64)
}

// ImportResult of one import.
type ImportResult struct {
	// Stored and Skipped count records.
	Stored, Skipped int64
	// StoredLines is how many lines from the first are done for sure: an import that goes on with
	// FromLine = StoredLines + 1 misses nothing.
	StoredLines int64
}

// batch is what one call stores, with the lines it came from.
type batch struct {
	client.Batch
	number     int64 // 0, 1, 2, … in the order of the input
	lines      []int64
	lastLine   int64
	inputBytes int64
}

// importer is one running import.
type importer struct {
	o       ImportOptions
	w       Writer
	free    chan *batch // capacity Parallel + 1: all batches there are
	stored  atomic.Int64
	skipped atomic.Int64

	mu        sync.Mutex
	err       error // first failure
	cancel    context.CancelFunc
	done      map[int64]int64 // finished batches after a gap: number → last line
	nextDone  int64           // all batches before this number are finished
	doneLines int64
}

// Import reads records from r and stores them. Each record is stored once; a key that stands in
// the input twice is an error of its later line, since batches are under way at the same time and
// neither line could be said to be the last.
func Import(ctx context.Context, r io.Reader, w Writer, o ImportOptions) (ImportResult, error) {
	o.setDefaults()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	im := &importer{o: o, w: w, cancel: cancel, free: make(chan *batch, o.Parallel+1), done: map[int64]int64{}}
	for range o.Parallel + 1 {
		im.free <- &batch{Batch: client.Batch{AtLeastOnce: true}} // an import is the writer of its keys
	}
	full := make(chan *batch) // no capacity: the free list bounds the work
	var senders sync.WaitGroup
	for range o.Parallel {
		senders.Go(func() {
			for b := range full {
				im.send(ctx, b)
			}
		})
	}
	readErr := im.read(ctx, r, full)
	close(full)
	senders.Wait()
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.err == nil {
		im.err = readErr
	}
	return ImportResult{Stored: im.stored.Load(), Skipped: im.skipped.Load(), StoredLines: im.doneLines}, im.err
}

func (o *ImportOptions) setDefaults() {
	if o.FromLine == 0 {
		o.FromLine = 1
	}
	if o.Parallel == 0 {
		o.Parallel = 4
	}
	if o.BatchRecords == 0 {
		o.BatchRecords = client.MaxBatchOps
	}
	if o.BatchBytes == 0 {
		o.BatchBytes = 256 << 10
	}
	if o.OnSkip == nil {
		o.OnSkip = func(*LineError) {}
	}
	if o.Progress == nil {
		o.Progress = func(int64) {}
	}
}

// read parses the input into batches. What stands before a bad line is stored all the same.
func (im *importer) read(ctx context.Context, r io.Reader, full chan<- *batch) error {
	lines := newLineReader(r)
	seen := newKeySet()
	var number int64
	b, err := im.take(ctx, &number)
	if err != nil {
		return err
	}
	for {
		line, terminated, err := lines.next()
		if errors.Is(err, io.EOF) {
			return im.hand(ctx, full, b)
		}
		if err == nil {
			err = im.add(b, seen, line, terminated, lines.line)
		}
		if err != nil {
			return errors.Join(im.hand(ctx, full, b), err)
		}
		if b.Len() >= im.o.BatchRecords || b.Bytes() >= im.o.BatchBytes {
			if err := im.hand(ctx, full, b); err != nil {
				return err
			}
			if b, err = im.take(ctx, &number); err != nil {
				return err
			}
		}
	}
}

// add parses one line into the batch; an error ends the import.
func (im *importer) add(b *batch, seen *keySet, line []byte, terminated bool, number int64) error {
	key, value, err := im.o.Format.Parse(line, terminated)
	if err == nil {
		if first, ok := seen.add(key, number); !ok {
			err = fmt.Errorf("key %q stands in line %d already", key, first)
		}
	}
	if err != nil {
		if err := im.refuse(&LineError{Line: number, Err: err}); err != nil {
			return err
		}
	}
	b.lastLine = number
	b.inputBytes += int64(len(line)) + 1
	if err == nil && number >= im.o.FromLine {
		b.Put(key, value)
		b.lines = append(b.lines, number)
	}
	return nil
}

// refuse skips a line, or returns the error that ends the import.
func (im *importer) refuse(e *LineError) error {
	if !im.o.Skip {
		return e
	}
	im.skipped.Add(1)
	im.mu.Lock()
	defer im.mu.Unlock()
	im.o.OnSkip(e)
	return nil
}

func (im *importer) take(ctx context.Context, number *int64) (*batch, error) {
	select {
	case b := <-im.free:
		b.Reset()
		b.lines, b.inputBytes, b.number = b.lines[:0], 0, *number
		*number++
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (im *importer) hand(ctx context.Context, full chan<- *batch, b *batch) error {
	select {
	case full <- b:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// send stores one batch and puts it back into the free list.
func (im *importer) send(ctx context.Context, b *batch) {
	err := im.w.Write(ctx, &b.Batch)
	refused := int64(0)
	if err != nil {
		refused, err = im.refusals(b, err)
	}
	if err == nil {
		im.stored.Add(int64(b.Len()) - refused)
		im.o.Progress(b.inputBytes)
	}
	im.finish(b, err)
	im.free <- b
}

// refusals turns the refused items of a batch into skipped lines; it returns the error that ends
// the import, if any.
func (im *importer) refusals(b *batch, err error) (int64, error) {
	items := refusedItems(err)
	if len(items) == 0 {
		return 0, err
	}
	for _, item := range items {
		if err := im.refuse(&LineError{Line: b.lines[item.Index], Err: item}); err != nil {
			return 0, err
		}
	}
	return int64(len(items)), nil
}

// refusedItems returns the items that the node can never take, if these are all that failed.
func refusedItems(err error) []*client.ItemError {
	var items []*client.ItemError
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			var item *client.ItemError
			if !errors.As(e, &item) || item.Code != codes.InvalidArgument {
				return nil // not the fault of the line
			}
			items = append(items, item)
		}
	}
	return items
}

// finish records that a batch is stored, or that the import has failed.
func (im *importer) finish(b *batch, err error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if err != nil {
		if im.err == nil {
			im.err = err
		}
		im.cancel()
		return
	}
	im.done[b.number] = b.lastLine
	for {
		last, ok := im.done[im.nextDone]
		if !ok {
			return
		}
		delete(im.done, im.nextDone)
		im.nextDone++
		im.doneLines = max(im.doneLines, last)
	}
}

// keySet remembers which keys the input had, by a 64-bit hash: 16 bytes a key, and one wrong
// "already there" in 10^19 / n^2 imports of n keys.
type keySet struct {
	seed  maphash.Seed
	lines map[uint64]int64
}

func newKeySet() *keySet { return &keySet{seed: maphash.MakeSeed(), lines: map[uint64]int64{}} }

// add returns the line of the key's first occurrence and whether it is this one.
func (s *keySet) add(key string, line int64) (int64, bool) {
	h := maphash.String(s.seed, key)
	if first, ok := s.lines[h]; ok {
		return first, false
	}
	s.lines[h] = line
	return line, true
}
