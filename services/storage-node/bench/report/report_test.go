package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/services/storage-node/bench/measure"
	"github.com/pairdb/pairdb/services/storage-node/bench/suite"
)

var update = flag.Bool("update", false, "write the golden files anew")

// fixed is a result with made-up numbers.
func fixed(keys uint64, slower float64) suite.Result {
	size, _ := suite.SizeNamed("default")
	size.Keys = keys
	r := suite.Result{Size: size, Engines: []string{"pairdb", "pebble", "rocksdb"}, Took: 90 * time.Second,
		Calibration: 6100 * time.Microsecond, Disturbed: 3, Kept: 1,
		Limits: []measure.Limit{{Name: "append 4 KiB and fdatasync", Unit: "per second", Value: 1234.5}, {Name: "memcpy of 64 MiB", Unit: "GB/s", Value: 9.87}}}
	add := func(engine string, round int, m suite.Measurement) {
		m.Seconds *= slower
		r.Cells = append(r.Cells, suite.Cell{Engine: engine, Round: round, Measurement: m, Calibration: 1.02})
	}
	for round := range 2 {
		extra := uint64(round) * 1000
		add("pebble", round, suite.Measurement{Name: "fill-random", Ops: 100_000 + extra, Seconds: 1, P50: 5, P99: 20, P999: 100, Max: 90_000, CPU: 9, Allocs: 0.25, Written: 1.05})
		add("pebble", round, suite.Measurement{Name: "fill-random+settle", Ops: 100_000, Seconds: 2, CPU: 20, Allocs: 0.5, Written: 3.2, Space: 1.1})
		add("pairdb", round, suite.Measurement{Name: "fill-random", Ops: 150_000 + extra, Seconds: 1, P50: 3, P99: 9, P999: 80, Max: 9_000, CPU: 5, Written: 1.05})
		add("pairdb", round, suite.Measurement{Name: "fill-random+settle", Ops: 150_000, Seconds: 1.5, CPU: 15, Written: 1.9, Space: 0.7})
	}
	add("rocksdb", 0, suite.Measurement{Name: "fill-random", Ops: 50_000, Seconds: 1, P50: 9, P99: 30, P999: 300, Max: 20_000, CPU: 12, Allocs: -1, Written: 1.05})
	add("pairdb", 0, suite.Measurement{Name: "recovery", Ops: 1, Seconds: 0.1, P50: 1e5, P99: 1e5, P999: 1e5, Max: 1e5})
	add("pebble", 0, suite.Measurement{Name: "recovery", Ops: 1, Seconds: 0.4, P50: 4e5, P99: 4e5, P999: 4e5, Max: 4e5})
	add("pairdb", 0, suite.Measurement{Name: "read-while-writing", Ops: 9, Seconds: 1, Note: "20000 puts/s"})
	return r
}

// golden compares got with a file.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o777))
		require.NoError(t, os.WriteFile(path, got, 0o666))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got), "go test ./report -update, if it is meant so")
}

func TestTablesOfFixedNumbers(t *testing.T) {
	// Means over rounds, ratios the right way round, dashes where nothing was measured: a slip in any
	// of them makes every figure that is quoted wrong.
	var b bytes.Buffer
	require.NoError(t, Markdown(&b, fixed(1_000_000, 1)))
	golden(t, "engine.md", b.Bytes())
	b.Reset()
	require.NoError(t, GrowthMarkdown(&b, []suite.Result{fixed(10_000, 1), fixed(100_000, 2), fixed(1_000_000, 4)}))
	golden(t, "growth.md", b.Bytes())
}

// texts returns the character data of an SVG file, which must be well-formed.
func texts(t *testing.T, svg io.Reader) string {
	t.Helper()
	var all strings.Builder
	d := xml.NewDecoder(svg)
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return all.String()
		}
		require.NoError(t, err)
		if c, ok := token.(xml.CharData); ok {
			all.Write(c)
		}
	}
}

func TestChartsNameWhatTheyShow(t *testing.T) {
	// A chart that a library draws empty, or not at all, would be committed unseen.
	var b bytes.Buffer
	require.NoError(t, Chart(&b, fixed(1_000_000, 1)))
	text := texts(t, &b)
	for _, want := range []string{"fill-random", "fill-random+settle", "pairdb", "pebble", "rocksdb"} {
		require.Contains(t, text, want)
	}
	b.Reset()
	require.NoError(t, GrowthChart(&b, []suite.Result{fixed(10_000, 1), fixed(1_000_000, 4)}))
	text = texts(t, &b)
	for _, want := range []string{"fill-random", "keys with values of 1 KiB"} {
		require.Contains(t, text, want)
	}
}

func TestNumbersHaveThreeDigits(t *testing.T) {
	for v, want := range map[float64]string{0.012: "0.01", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 123456: "123456"} {
		require.Equal(t, want, number(v))
	}
}
