package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/pairdb/pairdb/libs/client"
)

// countingWriter fails when told to, and remembers how many operations it stored.
type countingWriter struct {
	mu    sync.Mutex
	calls int
	ops   int
	fail  func(call int) error
}

func (w *countingWriter) Write(_ context.Context, b *client.Batch) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls++
	if w.fail != nil {
		if err := w.fail(w.calls); err != nil {
			return err
		}
	}
	if !b.AtLeastOnce {
		return errors.New("a batch whose answer was lost would not be sent again")
	}
	w.ops += b.Len()
	return nil
}

func lines(from, to int) string {
	var b strings.Builder
	for i := from; i <= to; i++ {
		fmt.Fprintf(&b, "key-%06d\tvalue-%d\n", i, i)
	}
	return b.String()
}

func TestImportStoresEveryLineOnce(t *testing.T) {
	// A lost or doubled batch would show in the count.
	w := &countingWriter{}
	var bytes int64
	var mu sync.Mutex
	input := lines(1, 25_000)
	res, err := Import(t.Context(), strings.NewReader(input), w, ImportOptions{Format: TSV, Progress: func(n int64) {
		mu.Lock()
		defer mu.Unlock()
		bytes += n
	}})
	require.NoError(t, err)
	require.Equal(t, ImportResult{Stored: 25_000, StoredLines: 25_000}, res)
	require.Equal(t, 25_000, w.ops)
	require.EqualValues(t, len(input), bytes)
}

func TestImportStopsAtABadLineAndSaysWhereToGoOn(t *testing.T) {
	// What stands before the bad line is stored, nothing after it, and no line is passed over.
	input := lines(1, 1500) + "no tab here\n" + lines(1502, 3000)
	w := &countingWriter{}
	res, err := Import(t.Context(), strings.NewReader(input), w, ImportOptions{Format: TSV})
	var bad *LineError
	require.ErrorAs(t, err, &bad)
	require.EqualValues(t, 1501, bad.Line)
	require.Equal(t, ImportResult{Stored: 1500, StoredLines: 1500}, res)
	require.Equal(t, 1500, w.ops)
}

func TestImportSkipsAndCountsBadLines(t *testing.T) {
	input := lines(1, 10) + "bad\n" + lines(11, 20) + "key-000005\tagain\n" + "cut\toff"
	w := &countingWriter{}
	var skipped []string
	res, err := Import(t.Context(), strings.NewReader(input), w, ImportOptions{
		Format: TSV, Skip: true, OnSkip: func(e *LineError) { skipped = append(skipped, e.Error()) },
	})
	require.NoError(t, err)
	require.Equal(t, ImportResult{Stored: 20, Skipped: 3, StoredLines: 23}, res)
	require.Len(t, skipped, 3)
	require.Contains(t, skipped[0], "line 11: no tab")
	require.Contains(t, skipped[1], `line 22: key "key-000005" stands in line 5 already`)
	require.Contains(t, skipped[2], "line 23: no line feed")
}

func TestImportThatFailsGoesOnFromItsLine(t *testing.T) {
	// Batches finish in any order: the line to go on from must lie before the first gap.
	broken := errors.New("connection lost")
	w := &countingWriter{fail: func(call int) error {
		if call == 7 {
			return broken
		}
		return nil
	}}
	input := lines(1, 20_000)
	res, err := Import(t.Context(), strings.NewReader(input), w, ImportOptions{Format: TSV, BatchRecords: 500})
	require.ErrorIs(t, err, broken)
	require.LessOrEqual(t, res.StoredLines, int64(10*500), "the failed batch is one of the first ten: four are under way at once")

	again := &countingWriter{}
	rest, err := Import(t.Context(), strings.NewReader(input), again, ImportOptions{Format: TSV, FromLine: res.StoredLines + 1})
	require.NoError(t, err)
	require.EqualValues(t, 20_000-res.StoredLines, rest.Stored)
}

func TestImportReportsRefusedItemsByTheirLine(t *testing.T) {
	// The node refuses an item of a batch; the user knows lines, not items.
	refuse := func(int) error {
		return errors.Join(&client.ItemError{Index: 1, Code: codes.InvalidArgument, Reason: "INVALID_ARGUMENT_KEY", Message: "key too long"})
	}
	_, err := Import(t.Context(), strings.NewReader("bad\n"+lines(1, 3)), &countingWriter{fail: refuse}, ImportOptions{Format: TSV, Skip: true, OnSkip: func(*LineError) {}})
	require.NoError(t, err)

	res, err := Import(t.Context(), strings.NewReader(lines(1, 3)), &countingWriter{fail: refuse}, ImportOptions{Format: TSV})
	var bad *LineError
	require.ErrorAs(t, err, &bad)
	require.EqualValues(t, 2, bad.Line)
	require.Zero(t, res.StoredLines)
}

func TestImportDoesNotSkipWhatTheNodeMayTakeLater(t *testing.T) {
	// A full disk is no bad line: skipping it would lose records that are in order.
	full := func(int) error {
		return errors.Join(&client.ItemError{Index: 0, Code: codes.ResourceExhausted, Reason: "DISK_FULL", Message: "disk full"})
	}
	res, err := Import(t.Context(), strings.NewReader(lines(1, 3)), &countingWriter{fail: full}, ImportOptions{Format: TSV, Skip: true})
	require.ErrorContains(t, err, "DISK_FULL")
	require.Zero(t, res.Skipped)
}

func TestImportEndsWithItsContext(t *testing.T) {
	// Ctrl-C while the input is still coming.
	ctx, cancel := context.WithCancel(t.Context())
	r, in := io.Pipe()
	defer in.Close()
	w := &countingWriter{fail: func(int) error { cancel(); return nil }}
	go func() {
		for i := 0; ; i++ {
			if _, err := io.WriteString(in, lines(i*1000+1, i*1000+1000)); err != nil {
				return
			}
		}
	}()
	_, err := Import(ctx, r, w, ImportOptions{Format: TSV})
	require.ErrorIs(t, err, context.Canceled)
	r.Close()
}
