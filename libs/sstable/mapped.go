package sstable

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync/atomic"

	"github.com/pairdb/pairdb/libs/vfs"
)

// mapped is the file in memory. It is made once and stays until Close, so a read that began with it
// ends with it; on says whether new reads use it.
type mapped struct {
	vfs.Mapping
	on atomic.Bool
}

// Map makes reads take what they need from memory, without a system call, as long as at least three
// quarters of the file are in the page cache: a page that is not there would make the reader's
// thread, and the processor that it holds, wait for the disk. Whoever keeps tables open calls it
// again from time to time, from one goroutine. It reports whether reads use the mapping now; a
// file that can't be mapped is no error.
func (r *Reader) Map() (bool, error) {
	m := r.mapping.Load()
	if m == nil {
		inner, err := r.f.Map(int64(r.foot.size))
		if errors.Is(err, vfs.ErrNotMapped) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("map table %s: %w", r.o.Name, err)
		}
		m = &mapped{Mapping: inner}
		r.mapping.Store(m)
	}
	resident, err := m.ResidentBytes()
	if err != nil {
		return false, fmt.Errorf("map table %s: %w", r.o.Name, err)
	}
	if resident < int64(r.foot.size)/4*3 {
		m.on.Store(false)
		return false, nil
	}
	if !m.on.Load() {
		if err := m.Populate(); err != nil {
			return false, fmt.Errorf("map table %s: %w", r.o.Name, err)
		}
		m.on.Store(true)
	}
	return true, nil
}

// mapped returns the mapping if reads are to use it.
func (r *Reader) mapped() *mapped {
	if m := r.mapping.Load(); m != nil && m.on.Load() {
		return m
	}
	return nil
}

func (r *Reader) unmap() error {
	if m := r.mapping.Load(); m != nil {
		return m.Close()
	}
	return nil
}

// copyMapped checks a block in memory and returns its content in memory of its own: nothing that is
// handed out aliases the mapping. It is checked each time, since a page may have been evicted and read
// again. A page that the disk can't give is an error like that of a read.
func (r *Reader) copyMapped(m *mapped, h handle) (out []byte, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer r.recoverFault(h, &err)
	return r.copyBlock(h, m.Bytes()[h.offset:h.end()])
}

// mappedValue is openValue of a value block in memory.
func (r *Reader) mappedValue(m *mapped, h handle, scratch []byte) (out []byte, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer r.recoverFault(h, &err)
	return r.openValue(h, m.Bytes()[h.offset:h.end()], scratch)
}

// recoverFault turns a fault in a mapping into an error.
func (r *Reader) recoverFault(h handle, err *error) {
	p := recover()
	if p == nil {
		return
	}
	fault, ok := p.(interface {
		runtime.Error
		Addr() uintptr
	})
	if !ok {
		panic(p)
	}
	*err = fmt.Errorf("read table %s at %d: page of the mapped file: %w", r.o.Name, h.offset, fault)
}
