package probe

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestClockNoticesJumpsAndForgetsThem(t *testing.T) {
	// A jump reorders versions of clients that trust the wall clock; slewing does not.
	wall := time.Date(2026, 3, 29, 1, 59, 59, 0, time.UTC)
	mono := time.Duration(0)
	var c Clock
	step := func(w, m time.Duration) time.Duration {
		wall, mono = wall.Add(w), mono+m
		return c.Observe(wall, mono)
	}
	require.Zero(t, step(0, 0))
	require.Zero(t, step(time.Second, time.Second))
	require.Zero(t, step(time.Second+999*time.Millisecond, time.Second), "below the limit")
	require.Equal(t, time.Hour, step(time.Hour+time.Second, time.Second), "forward")
	require.Equal(t, time.Hour, step(time.Second, time.Second), "still reported")
	require.Equal(t, -2*time.Second, step(-time.Second, time.Second), "backward; the last one counts")
	require.Equal(t, -2*time.Second, step(time.Minute, time.Minute))
	require.Zero(t, step(time.Second, time.Second), "forgotten")
	require.Zero(t, step(10*time.Minute, 10*time.Minute), "a long pause of the process is no jump")
}

func write(t *testing.T, root, name, text string) {
	t.Helper()
	path := filepath.Join(root, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
}

func TestMemoryOfTheCgroupInAllItsForms(t *testing.T) {
	// The file that is missing on one machine is there on the next: none may be taken for full.
	for name, c := range map[string]struct {
		files map[string]string
		want  float64
	}{
		"none": {},
		"version 2 in a container": {map[string]string{
			"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.current": "75\n", "sys/fs/cgroup/memory.max": "100\n",
		}, 75},
		"version 2 of a service": {map[string]string{
			"proc/self/cgroup": "0::/a.slice/b\n", "sys/fs/cgroup/a.slice/b/memory.current": "10\n", "sys/fs/cgroup/a.slice/b/memory.max": "100\n",
		}, 10},
		"version 2 without a limit": {map[string]string{
			"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.current": "75\n", "sys/fs/cgroup/memory.max": "max\n",
		}, 0},
		"version 1": {map[string]string{
			"proc/self/cgroup":                           "4:memory:/\n",
			"sys/fs/cgroup/memory/memory.usage_in_bytes": "50\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "200\n",
		}, 25},
		"version 1 without a limit": {map[string]string{
			"sys/fs/cgroup/memory/memory.usage_in_bytes": "50\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
		}, 0},
		"nonsense": {map[string]string{"sys/fs/cgroup/memory.current": "a lot\n", "sys/fs/cgroup/memory.max": "100\n"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for file, text := range c.files {
				write(t, root, file, text)
			}
			require.InDelta(t, c.want, memoryPercent(root), 0.001)
		})
	}
}

func TestMeasureLooksAtThisMachineAndLeavesOutWhatItCantRead(t *testing.T) {
	// An agent without the volume must not report an empty or a full one.
	s := New(t.TempDir()).Measure(time.Now())
	require.True(t, s.DiskPercent >= 0 && s.DiskPercent <= 100, "%v", s.DiskPercent)
	require.Greater(t, s.FilesPercent, 0.0)
	require.Zero(t, s.ClockJump)
	s = New(filepath.Join(t.TempDir(), "missing")).Measure(time.Now())
	require.Negative(t, s.DiskPercent)
	require.Zero(t, filesPercent(t.TempDir()))
}
