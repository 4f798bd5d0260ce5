// Package memory says how much memory the process may use, how much it does, and what follows from that.
// It never frees anything: that is for who owns the memory.
//
// # What is read
//
// All files are read through one fs.FS, the root of the machine:
//
//  1. cgroup v2: the smallest memory.max on the way from the process's group up to the root, and
//     memory.current of that group.
//  2. cgroup v1: memory.limit_in_bytes (or hierarchical_memory_limit, if smaller) and
//     memory.usage_in_bytes of the process's group.
//  3. Without a limit, or with one that is above the memory of the machine: the resident memory of the
//     process against that of the machine.
//
// From the usage of a group its file pages are taken off, active and inactive: they are a cache, which
// the kernel drops before it kills anybody. Tables are read through mappings, so a node with more data
// than memory always fills its group with them, and would be short of memory for ever.
package memory

import "fmt"

// State is how short memory is.
type State uint8

const (
	// OK: enough.
	OK State = iota
	// High: caches shrink and memtables are flushed early.
	High
	// Critical: writes are refused, because the kernel would kill the process next.
	Critical
)

// String returns the word that status and metrics use.
func (s State) String() string { return [...]string{"ok", "high", "critical"}[min(s, Critical)] }

// Reading is memory at one moment, in bytes.
type Reading struct {
	Used, Limit uint64
	// Group says that both are of the process's cgroup; otherwise Used is of the process and Limit of the
	// machine.
	Group bool
}

// Percent returns the used part, 0 to 100.
func (r Reading) Percent() float64 {
	if r.Limit == 0 {
		return 0
	}
	return 100 * float64(r.Used) / float64(r.Limit)
}

// String describes the reading for people.
func (r Reading) String() string {
	of := "the machine"
	if r.Group {
		of = "the container"
	}
	return fmt.Sprintf("%d of %d MiB of %s", r.Used>>20, r.Limit>>20, of)
}

// Thresholds are where states begin, in percent of the limit.
type Thresholds struct{ High, Critical int }

// leavePercent below its beginning a state ends. A collection of garbage alone moves usage by as much.
const leavePercent = 5

// Judge says how short memory is, when it was in state was.
func (t Thresholds) Judge(r Reading, was State) State {
	percent := r.Percent()
	reached := func(s State, begin int) bool {
		if s <= was {
			begin -= leavePercent
		}
		return r.Limit > 0 && percent >= float64(begin)
	}
	switch {
	case reached(Critical, t.Critical):
		return Critical
	case reached(High, t.High):
		return High
	}
	return OK
}

// smallestShare is what caches keep however short memory is: below it every read unpacks blocks anew.
const smallestShare = 1.0 / 8

// NextShare returns the part of their configured size that caches should have next, from the part that
// they have: it halves while memory is high, is the smallest at once when it is critical, and comes back
// by an eighth a step, so that a burst of misses is spread.
func NextShare(s State, share float64) float64 {
	switch s {
	case Critical:
		return smallestShare
	case High:
		return max(share/2, smallestShare)
	}
	return min(share+smallestShare, 1)
}

// GoLimit returns the limit of the Go runtime: what is wanted, but at most nine tenths of the container's
// memory. The rest is for what the runtime does not count: mappings of the binary, stacks of threads, and
// the kernel's memory for sockets and files.
func GoLimit(wanted int64, r Reading) int64 {
	if !r.Group {
		return wanted
	}
	return min(wanted, int64(r.Limit/10*9))
}
