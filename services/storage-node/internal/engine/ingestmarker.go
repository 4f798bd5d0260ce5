package engine

import (
	"encoding/binary"
	"fmt"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// ingestMarker is the content of frameIngest, and of the frameIngestAbort that takes it back, which
// is always the frame behind it:
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

// repeat brings the tables of a marker into the tree whose edit a crash prevented. They were durable
// before the marker was.
func (m ingestMarker) repeat(e *Engine) error {
	in := &ingest{e: e, seq: m.seq}
	for _, t := range m.tables {
		meta, err := e.readMeta(t)
		if err != nil {
			return fmt.Errorf("repeat the ingest at sequence %d: %w", m.seq, err)
		}
		in.tables = append(in.tables, &manifest.Table{Num: t.num, Meta: meta, Origin: manifest.OriginIngest})
	}
	e.tails.addIngest(m.seq, in.numbers())
	return e.applyEdit(in.edit(), nil, nil)
}

func (e *Engine) readMeta(t markedTable) (meta sstable.Meta, err error) {
	open, err := e.tables.slot(t.num).acquire()
	if err != nil {
		return meta, err
	}
	defer open.release()
	meta = open.Meta()
	if meta.Digest != t.digest {
		return meta, fmt.Errorf("%w: %s is not the table that the marker names", ErrCorrupt, compact.TableName(t.num))
	}
	return meta, nil
}
