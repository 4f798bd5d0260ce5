package vfs

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

func (f osFile) Map(size int64) (Mapping, error) {
	if size <= 0 || size > math.MaxInt {
		return nil, fmt.Errorf("%w: %d bytes", ErrNotMapped, size)
	}
	var m osMapping
	err := control(f.File, func(fd int) (err error) {
		m.bytes, err = unix.Mmap(fd, 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
		return err
	})
	if err != nil {
		return nil, &fs.PathError{Op: "mmap", Path: f.Name(), Err: errors.Join(ErrNotMapped, err)}
	}
	// Point reads: reading ahead would fetch what nobody asked for. It is advice.
	_ = unix.Madvise(m.bytes, unix.MADV_RANDOM)
	return &m, nil
}

type osMapping struct{ bytes []byte }

func (m *osMapping) Bytes() []byte { return m.bytes }

// residentVector is how many pages one call of mincore is asked about.
const residentVector = 64 << 10

func (m *osMapping) ResidentBytes() (int64, error) {
	page := os.Getpagesize()
	pages := (len(m.bytes) + page - 1) / page
	vec := make([]byte, min(pages, residentVector))
	resident := int64(0)
	for at := 0; at < len(m.bytes); at += residentVector * page {
		part := m.bytes[at:min(at+residentVector*page, len(m.bytes))]
		if err := mincore(part, vec); err != nil {
			return 0, fmt.Errorf("mincore: %w", err)
		}
		for i := range (len(part) + page - 1) / page {
			resident += int64(vec[i] & 1)
		}
	}
	return min(resident*int64(page), int64(len(m.bytes))), nil
}

func (m *osMapping) Populate() error {
	err := unix.Madvise(m.bytes, unix.MADV_POPULATE_READ)
	if errors.Is(err, unix.EINVAL) {
		return nil // older kernels: pages fault one by one
	}
	return err
}

func (m *osMapping) Close() error {
	b := m.bytes
	m.bytes = nil
	if b == nil {
		return nil
	}
	return unix.Munmap(b)
}

// mincore tells for each page of b whether it is in memory; vec has a byte for each.
func mincore(b, vec []byte) error {
	if len(b) == 0 {
		return nil
	}
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
		uintptr(unsafe.Pointer(unsafe.SliceData(vec))))
	if errno != 0 {
		return errno
	}
	return nil
}
