package crash

import (
	"bufio"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// writePath are the system calls that change what a restart finds, or tell others of it. A question mark:
// not every processor has it.
var writePath = []string{
	"write", "writev", "pwrite64", "?pwritev", "?pwritev2", "fsync", "fdatasync", "?sync_file_range", "openat", "fallocate", "ftruncate", "?truncate",
	"?rename", "?renameat", "renameat2", "?link", "linkat", "?unlink", "unlinkat", "?rmdir", "?mkdir", "mkdirat", "?fchmod", "?copy_file_range",
}

// tracer is a strace that writes to file; injection may be empty.
type tracer struct {
	file      string
	injection string
}

// requireStrace skips or fails where there is none.
func requireStrace(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		require.NotEqual(t, "true", os.Getenv("CI"), "CI must have strace: apt-get install strace")
		t.Skip("without strace nothing can be injected: apt-get install strace")
	}
}

func (s tracer) command() []string {
	args := []string{"strace", "-f", "-qq", "-y", "-o", s.file, "-e", "trace=" + strings.Join(writePath, ",")}
	if s.injection != "" {
		args = append(args, "-e", "inject="+s.injection)
	}
	return append(args, "--")
}

// call is one line of a trace that names a system call.
type call struct {
	thread, name, text string
	injected           bool
}

var callLine = regexp.MustCompile(`^(\d+) +(\w+)\((.*)$`)

// calls reads a trace in the order of its calls.
func (s tracer) calls(t *testing.T) []call {
	t.Helper()
	f, err := os.Open(s.file)
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	var all []call
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if m := callLine.FindStringSubmatch(lines.Text()); m != nil {
			all = append(all, call{m[1], m[2], m[3], strings.Contains(m[3], "(INJECTED)")})
		} else if strings.Contains(lines.Text(), "(INJECTED)") { // the second half of a call that was interrupted
			thread, _, _ := strings.Cut(lines.Text(), " ")
			for i, c := range slices.Backward(all) {
				if c.thread == thread {
					all[i].injected = true
					break
				}
			}
		}
	}
	require.NoError(t, lines.Err())
	return all
}

// point is a place in a run: the first thread that is about to make its nth call of a name. strace counts
// for each thread by itself.
type point struct {
	name string
	n    int
}

// points are those that a run had, thread by thread.
func points(calls []call) []point {
	count, most := map[string]int{}, map[string]int{}
	for _, c := range calls {
		count[c.thread+" "+c.name]++
		most[c.name] = max(most[c.name], count[c.thread+" "+c.name])
	}
	var all []point
	for name, n := range most {
		for i := range n {
			all = append(all, point{name, i + 1})
		}
	}
	slices.SortFunc(all, func(a, b point) int {
		if c := strings.Compare(a.name, b.name); c != 0 {
			return c
		}
		return a.n - b.n
	})
	return all
}
