package record_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/record"
)

var update = flag.Bool("update", false, "rewrite golden files")

type frame struct {
	typ     uint8
	payload string
	offset  int64
}

// all reads to the end.
func all(r *record.Reader) (frames []frame, err error) {
	for {
		off := r.Offset()
		h, payload, err := r.Next()
		if err != nil {
			return frames, err
		}
		frames = append(frames, frame{h.Type, string(payload), off})
	}
}

// file makes frames of epoch 7 that stand at their positions; each was written when all before it
// was synced, but the last `unsynced` ones were not.
func file(unsynced int, payloads ...string) (b []byte, ends []int) {
	synced := 0
	for i, p := range payloads {
		if i <= len(payloads)-unsynced {
			synced = len(b)
		}
		b = record.Append(b, record.Header{Epoch: 7, Synced: uint64(synced), Type: 1, Position: uint64(len(b))}, []byte(p))
		ends = append(ends, len(b))
	}
	return b, ends
}

func read(b []byte, o record.Options) ([]frame, *record.Reader, error) {
	o.Epoch, o.Positions = 7, true
	r := record.NewFileReader(bytes.NewReader(b), int64(len(b)), o)
	frames, err := all(r)
	return frames, r, err
}

// Danger: a changed layout makes every file of an older release unreadable.
func TestFrameBytesAreThoseOfTheFormat(t *testing.T) {
	var b []byte
	b = record.Append(b, record.Header{Epoch: 7, Type: 1}, []byte("hello"))
	b = record.Append(b, record.Header{Epoch: 7, Type: 2, Synced: uint64(len(b))}, nil)
	b = record.Append(b, record.Header{Epoch: 7, Type: 1, Synced: 33, Position: uint64(len(b))}, bytes.Repeat([]byte{0xab}, 40))
	name := filepath.Join("testdata", "frames.hex")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o770))
		require.NoError(t, os.WriteFile(name, []byte(hex.Dump(b)), 0o660))
	}
	want, err := os.ReadFile(name)
	require.NoError(t, err)
	require.Equal(t, string(want), hex.Dump(b))
}

// Danger: a frame larger than the reader's buffer ends the file silently.
func TestFramesOfEverySizeAreReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var payloads []string
		for i, n := range rapid.SliceOfN(rapid.OneOf(rapid.IntRange(0, 100), rapid.IntRange(200<<10, 700<<10)), 0, 6).Draw(t, "sizes") {
			payloads = append(payloads, strings.Repeat(string(rune('a'+i)), n))
		}
		b, _ := file(0, payloads...)
		zeros := rapid.IntRange(0, 600<<10).Draw(t, "zeros")
		frames, r, err := read(append(b, make([]byte, zeros)...), record.Options{})
		require.Equal(t, io.EOF, err)
		require.Len(t, frames, len(payloads))
		for i, f := range frames {
			require.True(t, f.payload == payloads[i])
		}
		require.EqualValues(t, len(b), r.Offset())
	})
}

// Danger: torn taken for damage (a node that does not open after a power cut), or damage taken for
// torn (acknowledged writes vanish silently).
func TestTheEndIsToldApart(t *testing.T) {
	whole, ends := file(0, "one", "two", "three")
	open, _ := file(3, "one", "two", "three")
	change := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 0x40
		return b
	}
	old := record.Append(nil, record.Header{Epoch: 6, Synced: 0, Type: 1, Position: uint64(len(whole))}, []byte("older life"))
	for _, c := range []struct {
		name   string
		b      []byte
		o      record.Options
		frames int
		torn   int64
		err    error
	}{
		{name: "empty", err: io.EOF},
		{name: "whole", b: whole, frames: 3, err: io.EOF},
		{name: "zeros behind", b: append(bytes.Clone(whole), make([]byte, 100)...), frames: 3, err: io.EOF},
		{name: "few zeros behind", b: append(bytes.Clone(whole), make([]byte, 9)...), frames: 3, err: io.EOF},
		{name: "an older life behind", b: append(bytes.Clone(whole), old...), frames: 3, err: io.EOF},
		{name: "last payload cut", b: whole[:len(whole)-1], frames: 2, torn: 32, err: record.ErrTorn},
		{name: "last header cut", b: whole[:ends[1]+5], frames: 2, torn: 5, err: record.ErrTorn},
		{name: "last payload changed", b: change(whole, len(whole)-1), frames: 2, torn: 33, err: record.ErrTorn},
		{name: "last header changed", b: change(whole, ends[1]), frames: 2, torn: 28, err: record.ErrTorn},
		{name: "synced payload changed", b: change(whole, ends[0]-1), err: record.ErrCorrupt},
		{name: "synced header changed", b: change(whole, 0), err: record.ErrCorrupt},
		{name: "synced frame zero", b: append(make([]byte, ends[0]), whole[ends[0]:]...), err: record.ErrCorrupt},
		{name: "proof has a torn payload", b: change(change(whole, 2), len(whole)-1), err: record.ErrCorrupt},
		{name: "unsynced hole", b: change(open, ends[0]+2), frames: 1, torn: int64(len(open) - ends[0]), err: record.ErrTorn},
		{name: "sealed", b: whole, o: record.Options{Sealed: true}, frames: 3, err: io.EOF},
		{name: "sealed and cut", b: whole[:len(whole)-1], o: record.Options{Sealed: true}, frames: 2, err: record.ErrCorrupt},
		{name: "sealed and zeros", b: append(bytes.Clone(whole), make([]byte, 100)...), o: record.Options{Sealed: true}, frames: 3, err: record.ErrCorrupt},
		{name: "a copy of the file inside a torn frame", b: record.Append(bytes.Clone(whole), record.Header{Epoch: 7, Type: 1, Synced: uint64(ends[1]), Position: uint64(len(whole))}, append(bytes.Clone(whole), whole...))[:2*len(whole)+50], frames: 3, torn: int64(len(whole) + 50), err: record.ErrTorn},
	} {
		t.Run(c.name, func(t *testing.T) {
			frames, r, err := read(c.b, c.o)
			require.ErrorIs(t, err, c.err)
			require.Len(t, frames, c.frames)
			require.Equal(t, c.torn, r.TornBytes())
			_, _, again := r.Next()
			require.Equal(t, err, again, "an end stays")
			if errors.Is(err, record.ErrCorrupt) {
				var at *record.CorruptError
				require.ErrorAs(t, err, &at)
				require.Equal(t, r.Offset(), at.Offset)
			}
		})
	}
}

// Danger: a failed read looks like the end of the file, and the rest of the log is dropped.
func TestReadErrorsAreNoEnd(t *testing.T) {
	b, _ := file(0, "one", "two")
	broken := errors.New("broken disk")
	r := record.NewFileReader(failing{broken}, int64(len(b)), record.Options{Epoch: 7})
	_, err := all(r)
	require.ErrorIs(t, err, broken)
	r = record.NewFileReader(bytes.NewReader(b), int64(len(b))+1, record.Options{Epoch: 7, Positions: true})
	_, err = all(r)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

// Danger: a follower of a growing file sees half a frame, or stops for ever.
func TestReaderGoesOnWhenTheFileGrew(t *testing.T) {
	b, ends := file(0, "one", "two", "three")
	r := record.NewFileReader(bytes.NewReader(b), int64(ends[0]), record.Options{Epoch: 7, Positions: true})
	frames, err := all(r)
	require.Equal(t, io.EOF, err)
	require.Len(t, frames, 1)
	r.Extend(int64(len(b)))
	frames, err = all(r)
	require.Equal(t, io.EOF, err)
	require.Equal(t, []frame{{1, "two", int64(ends[0])}, {1, "three", int64(ends[1])}}, frames)
}

// Danger: a flipped bit before the last frame goes unseen.
func TestEveryFlippedByteIsDetected(t *testing.T) {
	payloads := []string{"one", "", "a longer payload than the others", "last"}
	b, ends := file(0, payloads...)
	for i := range b {
		for _, mask := range []byte{0x01, 0x80, 0xff} {
			c := bytes.Clone(b)
			c[i] ^= mask
			frames, _, err := read(c, record.Options{})
			if i < ends[len(ends)-2] {
				require.ErrorIs(t, err, record.ErrCorrupt, "byte %d", i)
			} else {
				require.Len(t, frames, len(payloads)-1, "byte %d: the last frame is the unproven tail", i)
			}
			for j, f := range frames {
				require.Equal(t, payloads[j], f.payload)
			}
		}
	}
}

func FuzzReader(f *testing.F) {
	whole, ends := file(0, "one", "two", "three")
	f.Add(whole)
	f.Add(whole[:ends[1]+3])
	f.Add(append(bytes.Clone(whole[:ends[0]]), make([]byte, 40)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, sealed := range []bool{false, true} {
			frames, r, err := read(b, record.Options{Sealed: sealed})
			if err == nil || r.Offset() > int64(len(b)) || r.TornBytes() > int64(len(b))-r.Offset() {
				t.Fatalf("offset %d, torn %d, err %v", r.Offset(), r.TornBytes(), err)
			}
			var again []byte
			for _, fr := range frames {
				if fr.offset != int64(len(again)) {
					t.Fatalf("a gap at %d", fr.offset)
				}
				again = append(again, make([]byte, record.HeaderBytes+len(fr.payload))...)
			}
		}
		slice := record.NewReader(b, 7)
		_, _ = all(slice)
	})
}

func ExampleReader() {
	var log []byte
	log = record.Append(log, record.Header{Epoch: 1, Type: 1}, []byte("first"))
	log = record.Append(log, record.Header{Epoch: 1, Type: 1, Synced: uint64(len(log))}, []byte("second"))
	r := record.NewReader(log[:len(log)-2], 1) // a crash lost two bytes
	for {
		h, payload, err := r.Next()
		if err != nil {
			fmt.Printf("%v: cut at %d\n", err, r.Offset())
			return
		}
		fmt.Printf("type %d: %s\n", h.Type, payload)
	}
	// Output:
	// type 1: first
	// torn tail: cut at 33
}

func BenchmarkAppend(b *testing.B) {
	payload := make([]byte, 1<<10)
	var dst []byte
	b.SetBytes(int64(len(payload)))
	for b.Loop() {
		dst = record.Append(dst[:0], record.Header{Epoch: 1, Type: 1}, payload)
	}
}
