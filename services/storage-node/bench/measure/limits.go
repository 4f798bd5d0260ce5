package measure

import (
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"
	"unsafe"

	"github.com/klauspost/compress/s2"
)

// Limit is one thing that the machine can do, and how fast.
type Limit struct {
	Name, Unit string
	Value      float64
}

const (
	page = 4096
	// limitFileBytes is what the reads and the writes in place go round in: beyond the processor's
	// caches, within the page cache.
	limitFileBytes = 64 << 20
)

// Limits measures what the machine can do at best, each for about each: no engine can be faster than
// the syncs, copies and checksums it needs. value is a typical one. The files are made below dir and
// removed.
func Limits(dir string, each time.Duration, value []byte) (limits []Limit, err error) {
	tmp, err := os.MkdirTemp(dir, "limits-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	disk, err := diskLimits(tmp, each)
	if err != nil {
		return nil, err
	}
	reads, err := readLimits(filepath.Join(tmp, "written"), each)
	if err != nil {
		return nil, err
	}
	return append(append(disk, reads...), memoryLimits(each, value)...), nil
}

// perSecond repeats step for the duration and returns its rate. Steps are counted in rounds, so that
// the clock costs nothing beside a short one.
func perSecond(each time.Duration, round int, step func(n int) error) (float64, error) {
	start := time.Now()
	for n := 0; ; {
		for range round {
			if err := step(n); err != nil {
				return 0, err
			}
			n++
		}
		if took := time.Since(start); took >= each {
			return float64(n) / took.Seconds(), nil
		}
	}
}

// diskLimits are syncs per second of one page each: behind the end of a file; in place, in a file
// whose pages have been written; and the latter past the page cache. It leaves the file "written".
func diskLimits(dir string, each time.Duration) ([]Limit, error) {
	buffer := aligned(page)
	appended, err := os.Create(filepath.Join(dir, "appended"))
	if err != nil {
		return nil, err
	}
	defer appended.Close()
	appends, err := perSecond(each, 1, func(int) error {
		if _, err := appended.Write(buffer); err != nil {
			return err
		}
		return syscall.Fdatasync(int(appended.Fd()))
	})
	if err != nil {
		return nil, fmt.Errorf("append and sync: %w", err)
	}

	name := filepath.Join(dir, "written")
	if err := os.WriteFile(name, make([]byte, limitFileBytes), 0o666); err != nil {
		return nil, err
	}
	inPlace := func(flags int, sync bool) (float64, error) {
		f, err := os.OpenFile(name, os.O_WRONLY|flags, 0)
		if err != nil {
			return 0, err
		}
		defer f.Close()
		if err := f.Sync(); err != nil {
			return 0, err
		}
		return perSecond(each, 1, func(n int) error {
			if _, err := f.WriteAt(buffer, int64(n*page%limitFileBytes)); err != nil || !sync {
				return err
			}
			return syscall.Fdatasync(int(f.Fd()))
		})
	}
	overwrites, err := inPlace(0, true)
	if err != nil {
		return nil, fmt.Errorf("write in place and sync: %w", err)
	}
	limits := []Limit{
		{"append 4 KiB and fdatasync", "per second", appends},
		{"overwrite 4 KiB of a written file and fdatasync", "per second", overwrites},
	}
	direct, err := inPlace(syscall.O_DIRECT|syscall.O_DSYNC, false)
	switch {
	case errors.Is(err, syscall.EINVAL): // some file systems have no O_DIRECT: there is no such limit
	case err != nil:
		return nil, fmt.Errorf("write in place with O_DIRECT|O_DSYNC: %w", err)
	default:
		limits = append(limits, Limit{"overwrite 4 KiB with O_DIRECT and O_DSYNC", "per second", direct})
	}
	return limits, nil
}

// readLimits are reads of any page from the page cache: by a system call, and from a mapping.
func readLimits(name string, each time.Duration) ([]Limit, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	buffer := make([]byte, page)
	r := rand.New(rand.NewPCG(1, 2))
	offset := func() int64 { return r.Int64N(limitFileBytes/page) * page }
	if _, err := perSecond(0, limitFileBytes/page, func(n int) error { // warm
		_, err := f.ReadAt(buffer, int64(n*page))
		return err
	}); err != nil {
		return nil, err
	}
	preads, err := perSecond(each, 100, func(int) error {
		_, err := f.ReadAt(buffer, offset())
		return err
	})
	if err != nil {
		return nil, err
	}
	mapped, err := syscall.Mmap(int(f.Fd()), 0, limitFileBytes, syscall.PROT_READ, syscall.MAP_SHARED|syscall.MAP_POPULATE)
	if err != nil {
		return nil, err
	}
	copies, err := perSecond(each, 100, func(int) error {
		copy(buffer, mapped[offset():])
		return nil
	})
	return []Limit{
		{"pread of 4 KiB in the page cache", "ns", 1e9 / preads},
		{"copy of 4 KiB out of a mapping", "ns", 1e9 / copies},
	}, errors.Join(err, syscall.Munmap(mapped))
}

// memoryLimits are copies, checksums and compression of what the values are like.
func memoryLimits(each time.Duration, value []byte) []Limit {
	from, to := make([]byte, limitFileBytes), make([]byte, limitFileBytes)
	for i := range from {
		from[i] = byte(i)
	}
	copy(to, from) // the first touch of fresh memory costs more than the copy
	table := crc32.MakeTable(crc32.Castagnoli)
	block := from[:64<<10]
	packed := s2.Encode(nil, value)
	unpacked := make([]byte, len(value))
	room := make([]byte, s2.MaxEncodedLen(len(value)))
	gigabytes := func(bytes, round int, step func()) float64 {
		rate, _ := perSecond(each, round, func(int) error { step(); return nil }) // step can't fail
		return rate * float64(bytes) / 1e9
	}
	return []Limit{
		{"memcpy of 64 MiB", "GB/s", gigabytes(len(from), 1, func() { copy(to, from) })},
		{"CRC-32C of 64 KiB", "GB/s", gigabytes(len(block), 10, func() { to[0] ^= byte(crc32.Checksum(block, table)) })},
		{"S2 compression of a value", "GB/s", gigabytes(len(value), 10, func() { s2.Encode(room, value) })},
		{"S2 decompression of a value", "GB/s", gigabytes(len(value), 10, func() { _, _ = s2.Decode(unpacked, packed) })},
		{"a value by itself compresses to", "%", 100 * float64(len(packed)) / float64(len(value))},
	}
}

// aligned returns memory for O_DIRECT.
func aligned(n int) []byte {
	b := make([]byte, n+page)
	off := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (page - 1))
	return b[off : off+n : off+n]
}
