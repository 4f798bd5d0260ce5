package wire

import (
	"strings"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
)

// OutputsToProto converts what an attempt wrote.
func OutputsToProto(outs []compact.Output) ([]*compactionv1.Output, error) {
	if len(outs) > MaxOutputs {
		return nil, invalid("%d outputs, at most %d", len(outs), MaxOutputs)
	}
	ps := make([]*compactionv1.Output, 0, len(outs))
	for _, o := range outs {
		ps = append(ps, &compactionv1.Output{
			Index: int32(o.Index), SizeBytes: int64(o.Size), Digest: o.Digest,
			Smallest: o.Smallest.Append(nil), Largest: o.Largest.Append(nil),
			MinSequence: uint64(o.MinSeq), MaxSequence: uint64(o.MaxSeq), Entries: o.Entries,
		})
	}
	return ps, nil
}

// OutputsFromProto converts what a worker says that it wrote. Of the tables' Meta only what is on
// the wire is set; the rest is in the files.
func OutputsFromProto(ps []*compactionv1.Output) ([]compact.Output, error) {
	if len(ps) > MaxOutputs {
		return nil, invalid("%d outputs, at most %d", len(ps), MaxOutputs)
	}
	outs := make([]compact.Output, 0, len(ps))
	for _, p := range ps {
		smallest, err := decodeKey(p.GetSmallest())
		if err != nil {
			return nil, err
		}
		largest, err := decodeKey(p.GetLargest())
		if err != nil {
			return nil, err
		}
		if p.GetIndex() < 1 || p.GetIndex() > MaxOutputs || p.GetSizeBytes() <= 0 {
			return nil, invalid("output %d of %d bytes", p.GetIndex(), p.GetSizeBytes())
		}
		outs = append(outs, compact.Output{Index: int(p.GetIndex()), Meta: sstable.Meta{
			Size: uint64(p.GetSizeBytes()), Digest: p.GetDigest(), Smallest: smallest, Largest: largest,
			MinSeq: ikey.Seq(p.GetMinSequence()), MaxSeq: ikey.Seq(p.GetMaxSequence()), Entries: p.GetEntries(),
		}})
	}
	return outs, nil
}

// StatsToProto converts the counts of an attempt.
func StatsToProto(s compact.Stats) *compactionv1.JobStats {
	return &compactionv1.JobStats{
		EntriesIn: s.EntriesIn, EntriesOut: s.EntriesOut, Shadowed: s.Shadowed, Joined: s.Joined,
		Collected: s.Collected, Dropped: s.Dropped, DropLeft: s.DropLeft,
		BytesRead: s.BytesRead, BytesWritten: s.BytesWritten,
	}
}

// StatsFromProto converts the counts of an attempt.
func StatsFromProto(p *compactionv1.JobStats) compact.Stats {
	return compact.Stats{
		EntriesIn: p.GetEntriesIn(), EntriesOut: p.GetEntriesOut(), Shadowed: p.GetShadowed(), Joined: p.GetJoined(),
		Collected: p.GetCollected(), Dropped: p.GetDropped(), DropLeft: p.GetDropLeft(),
		BytesRead: p.GetBytesRead(), BytesWritten: p.GetBytesWritten(),
	}
}

// CorruptToProto converts what is damaged.
func CorruptToProto(cs []compact.CorruptInput) ([]*compactionv1.CorruptInput, error) {
	if len(cs) > MaxInputs {
		return nil, invalid("%d damaged inputs, at most %d", len(cs), MaxInputs)
	}
	ps := make([]*compactionv1.CorruptInput, 0, len(cs))
	for _, c := range cs {
		ps = append(ps, &compactionv1.CorruptInput{Number: c.Num, Reason: Text(c.Reason)})
	}
	return ps, nil
}

// CorruptFromProto converts what a worker says that is damaged.
func CorruptFromProto(ps []*compactionv1.CorruptInput) ([]compact.CorruptInput, error) {
	if len(ps) > MaxInputs {
		return nil, invalid("%d damaged inputs, at most %d", len(ps), MaxInputs)
	}
	var cs []compact.CorruptInput
	for _, p := range ps {
		if len(p.GetReason()) > MaxReasonBytes {
			return nil, invalid("a reason of %d bytes, at most %d", len(p.GetReason()), MaxReasonBytes)
		}
		cs = append(cs, compact.CorruptInput{Num: p.GetNumber(), Reason: p.GetReason()})
	}
	return cs, nil
}

// Text makes a text for people fit for the wire: valid UTF-8 of at most MaxReasonBytes.
func Text(s string) string {
	if len(s) > MaxReasonBytes {
		s = s[:MaxReasonBytes]
	}
	// A byte is replaced by a byte, so the text does not grow.
	return strings.ToValidUTF8(s, "?")
}
