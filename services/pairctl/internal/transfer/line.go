// Package transfer moves many records between files and a node: import and export as TSV or
// NDJSON. It never stores half a record and never guesses what a damaged line meant.
//
// TSV is raw: one record a line, key TAB value LF, no escapes. A value may contain tabs, but no
// line feed; a record that does not fit is exported as NDJSON only. NDJSON has one object a line:
// {"key": "...", "value": "..."}, or "value_base64" for bytes that are not UTF-8.
package transfer

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Format of a file.
type Format string

// The formats.
const (
	TSV    Format = "tsv"
	NDJSON Format = "ndjson"
)

// ParseFormat checks a format's name.
func ParseFormat(s string) (Format, error) {
	if f := Format(s); f == TSV || f == NDJSON {
		return f, nil
	}
	return "", fmt.Errorf("unknown format %q: tsv or ndjson", s)
}

// maxLineBytes bounds a line: the largest value (10 MiB) in base64 or with JSON escapes.
const maxLineBytes = 64 << 20

// LineError says what is wrong with one line of the input.
type LineError struct {
	Line int64 // 1 is the first
	Err  error
}

func (e *LineError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }

// Unwrap returns the cause.
func (e *LineError) Unwrap() error { return e.Err }

// lineReader splits the input into lines.
type lineReader struct {
	r    *bufio.Reader
	buf  []byte // only for lines longer than the reader's buffer
	line int64
}

func newLineReader(r io.Reader) *lineReader {
	return &lineReader{r: bufio.NewReaderSize(r, 1<<20)}
}

// next returns the next line without its LF, and whether there was one. The bytes are valid until
// the next call. At the end of the input it returns io.EOF.
func (l *lineReader) next() (line []byte, terminated bool, err error) {
	line, err = l.r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		line, err = l.long(line)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, false, fmt.Errorf("after line %d: %w", l.line, err)
	}
	if len(line) == 0 {
		return nil, false, io.EOF
	}
	l.line++
	if line[len(line)-1] == '\n' {
		return line[:len(line)-1], true, nil
	}
	return line, false, nil
}

func (l *lineReader) long(head []byte) ([]byte, error) {
	l.buf = append(l.buf[:0], head...)
	for {
		more, err := l.r.ReadSlice('\n')
		l.buf = append(l.buf, more...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return l.buf, err
		}
		if len(l.buf) > maxLineBytes {
			return nil, fmt.Errorf("line %d is longer than %d MiB", l.line+1, maxLineBytes>>20)
		}
	}
}

// Parse reads one line. The value does not alias line.
func (f Format) Parse(line []byte, terminated bool) (key string, value []byte, err error) {
	if !utf8.Valid(line) {
		return "", nil, fmt.Errorf("not UTF-8 at byte %d; binary values need --format ndjson with value_base64", firstInvalid(line)+1)
	}
	if f == NDJSON {
		return parseJSON(line)
	}
	if !terminated {
		return "", nil, errors.New("no line feed at the end of the input: the record may be cut off; add one if it is complete")
	}
	i := bytes.IndexByte(line, '\t')
	if i < 0 {
		return "", nil, errors.New("no tab between key and value")
	}
	if i == 0 {
		return "", nil, errors.New("empty key")
	}
	return string(line[:i]), bytes.Clone(line[i+1:]), nil
}

func firstInvalid(line []byte) int {
	for i := 0; i < len(line); {
		r, n := utf8.DecodeRune(line[i:])
		if r == utf8.RuneError && n <= 1 {
			return i
		}
		i += n
	}
	return len(line)
}

type object struct {
	Key    *string `json:"key"`
	Value  *string `json:"value,omitempty"`
	Base64 *string `json:"value_base64,omitempty"`
}

func parseJSON(line []byte) (string, []byte, error) {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	var o object
	if err := dec.Decode(&o); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return "", nil, errors.New("the JSON object is cut off")
		}
		return "", nil, fmt.Errorf("not a record: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return "", nil, errors.New("more than one JSON value in the line")
	}
	switch {
	case o.Key == nil || *o.Key == "":
		return "", nil, errors.New(`no "key"`)
	case (o.Value == nil) == (o.Base64 == nil):
		return "", nil, errors.New(`exactly one of "value" and "value_base64" is needed`)
	case o.Value != nil:
		return *o.Key, []byte(*o.Value), nil
	}
	value, err := base64.StdEncoding.DecodeString(*o.Base64)
	if err != nil {
		return "", nil, fmt.Errorf("value_base64: %w", err)
	}
	return *o.Key, value, nil
}

// Append appends the line of a record, or says why the format can't hold it.
func (f Format) Append(dst []byte, key string, value []byte) ([]byte, error) {
	if f == NDJSON {
		return appendJSON(dst, key, value)
	}
	switch {
	case strings.ContainsAny(key, "\t\n"):
		return nil, fmt.Errorf("key %q contains a tab or a line feed; use --format ndjson", key)
	case bytes.IndexByte(value, '\n') >= 0:
		return nil, fmt.Errorf("the value of key %q contains a line feed; use --format ndjson", key)
	case !utf8.Valid(value):
		return nil, fmt.Errorf("the value of key %q is not UTF-8; use --format ndjson", key)
	}
	dst = append(dst, key...)
	dst = append(dst, '\t')
	dst = append(dst, value...)
	return append(dst, '\n'), nil
}

func appendJSON(dst []byte, key string, value []byte) ([]byte, error) {
	o := object{Key: &key}
	if utf8.Valid(value) {
		s := string(value)
		o.Value = &s
	} else {
		s := base64.StdEncoding.EncodeToString(value)
		o.Base64 = &s
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(o); err != nil {
		return nil, fmt.Errorf("key %q: %w", key, err)
	}
	return append(dst, b.Bytes()...), nil
}
