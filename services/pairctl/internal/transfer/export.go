package transfer

import (
	"bufio"
	"fmt"
	"io"
	"iter"

	"github.com/pairdb/pairdb/libs/client"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
)

// ExportResult of one export.
type ExportResult struct {
	// Records written, and how many of them had concurrent values of which only the winner was
	// written.
	Records, Conflicts int64
}

// Export writes records in key order. It stops at the first record that the format can't hold.
func Export(w io.Writer, records iter.Seq2[*datav1.Record, error], f Format, progress func(records int64)) (ExportResult, error) {
	var res ExportResult
	out := bufio.NewWriterSize(w, 256<<10)
	var line []byte
	for r, err := range records {
		if err != nil {
			return res, err
		}
		value, found := client.Winner(r)
		if !found {
			continue
		}
		if line, err = f.Append(line[:0], r.Key, value); err != nil {
			return res, err
		}
		if _, err := out.Write(line); err != nil {
			return res, fmt.Errorf("write the export: %w", err)
		}
		res.Records++
		if len(r.Siblings) > 1 {
			res.Conflicts++
		}
		if progress != nil {
			progress(res.Records)
		}
	}
	if err := out.Flush(); err != nil {
		return res, fmt.Errorf("write the export: %w", err)
	}
	return res, nil
}
