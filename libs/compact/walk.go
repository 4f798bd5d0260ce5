package compact

import (
	"bytes"
	"cmp"
	"errors"
	"slices"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/iterator"
	"github.com/pairdb/pairdb/libs/sstable"
)

// walks returns one walk for each run of disjoint tables of a level, so that a merge of a large
// level compares two keys instead of thirty, and only one table of a run has a buffer.
func (r *run) walks() []iterator.Iterator {
	order := make([]int, len(r.readers)) // indices of inputs
	for i := range order {
		order[i] = i
	}
	in := r.job.Inputs
	slices.SortStableFunc(order, func(a, b int) int {
		if c := cmp.Compare(in[a].Level, in[b].Level); c != 0 || in[a].Level == 0 {
			return c
		}
		return ikey.Compare(r.readers[a].Meta().Smallest, r.readers[b].Meta().Smallest)
	})
	var its []iterator.Iterator
	for i, at := range order {
		if i > 0 {
			before := order[i-1]
			if in[at].Level > 0 && in[before].Level == in[at].Level && follows(r.readers[before].Meta(), r.readers[at].Meta()) {
				w := its[len(its)-1].(*walk)
				w.inputs = append(w.inputs, at)
				continue
			}
		}
		its = append(its, &walk{run: r, inputs: []int{at}})
	}
	return its
}

// follows reports whether all entries of b are behind all of a.
func follows(a, b sstable.Meta) bool {
	c := bytes.Compare(a.Largest.User, b.Smallest.User)
	return c < 0 || c == 0 && sstable.IsExclusive(a.Largest)
}

var errForwardOnly = errors.New("a compaction walks forward only")

// walk goes forward through disjoint tables, one after the other, in large reads.
type walk struct {
	run    *run
	inputs []int // indices of inputs, ascending by key
	next   int   // of inputs: the table after it
	it     *sstable.Iter
	num    uint64 // table of it
	err    error
}

// First moves to the smallest entry.
func (w *walk) First() bool {
	w.next = 0
	return w.advance(false)
}

// Next moves one entry forward.
func (w *walk) Next() bool { return w.it != nil && w.advance(w.it.Next()) }

// advance goes on to the next table unless ok.
func (w *walk) advance(ok bool) bool {
	for !ok {
		if w.err = w.leave(); w.err != nil || w.next == len(w.inputs) {
			return false
		}
		i := w.inputs[w.next]
		w.next++
		w.num = w.run.job.Inputs[i].Num
		w.it = w.run.readers[i].NewScan(sstable.ScanOptions{DropBehind: true, OnRead: w.run.read})
		ok = w.it.First()
	}
	return true
}

// leave closes the iterator of the table and says what stopped it.
func (w *walk) leave() error {
	if w.it == nil {
		return nil
	}
	err := w.it.Close()
	w.it = nil
	if err != nil {
		return &InputError{w.num, err}
	}
	return nil
}

// Last, SeekGE, SeekLT and Prev are not for compactions.
func (w *walk) Last() bool           { return w.refuse() }
func (w *walk) SeekGE(ikey.Key) bool { return w.refuse() }
func (w *walk) SeekLT(ikey.Key) bool { return w.refuse() }
func (w *walk) Prev() bool           { return w.refuse() }

func (w *walk) refuse() bool {
	_ = w.leave()
	w.err = errForwardOnly
	return false
}

func (w *walk) Valid() bool   { return w.it != nil && w.it.Valid() }
func (w *walk) Key() ikey.Key { return w.it.Key() }
func (w *walk) Err() error    { return w.err }

func (w *walk) Value() []byte {
	v := w.it.Value()
	if v == nil {
		w.noteError()
	}
	return v
}

// noteError takes over a failure to read a value.
func (w *walk) noteError() {
	if err := w.it.Err(); err != nil {
		w.err = &InputError{w.num, err}
	}
}

// stored returns the value as it is in the input; ok is false if it has no block of its own, or can't
// be read.
func (w *walk) stored() (s sstable.Stored, ok bool) {
	if s, ok = w.it.Stored(); !ok {
		w.noteError()
	}
	return s, ok
}

// Close ends the walk.
func (w *walk) Close() error {
	if err := w.leave(); w.err == nil {
		w.err = err
	}
	w.next = len(w.inputs)
	return w.err
}
