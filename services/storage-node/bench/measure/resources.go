package measure

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// Resources are what this process has used since it began. Differences of two are what counts.
type Resources struct {
	// CPU is user and system time of all threads: of the operations and of what they cause in the
	// background.
	CPU time.Duration
	// Mallocs are allocations of Go objects.
	Mallocs uint64
	// WrittenBytes is write_bytes of /proc/self/io: pages of files that were made dirty, through
	// write or through a mapping, and bytes that went past the page cache. A page that is written a
	// hundred times before it reaches the disk counts once, as on the disk; one that is synced after
	// each of a hundred small appends counts a hundred times, as on the disk. What wchar says
	// instead leaves mappings out and takes no notice of pages.
	WrittenBytes uint64
}

// Used returns the resources used so far.
func Used() Resources {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // fails for bad arguments only
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return Resources{
		CPU:          time.Duration(u.Utime.Nano() + u.Stime.Nano()),
		Mallocs:      m.Mallocs,
		WrittenBytes: writtenBytes(),
	}
}

// Since returns what was used between before and r.
func (r Resources) Since(before Resources) Resources {
	return Resources{CPU: r.CPU - before.CPU, Mallocs: r.Mallocs - before.Mallocs, WrittenBytes: r.WrittenBytes - before.WrittenBytes}
}

func writtenBytes() uint64 {
	b, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte("write_bytes: ")); ok {
			n, _ := strconv.ParseUint(string(bytes.TrimSpace(rest)), 10, 64)
			return n
		}
	}
	return 0
}

// DiskBytes returns what the files below dir take on the disk, as du counts: blocks, not lengths.
func DiskBytes(dir string) (total uint64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil // deleted meanwhile
		}
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			total += uint64(s.Blocks) * 512
		}
		return nil
	})
	return total, err
}
