package engine

import (
	"encoding/binary"
	"fmt"

	"github.com/pairdb/pairdb/libs/ikey"
)

// ingestMarker is the content of frameIngest: where in the order of changes tables were ingested. It
// counts if the manifest has the fact of the ingest (ingestFact).
//
//	sequence u64 ‖ tables u32 ‖ (number u64 ‖ digest u64)…
type ingestMarker struct {
	seq    ikey.Seq
	tables []markedTable
}

type markedTable struct{ num, digest uint64 }

const markedTableBytes = 16

func (m ingestMarker) encode() []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(m.seq))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(m.tables)))
	for _, t := range m.tables {
		b = binary.LittleEndian.AppendUint64(b, t.num)
		b = binary.LittleEndian.AppendUint64(b, t.digest)
	}
	return b
}

func decodeIngestMarker(b []byte) (m ingestMarker, err error) {
	if len(b) < groupHeaderBytes {
		return m, fmt.Errorf("%w: ingest marker of %d bytes", ErrCorrupt, len(b))
	}
	m.seq = ikey.Seq(binary.LittleEndian.Uint64(b))
	n := int(binary.LittleEndian.Uint32(b[8:]))
	b = b[groupHeaderBytes:]
	if m.seq >= ikey.MaxSeq || n > maxIngestTables || len(b) != n*markedTableBytes {
		return m, fmt.Errorf("%w: ingest marker of %d tables in %d bytes", ErrCorrupt, n, len(b))
	}
	for ; len(b) > 0; b = b[markedTableBytes:] {
		m.tables = append(m.tables, markedTable{num: binary.LittleEndian.Uint64(b), digest: binary.LittleEndian.Uint64(b[8:])})
	}
	return m, nil
}
