package engine

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
)

func groupFrame(first uint64, count uint32, ops []byte) []byte {
	b := binary.LittleEndian.AppendUint64(nil, first)
	b = binary.LittleEndian.AppendUint32(b, count)
	return append(b, ops...)
}

// Danger: a packed group comes back as another one, or data that does not shrink is packed for ever.
func TestGroupsArePackedOnlyWhereThatSaves(t *testing.T) {
	var p logPacker
	var u logUnpacker
	noise := make([]byte, 4<<10)
	for i := range noise {
		noise[i] = byte(rand.New(rand.NewPCG(uint64(i), 1)).Uint32())
	}
	for _, c := range []struct {
		name string
		ops  []byte
		kind uint8
	}{
		{"short", []byte(strings.Repeat("a", packFrom-1)), frameBatch},
		{"good", []byte(strings.Repeat("pair", 1000)), framePacked},
		{"noise", noise, frameBatch},
		{"good, but behind noise", []byte(strings.Repeat("pair", 1000)), frameBatch},
	} {
		t.Run(c.name, func(t *testing.T) {
			frame := groupFrame(77, 3, c.ops)
			kind, payload := p.pack(frame)
			require.Equal(t, c.kind, kind)
			require.LessOrEqual(t, len(payload), len(frame))
			first, count, ops, err := u.group(kind, payload)
			require.NoError(t, err)
			require.EqualValues(t, 77, first)
			require.EqualValues(t, 3, count)
			require.True(t, bytes.Equal(c.ops, ops))
		})
	}
	for range packPause {
		p.pack(groupFrame(1, 1, make([]byte, 4<<10)))
	}
	kind, _ := p.pack(groupFrame(1, 1, make([]byte, 4<<10)))
	require.Equal(t, framePacked, kind, "after a while it is tried again")
}

// Danger: a changed format makes the logs of an older release unreadable.
func TestPackedGroupIsThatOfTheFormat(t *testing.T) {
	const golden = "4d00000000000000010000000614506169724442"
	payload, err := hex.DecodeString(golden)
	require.NoError(t, err)
	var u logUnpacker
	first, count, ops, err := u.group(framePacked, payload)
	require.NoError(t, err)
	require.EqualValues(t, 77, first)
	require.EqualValues(t, 1, count)
	require.Equal(t, "PairDB", string(ops))
}

// Danger: damage to a packed group that kept its checksum crashes recovery, or takes all memory.
func TestDamagedPackedGroupsAreCorrupt(t *testing.T) {
	huge := binary.AppendUvarint(nil, commitlog.MaxPayloadBytes)
	for name, block := range map[string][]byte{
		"no length": {}, "no content": {200, 1}, "longer than a frame": huge, "noise": []byte("\x40not a block at all"),
	} {
		t.Run(name, func(t *testing.T) {
			var u logUnpacker
			_, _, _, err := u.group(framePacked, groupFrame(1, 1, block))
			require.ErrorIs(t, err, ErrCorrupt)
		})
	}
}

// Danger: a log whose compression was switched on, or off, is not read any more.
func TestLogCompressionCanBeSwitchedAtAnyTime(t *testing.T) {
	mem := vfs.NewMem()
	o := quietOptions(mem)
	o.KeepMemtablesAtClose = true
	for round := range 4 {
		o.NoLogCompression = round%2 == 1
		e := mustOpen(t, o)
		for i := range round {
			requireValue(t, e, testKey(i), strings.Repeat(fmt.Sprint(i), 1000))
		}
		before := e.Metrics().LogBytes
		put(t, e, testKey(round), strings.Repeat(fmt.Sprint(round), 1000))
		require.Equal(t, !o.NoLogCompression, e.Metrics().LogBytes-before < 500)
		require.NoError(t, e.Close())
	}
}

func FuzzLogGroup(f *testing.F) {
	f.Add(frameBatch, groupFrame(1, 1, []byte("ops")))
	f.Add(framePacked, groupFrame(1, 1, s2.Encode(nil, []byte(strings.Repeat("ops", 100)))))
	f.Fuzz(func(t *testing.T, kind uint8, payload []byte) {
		var u logUnpacker
		first, count, ops, err := u.group(kind, payload)
		if err != nil {
			require.ErrorIs(t, err, ErrCorrupt)
			return
		}
		if kind != framePacked {
			require.Equal(t, payload, groupFrame(uint64(first), count, ops))
		}
	})
}
