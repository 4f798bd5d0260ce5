package store

import (
	"fmt"
	"testing"
	"time"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/stages"
)

// nullEngine costs nothing, so that the benchmarks show this package alone.
type nullEngine struct {
	fakeEngine
	value []byte
}

type nullBatch struct{ n, bytes int }

func (*nullBatch) Urgent()                                  {}
func (*nullBatch) Removal()                                 {}
func (*nullBatch) Trail(*stages.Trail)                      {}
func (b *nullBatch) SetIfUnchanged(k, v []byte, _ ikey.Seq) { b.n++; b.bytes += len(k) + len(v) }
func (b *nullBatch) Merge(k, v []byte)                      { b.n++; b.bytes += len(k) + len(v) }
func (b *nullBatch) Len() int                               { return b.n }
func (b *nullBatch) Bytes() int                             { return b.bytes }
func (b *nullBatch) Reset()                                 { *b = nullBatch{} }

func (e *nullEngine) NewBatch() Batch                { return &nullBatch{} }
func (e *nullEngine) Submit(Batch) (ikey.Seq, error) { return 1, nil }
func (e *nullEngine) WaitDurable(ikey.Seq) error     { return nil }
func (e *nullEngine) GetLatest(_, dst []byte) ([]byte, bool, ikey.Seq, error) {
	return append(dst[:0], e.value...), e.value != nil, 1, nil
}
func (e *nullEngine) Get(_, dst []byte) ([]byte, bool, error) {
	return append(dst[:0], e.value...), e.value != nil, nil
}

func benchStore(b *testing.B, overwrite bool) *Store {
	e := &nullEngine{}
	if overwrite {
		f := newFake()
		put(b, open(b, f, Options{}), "k", string(make([]byte, 100)), Causality{})
		e.value = f.keys["t\x00k"][0].value
	}
	return open(b, e, Options{Now: time.Now})
}

func BenchmarkBatchWrite1000(b *testing.B) {
	for _, overwrite := range []bool{false, true} {
		b.Run(fmt.Sprint("overwrite=", overwrite), func(b *testing.B) {
			s := benchStore(b, overwrite)
			ops := make([]Op, 1000)
			for i := range ops {
				ops[i] = Op{Kind: Put, Key: fmt.Sprintf("user-%08d", i), Value: make([]byte, 100)}
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.BatchWrite(bg, BatchWriteRequest{Tenant: "t", Ops: ops, OmitClocks: true}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/item")
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	for _, overwrite := range []bool{false, true} {
		b.Run(fmt.Sprint("overwrite=", overwrite), func(b *testing.B) {
			s := benchStore(b, overwrite)
			r := WriteRequest{Tenant: "t", Key: "user-00000001", Value: make([]byte, 100)}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Write(bg, r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRead(b *testing.B) {
	s := benchStore(b, true)
	buf := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Read(bg, "t", "user-00000001", buf); err != nil {
			b.Fatal(err)
		}
	}
}
