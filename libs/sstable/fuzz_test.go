package sstable

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable/block"
	"github.com/pairdb/pairdb/libs/sstable/filter"
)

func seedTables(f *testing.F) {
	for name := range goldenTables {
		b, err := os.ReadFile("testdata/" + name)
		require.NoError(f, err)
		f.Add(b)
	}
}

// exercise calls everything of a reader; it only must not panic or run for ever.
func exercise(t *testing.T, r *Reader) {
	_ = r.Verify(context.Background(), nil)
	for _, user := range []string{"", "tenant\x00key00000007", "tenant\x00z", "zz"} {
		_, _, _, _ = r.Get([]byte(user), filter.Hash([]byte(user)), 8, nil)
		_ = r.ApproximateOffset([]byte(user))
		_ = r.MayContain(uint64(len(user)) << 33)
	}
	for _, it := range []*Iter{r.NewIter(), r.NewScan(ScanOptions{ChunkBytes: 100})} {
		const limit = 10000
		n := 0
		for ok := it.First(); ok && n < limit; ok = it.Next() {
			_, _ = it.Stored()
			_ = it.Value()
			n++
		}
		for ok := it.Last(); ok && n < 2*limit; ok = it.Prev() {
			n++
		}
		_ = it.SeekGE(ikey.Search([]byte("tenant\x00key00000007"), 8))
		_ = it.SeekLT(ikey.Search([]byte("tenant\x00key00000007"), 8))
		_ = it.Close()
	}
	require.NoError(t, r.Close())
}

// FuzzOpen: any bytes as a file.
func FuzzOpen(f *testing.F) {
	seedTables(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := openBytes(t, b, ReaderOptions{}); err == nil {
			exercise(t, r)
		} else {
			require.ErrorIs(t, err, ErrCorrupt)
		}
	})
}

// reseal makes the checksums of header, footer and blocks right again, so that the fuzzer gets
// behind them.
func reseal(b []byte) {
	if len(b) < headerBytes+footerBytes {
		return
	}
	binary.LittleEndian.PutUint32(b[28:], crc32.Checksum(b[:28], castagnoli))
	foot := b[len(b)-footerBytes:]
	binary.LittleEndian.PutUint64(foot[72:], uint64(len(b)))
	binary.LittleEndian.PutUint32(foot[116:], crc32.Checksum(foot[:116], castagnoli))
	for i := range 4 {
		h := handle{offset: binary.LittleEndian.Uint64(foot[16*i:]), length: binary.LittleEndian.Uint64(foot[16*i+8:])}
		sealBlock(b, h, i == 0, 2)
	}
}

// sealBlock makes the checksum of a block right, and of those that it is the index of.
func sealBlock(b []byte, h handle, index bool, levels int) {
	if !h.within(headerBytes, uint64(len(b)-footerBytes)) {
		return
	}
	end := h.offset + h.length + 1
	binary.LittleEndian.PutUint32(b[end:], checksum(b[h.offset:end], h.offset))
	var it block.Iter
	if !index || levels == 0 || it.Init(b[h.offset:h.offset+h.length]) != nil {
		return
	}
	const limit = 100
	n := 0
	for ok := it.First(); ok && n < limit; ok = it.Next() {
		if child, ok := decodeHandle(it.Value()); ok {
			sealBlock(b, child, true, levels-1)
		}
		n++
	}
}

// FuzzOpenBehindChecksums: bytes whose checksums are right and whose content is not.
func FuzzOpenBehindChecksums(f *testing.F) {
	seedTables(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		reseal(b)
		if r, err := openBytes(t, b, ReaderOptions{}); err == nil {
			exercise(t, r)
		} else {
			require.ErrorIs(t, err, ErrCorrupt)
		}
	})
}

// FuzzProperties: any bytes as properties.
func FuzzProperties(f *testing.F) {
	p := properties{meta: Meta{Entries: 1, Sets: 1, Smallest: ikey.Make([]byte("a"), 1, ikey.KindSet), Largest: ikey.Make([]byte("b"), 1, ikey.KindSet)}}
	f.Add(p.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := decodeProperties(b); err == nil {
			again, err := decodeProperties(p.append(nil))
			require.NoError(t, err)
			require.Equal(t, p, again)
		}
	})
}

// FuzzFooter: any bytes as a footer.
func FuzzFooter(f *testing.F) {
	f.Add(footer{levels: 1, dataEnd: headerBytes, size: 1000}.append(nil), uint64(1000))
	f.Fuzz(func(t *testing.T, b []byte, size uint64) {
		if len(b) != footerBytes || size < headerBytes+footerBytes {
			return
		}
		binary.LittleEndian.PutUint32(b[116:], crc32.Checksum(b[:116], castagnoli))
		if foot, what, _ := decodeFooter(b, size); what == "" {
			require.LessOrEqual(t, foot.properties.end(), size)
			require.LessOrEqual(t, foot.index.end(), foot.properties.offset)
		}
	})
}

// FuzzUnpack: any bytes as a packed block.
func FuzzUnpack(f *testing.F) {
	var scratch []byte
	for _, c := range []Compression{S2, Zstd} {
		b, _ := pack(&scratch, make([]byte, 500), c)
		f.Add(append([]byte(nil), b...), uint8(c))
	}
	f.Fuzz(func(t *testing.T, b []byte, c uint8) {
		n, ok := rawLen(b)
		if !ok || n > 1<<20 {
			return
		}
		_ = unpack(make([]byte, n), b, Compression(c))
	})
}
