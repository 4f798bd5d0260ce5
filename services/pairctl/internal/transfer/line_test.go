package transfer

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseRefusesWhatCouldBeHalfARecord(t *testing.T) {
	// A line that was cut, or is not what the format says, must never be stored as something else.
	for _, c := range []struct {
		name, line   string
		format       Format
		unterminated bool
		wantErr      string
	}{
		{name: "no tab", format: TSV, line: "key", wantErr: "no tab"},
		{name: "no key", format: TSV, line: "\tvalue", wantErr: "empty key"},
		{name: "empty line", format: TSV, line: "", wantErr: "no tab"},
		{name: "cut at the end", format: TSV, line: "k\tval", unterminated: true, wantErr: "may be cut off"},
		{name: "not UTF-8", format: TSV, line: "k\tab\xff", wantErr: "not UTF-8 at byte 5"},
		{name: "cut object", format: NDJSON, line: `{"key":"k","val`, wantErr: "cut off"},
		{name: "empty", format: NDJSON, line: ``, wantErr: "cut off"},
		{name: "two objects", format: NDJSON, line: `{"key":"k","value":"v"}{}`, wantErr: "more than one"},
		{name: "no value", format: NDJSON, line: `{"key":"k"}`, wantErr: "exactly one"},
		{name: "two values", format: NDJSON, line: `{"key":"k","value":"v","value_base64":"dg=="}`, wantErr: "exactly one"},
		{name: "no key in object", format: NDJSON, line: `{"value":"v"}`, wantErr: `no "key"`},
		{name: "unknown field", format: NDJSON, line: `{"key":"k","value":"v","ttl":1}`, wantErr: "unknown field"},
		{name: "bad base64", format: NDJSON, line: `{"key":"k","value_base64":"%"}`, wantErr: "value_base64"},
		{name: "array", format: NDJSON, line: `["k","v"]`, wantErr: "not a record"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := c.format.Parse([]byte(c.line), !c.unterminated)
			require.ErrorContains(t, err, c.wantErr)
		})
	}
}

func TestWhatIsExportedIsImportedEqual(t *testing.T) {
	// An export is the only copy when its pod is gone.
	records := []struct {
		key   string
		value []byte
		inTSV bool
	}{
		{"plain", []byte("value"), true},
		{"empty", nil, true},
		{"tabs", []byte("a\tb\t"), true},
		{"backslash", []byte(`a\nb\\`), true},
		{"carriage", []byte("a\r"), true},
		{"größe", []byte("ü"), true},
		{"line feed", []byte("a\nb"), false},
		{"binary", []byte{0, 0xff, 0xfe}, false},
		{"tab\tkey", []byte("v"), false},
		{"html", []byte("<&>"), true},
	}
	for _, r := range records {
		for _, f := range []Format{TSV, NDJSON} {
			line, err := f.Append(nil, r.key, r.value)
			if f == TSV && !r.inTSV {
				require.ErrorContains(t, err, "use --format ndjson", r.key)
				continue
			}
			require.NoError(t, err, r.key)
			require.Equal(t, 1, bytes.Count(line, []byte("\n")), "one line a record")
			key, value, err := f.Parse(line[:len(line)-1], true)
			require.NoError(t, err, "%s in %s", r.key, f)
			require.Equal(t, r.key, key)
			require.Equal(t, string(r.value), string(value))
		}
	}
}

func TestLinesLongerThanTheBufferComeWhole(t *testing.T) {
	// A value of 10 MiB is legal; a reader with a fixed buffer would cut it.
	long := strings.Repeat("x", 3<<20)
	l := newLineReader(strings.NewReader("a\tb\n" + "k\t" + long + "\nc\td"))
	var got []int
	for {
		line, _, err := l.next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		got = append(got, len(line))
	}
	require.Equal(t, []int{3, len(long) + 2, 3}, got)
	require.EqualValues(t, 3, l.line)
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("k\tv"), true)
	f.Add([]byte(`{"key":"k","value_base64":"/w=="}`), false)
	f.Fuzz(func(t *testing.T, line []byte, json bool) {
		format := TSV
		if json {
			format = NDJSON
		}
		key, value, err := format.Parse(line, true)
		if err != nil || (format == TSV && bytes.IndexByte(line, '\n') >= 0) {
			return
		}
		out, err := format.Append(nil, key, value)
		require.NoError(t, err)
		key2, value2, err := format.Parse(bytes.TrimSuffix(out, []byte("\n")), true)
		require.NoError(t, err)
		require.Equal(t, key, key2)
		require.Equal(t, string(value), string(value2))
	})
}
