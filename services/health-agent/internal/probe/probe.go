// Package probe is what the health-agent measures itself, beside what the storage node says: the free
// space of the data volume, its own memory and open files, and whether the wall clock jumps. It never
// judges, and what it can't read it leaves out: a probe that fails is no fault of the pod.
package probe

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pairdb/pairdb/libs/vfs"
)

// Sample is one measurement.
type Sample struct {
	// DiskPercent is the used part of the data volume, 0 to 100; negative: it is out of reach.
	DiskPercent float64
	// MemoryPercent is the used part of the memory that the agent's container may have; 0: no limit.
	MemoryPercent float64
	// FilesPercent is the used part of the agent's open files; 0: not known.
	FilesPercent float64
	// ClockJump is how far the wall clock jumped within the last minute; 0: it did not.
	ClockJump time.Duration
}

// Prober measures. It is not safe for concurrent use.
type Prober struct {
	dataDir string
	root    string // of the file system with /proc and /sys
	clock   Clock
}

// New returns a prober of the data volume at dataDir, which need not exist.
func New(dataDir string) *Prober { return &Prober{dataDir: dataDir, root: "/"} }

// Measure measures. now must have a monotonic reading, as time.Now gives it.
func (p *Prober) Measure(now time.Time) Sample {
	return Sample{
		DiskPercent:   diskPercent(p.dataDir),
		MemoryPercent: memoryPercent(p.root),
		FilesPercent:  filesPercent(p.root),
		ClockJump:     p.clock.Observe(now, now.Sub(started)),
	}
}

// started anchors the monotonic clock.
var started = time.Now()

// diskPercent is the used part of the volume, counted as the node counts it.
func diskPercent(dir string) float64 {
	u, err := vfs.OS.Usage(dir)
	if err != nil || u.TotalBytes == 0 {
		return -1
	}
	return 100 * (1 - float64(u.FreeBytes)/float64(u.TotalBytes))
}

// memoryPercent reads the cgroup of this process: version 2 as a container or a service sees it, then
// version 1.
func memoryPercent(root string) float64 {
	group := ""
	if b, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup")); err == nil {
		for line := range strings.Lines(string(b)) {
			if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
				group = path
			}
		}
	}
	for _, files := range [][2]string{
		{"sys/fs/cgroup" + group + "/memory.current", "sys/fs/cgroup" + group + "/memory.max"},
		{"sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.max"},
		{"sys/fs/cgroup/memory/memory.usage_in_bytes", "sys/fs/cgroup/memory/memory.limit_in_bytes"},
	} {
		used, ok := readNumber(filepath.Join(root, files[0]))
		limit, limited := readNumber(filepath.Join(root, files[1]))
		// Version 1 says "no limit" with a number that no machine has.
		if ok && limited && limit > 0 && limit < 1<<60 {
			return 100 * used / limit
		}
	}
	return 0
}

func readNumber(path string) (float64, bool) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64) // "max" is no number
	return float64(n), err == nil
}

func filesPercent(root string) float64 {
	dir, err := os.Open(filepath.Join(root, "proc/self/fd"))
	if err != nil {
		return 0
	}
	defer dir.Close() //nolint:errcheck // only read
	names, err := dir.Readdirnames(-1)
	var limit syscall.Rlimit
	if err != nil || syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil || limit.Cur == 0 {
		return 0
	}
	return 100 * float64(len(names)) / float64(limit.Cur)
}

const (
	// jumpLimit is above what a disciplined clock is slewed within one measurement: 500 ppm of a
	// minute are 30 ms. Clients compare wall clocks of nodes by the second.
	jumpLimit = time.Second
	// jumpMemory is how long a jump is reported: longer than a scrape takes to come by.
	jumpMemory = time.Minute
)

// Clock notices jumps of the wall clock: it compares how far it went with how far the monotonic clock
// did. The zero value is ready.
type Clock struct {
	wall time.Time
	mono time.Duration
	jump time.Duration
	at   time.Duration // of the jump
}

// Observe takes both clocks and returns the last jump of the wall clock, forward positive, while it is
// young; 0 when there was none.
func (c *Clock) Observe(wall time.Time, mono time.Duration) time.Duration {
	wall = wall.Round(0) // without the monotonic reading
	if !c.wall.IsZero() {
		if jump := wall.Sub(c.wall) - (mono - c.mono); jump.Abs() >= jumpLimit {
			c.jump, c.at = jump, mono
		}
	}
	c.wall, c.mono = wall, mono
	if c.jump != 0 && mono-c.at > jumpMemory {
		c.jump = 0
	}
	return c.jump
}
