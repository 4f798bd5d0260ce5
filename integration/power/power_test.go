// Package power cuts the power of a machine that writes, on real file systems. It starts nothing on this
// machine but a guest.
package power

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
)

// disk is a file system with the options of its mount.
type disk struct{ fs, options string }

func (d disk) String() string { return strings.TrimSuffix(d.fs+","+d.options, ",") }

// disks: commit is how often, in seconds, ext4 writes by itself what nobody has synced.
var disks = []disk{{"ext4", "commit=1"}, {"ext4", "commit=5"}, {"ext4", "commit=1000"}, {"xfs", ""}, {"btrfs", ""}}

// cuts of each disk; the short form has one of those that keep the least of what is not synced.
func cuts(d disk) int {
	if os.Getenv("PAIRDB_LONG") != "" {
		return 20
	}
	if d.options == "commit=1" || d.options == "commit=5" {
		return 0
	}
	return 1
}

// mustHappen are counters that no campaign may leave at zero: what a cut is to hit. Each flush and each merge
// is a change of the manifest as well.
var mustHappen = map[string]string{
	"flushed memtables": "pairdb_memtable_rotations_total",
	"merges":            "pairdb_compaction_installed_total",
	"rotations":         "pairdb_commitlog_rotations_total",
	"recycled segments": "pairdb_commitlog_segments_recycled_total",
}

func TestPowerCutsOnRealFileSystemsLoseNothing(t *testing.T) {
	// crashfs is our model of a disk, and a killed process leaves the kernel alive. Here a kernel with a real
	// file system loses its disk in the middle, and what that file system makes of it is what the node gets.
	c := newCampaign(t)
	for _, d := range disks {
		for i := range cuts(d) {
			t.Run(fmt.Sprintf("%s/%d", d, i), func(t *testing.T) { c.cut(t, d) })
		}
	}
	for i := 0; i < spareCuts && !t.Failed() && !c.complete(); i++ {
		d := disks[i%len(disks)]
		t.Run(fmt.Sprintf("%s/later %d", d, i), func(t *testing.T) { c.cut(t, d) })
	}
	t.Logf("%d cuts, %d acknowledged steps; what the cuts had to hit: %v", c.cuts, c.steps, c.hit)
	if !t.Failed() {
		require.True(t, c.complete(), "there was nothing to hit: %v", c.hit)
	}
}

// campaign is a row of cuts.
type campaign struct {
	powercut, guest, binaries string
	rand                      *rand.Rand
	// seconds within which power goes; more on a machine that is slow.
	seconds float64
	cuts    int
	// steps that were acknowledged, and what had happened before the cuts.
	steps int
	hit   map[string]float64
}

const (
	// enoughSteps of one guest are some flushes and merges.
	enoughSteps = 150
	// spareCuts follow, later ones, while something has never happened.
	spareCuts = 6
	// An emulated node serves after two seconds, and not much later on a busy machine.
	firstCut, lastCut = 2, 45
)

// newCampaign builds the guest. The test ends here where nothing cuts the power.
func newCampaign(t *testing.T) *campaign {
	t.Helper()
	powercut := os.Getenv("POWERCUT")
	if powercut == "none" {
		t.Skip("POWERCUT=none: whoever runs this has said that nothing here cuts the power")
	}
	if powercut == "" {
		require.NotEqual(t, "true", os.Getenv("CI"), "CI must say in POWERCUT which program cuts the power: docs/TESTING.md")
		t.Skip("POWERCUT does not say which program cuts the power: docs/TESTING.md")
	}
	binaries := podtest.Binaries(t)
	guest := filepath.Join(t.TempDir(), "guest")
	build := exec.Command("go", "build", "-trimpath", "-o", guest, "./guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)

	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return &campaign{
		powercut: powercut, guest: guest, binaries: binaries, rand: rand.New(rand.NewPCG(seed, 1)), seconds: 8, hit: map[string]float64{},
	}
}

func (c *campaign) complete() bool {
	for what := range mustHappen {
		if c.hit[what] == 0 {
			return false
		}
	}
	return true
}

// cut runs a guest, cuts its power and has it check itself.
func (c *campaign) cut(t *testing.T, d disk) {
	dir := c.dir(t)
	after := min(firstCut+c.seconds*c.rand.Float64(), lastCut)
	out, err := c.run(d, dir, after)
	if err != nil {
		for _, name := range []string{"run.log", "check.log", "guest.log"} {
			b, _ := os.ReadFile(filepath.Join(dir, name)) // one that is missing says nothing
			t.Logf("%s:\n%s", name, b[max(0, len(b)-4<<10):])
		}
	}
	require.NoError(t, err, "cut after %.3f s: %s", after, out)
	c.cuts++
	for what, name := range mustHappen {
		c.hit[what] += counter(t, filepath.Join(dir, "metrics"), name)
	}
	steps := notes(t, dir)
	t.Logf("cut after %.3f s, %d steps acknowledged", after, steps)
	if c.steps += steps; steps < enoughSteps {
		c.seconds *= 1.5
	}
}

// dir is what survives of a guest.
func (c *campaign) dir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cut") // t.TempDir can have a comma, which separates disks for the guest
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// run runs a guest whose node has the configuration env besides; the error is the check's.
func (c *campaign) run(d disk, dir string, after float64, env ...string) ([]byte, error) {
	cut := exec.Command(c.powercut, "--fs", d.fs, "--opts", d.options, "--after", strconv.FormatFloat(after, 'f', 3, 64),
		"--run", strings.Join(append([]string{c.guest, "write", c.binaries}, env...), " "), "--check", fmt.Sprintf("%s check %s", c.guest, c.binaries))
	cut.Env = append(os.Environ(), "POWERCUT_OUT="+dir)
	return cut.CombinedOutput()
}

func TestAPowerCutIsSeenWhereNothingIsSynced(t *testing.T) {
	// A cut that cuts nothing, or a check that sees nothing, would make the other test worthless: a node that
	// is told not to sync must lose what it answered.
	if os.Getenv("PAIRDB_LONG") == "" {
		t.Skip("one more cut: in the long form, make power")
	}
	c := newCampaign(t)
	for range spareCuts {
		dir := c.dir(t)
		out, err := c.run(disk{"ext4", "commit=1000"}, dir, lastCut/2, "PAIRDB_SYNC=never", "PAIRDB_MEMTABLE_BYTES=64MiB")
		if notes(t, dir) == 0 {
			continue // it had not begun
		}
		require.Error(t, err, "%s", out)
		b, err := os.ReadFile(filepath.Join(dir, "check.log"))
		require.NoError(t, err)
		require.Contains(t, string(b), "is lost")
		return
	}
	require.Fail(t, "no guest has written anything")
}

// counter sums the series of a counter; a guest that was cut before it had counted has none.
func counter(t *testing.T, file, name string) float64 {
	t.Helper()
	b, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return 0
	}
	require.NoError(t, err)
	var sum float64
	for _, m := range regexp.MustCompile(`(?m)^`+name+`(?:\{.*\})? (\S+)$`).FindAllSubmatch(b, -1) {
		v, err := strconv.ParseFloat(string(m[1]), 64)
		require.NoError(t, err)
		sum += v
	}
	return sum
}

// notes counts what was acknowledged.
func notes(t *testing.T, dir string) int {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "notes-*"))
	require.NoError(t, err)
	n := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		n += bytes.Count(b, []byte("acknowledged\n"))
	}
	return n
}
