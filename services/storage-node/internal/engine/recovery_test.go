package engine

import (
	"encoding/binary"
	"encoding/hex"
	"path"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/commitlog"
)

// group encodes a frame of batches.
func group(first uint64, count uint32, ops []byte) []byte {
	b := binary.LittleEndian.AppendUint64(nil, first)
	b = binary.LittleEndian.AppendUint32(b, count)
	return append(b, ops...)
}

func TestRecoveryRefusesFramesThatMakeNoSense(t *testing.T) {
	// A frame with a good checksum was written by somebody; if it makes no sense, to go on would apply
	// something nobody wrote.
	var b Batch
	b.Set(testKey(1), rec("v"))
	one := b.ops
	var empty Batch
	empty.add(ikey.KindRangeDelete, []byte("b"), []byte("b"))
	type frame struct {
		kind    uint8
		payload []byte
	}
	for name, tc := range map[string]struct {
		frames []frame
		want   error
	}{
		"good":                  {[]frame{{frameBatch, group(1, 1, one)}, {frameBatch, group(9, 1, one)}}, nil},
		"short":                 {[]frame{{frameBatch, []byte("short")}}, ErrCorrupt},
		"no changes":            {[]frame{{frameBatch, group(1, 0, nil)}}, ErrCorrupt},
		"sequence 0":            {[]frame{{frameBatch, group(0, 1, one)}}, ErrCorrupt},
		"sequence too large":    {[]frame{{frameBatch, group(uint64(ikey.MaxSeq), 1, one)}}, ErrCorrupt},
		"fewer changes":         {[]frame{{frameBatch, group(1, 2, one)}}, ErrCorrupt},
		"more changes":          {[]frame{{frameBatch, group(1, 1, append(append([]byte{}, one...), one...))}}, ErrCorrupt},
		"malformed change":      {[]frame{{frameBatch, group(1, 1, one[:len(one)-1])}}, ErrCorrupt},
		"unknown change":        {[]frame{{frameBatch, group(1, 1, append([]byte{99}, one[1:]...))}}, ErrCorrupt},
		"empty range":           {[]frame{{frameBatch, group(1, 1, empty.ops)}}, ErrCorrupt},
		"sequences go back":     {[]frame{{frameBatch, group(5, 1, one)}, {frameBatch, group(5, 1, one)}}, ErrCorrupt},
		"unknown frame":         {[]frame{{77, group(1, 1, one)}}, ErrNewerFormat},
		"short marker":          {[]frame{{frameIngest, []byte("x")}}, ErrCorrupt},
		"marker without tables": {[]frame{{frameIngest, ingestMarker{seq: 7}.encode()}}, nil},
		"marker goes back":      {[]frame{{frameBatch, group(5, 1, one)}, {frameIngest, ingestMarker{seq: 3}.encode()}}, ErrCorrupt},
		"half a table":          {[]frame{{frameIngest, append(ingestMarker{seq: 7}.encode(), 1)}}, ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewMem()
			require.NoError(t, mustOpen(t, quietOptions(fs)).Close())
			log, err := commitlog.Open(fs, path.Join(testDir, logDir), commitlog.Options{SegmentBytes: 1 << 20})
			require.NoError(t, err)
			_, err = log.Replay(0, func(commitlog.Frame) error { return nil }, nil)
			require.NoError(t, err)
			require.NoError(t, log.Start())
			for _, f := range tc.frames {
				_, err := log.Append(f.kind, f.payload)
				require.NoError(t, err)
			}
			require.NoError(t, log.Close())
			e, err := Open(testDir, quietOptions(fs))
			require.ErrorIs(t, err, tc.want)
			if err != nil {
				require.ErrorContains(t, err, "000001.log", "the error names the file")
				_, err := Open(testDir, quietOptions(fs))
				require.ErrorIs(t, err, tc.want, "a failed open leaves everything as it was, and the lock free")
				return
			}
			require.NoError(t, e.Close())
		})
	}
}

func TestFrameBytesArePinned(t *testing.T) {
	// Logs of earlier releases must be replayed as they were meant.
	var b Batch
	b.Set([]byte("k1"), []byte("v"))
	b.Merge([]byte("k2"), []byte("w"))
	b.Delete([]byte("k3"))
	b.DeleteRange([]byte("a"), []byte("b"))
	require.Equal(t, "01026b310176"+"02026b320177"+"00026b33"+"0301610162", hex.EncodeToString(b.ops))
	require.Equal(t, "0700000000000000"+"01000000"+"0300000000000000"+"efbe000000000000",
		hex.EncodeToString(ingestMarker{seq: 7, tables: []markedTable{{num: 3, digest: 0xbeef}}}.encode()))
}
