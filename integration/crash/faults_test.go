package crash

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// diskExit ends a node with the exit code of a failing disk.
const diskExit = 5

// fault is what a system call answers without being done.
type fault struct {
	// answer is that of strace: an error, or a write of nothing.
	answer string
	// words of it in a log.
	words string
	calls []string
}

// The calls whose failure is a failure of the disk: a write to a socket or to the log output is not.
var faults = []fault{
	{"error=EIO", "input/output error", []string{"pwrite64", "fdatasync", "fsync", "renameat", "unlinkat", "mkdirat", "linkat", "fallocate", "sync_file_range", "openat"}},
	{"error=ENOSPC", "no space left on device", []string{"pwrite64", "fdatasync", "renameat", "mkdirat", "linkat", "fallocate", "openat"}},
	{"retval=0", "", []string{"pwrite64"}},
}

func TestInjectedErrorsOfProcessesAreReportedOrHarmless(t *testing.T) {
	// A disk that says no, once for each thread, at any moment of a real process: the node may refuse, or end,
	// and must not say yes to what it then has not.
	requireStrace(t)
	each := 1
	if long {
		each = 1 << 30
	}
	injected, reported, ended := 0, 0, 0
	for _, s := range scenes(t) {
		t.Run(s.name, func(t *testing.T) {
			reached := points(s.play(t, "").tracer("").calls(t))
			for _, f := range faults {
				for _, p := range faultPoints(reached, f, each) {
					t.Run(fmt.Sprintf("%s %d %s", p.name, p.n, f.answer), func(t *testing.T) {
						r := s.play(t, fmt.Sprintf("%s:%s:when=%d", p.name, f.answer, p.n))
						hit := false
						for _, c := range r.tracer("").calls(t) {
							if !c.injected || !strings.Contains(c.text, r.pod.Data()) {
								continue
							}
							hit = true
							if !s.compactor && strings.HasPrefix(c.name, "fdatasync") && (strings.Contains(c.text, "/log/") || strings.Contains(c.text, "/manifest/")) {
								require.Equal(t, diskExit, r.exit, "a sync that failed must end the node: %s", c.text)
							}
						}
						if hit {
							injected++
							if len(r.told) > 0 || f.words != "" && strings.Contains(r.log.String(), f.words) {
								reported++
							}
							if r.exit != 0 {
								ended++
							}
						}
						r.requireKept(s.compactor)
					})
				}
			}
		})
	}
	t.Logf("%d faults: %d reported, the process ended with %d, the others were harmless", injected, reported, ended)
	require.Greater(t, injected, 15)
	require.Positive(t, reported)
	require.Positive(t, ended)
	require.Less(t, ended, injected, "not every fault may end the process")
}

// faultPoints are points of the calls of a fault, at most each of a name.
func faultPoints(reached []point, f fault, each int) []point {
	var some []point
	for _, name := range f.calls {
		var of []point
		for _, p := range reached {
			if p.name == name {
				of = append(of, p)
			}
		}
		some = append(some, spread(of, each)...)
	}
	return some
}
