package causal

import (
	"fmt"
	"testing"
)

func benchRecord(counter uint64) Record {
	return Record{[]Sibling{{
		Clock: Clock{{"coordinator-a", counter, 1_700_000_000}, {"coordinator-b", 7, 1_700_000_000}, {"node-2/k3j2", 9, 1_700_000_000}},
		Value: make([]byte, 100), Timestamp: 1_700_000_000_000 << 16,
	}}}
}

func BenchmarkEncode(b *testing.B) {
	r, dst := benchRecord(5), []byte(nil)
	b.ReportAllocs()
	for b.Loop() {
		dst = r.Encode(dst[:0])
	}
}

func BenchmarkDecode(b *testing.B) {
	enc := benchRecord(5).Encode(nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(enc); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSummarize(b *testing.B) {
	enc := benchRecord(5).Encode(nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Summarize(enc, 0); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkJoinEncodedNewer(b *testing.B) {
	older, newer := benchRecord(5).Encode(nil), benchRecord(6).Encode(nil)
	dst := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := JoinEncoded(dst, newer, older); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkApplyFresh(b *testing.B) {
	w := Write{Value: make([]byte, 100), Timestamp: 1 << 40, Dot: Dot{"node/1", 1}}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Apply(Record{}, w, DefaultLimits); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReduceManySiblings(b *testing.B) {
	all := make([]Sibling, 256)
	for i := range all {
		all[i] = Sibling{Dot: Dot{"n", uint64(i + 1)}, Value: []byte(fmt.Sprint(i))}
	}
	b.ReportAllocs()
	for b.Loop() {
		reduce(append([]Sibling(nil), all...))
	}
}
