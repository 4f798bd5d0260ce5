package memory

import (
	"os"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
)

// machine is a root with 1 GiB of memory and a process of 100 MiB.
func machine(files map[string]string) fstest.MapFS {
	m := fstest.MapFS{
		meminfo:    {Data: []byte("MemTotal:        1048576 kB\nMemFree:          1000 kB\n")},
		selfStatus: {Data: []byte("Name:\tstorage-node\nVmRSS:\t  102400 kB\n")},
	}
	for name, text := range files {
		m[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return m
}

// The danger: a limit that is read from the wrong place is none, and the kernel kills the process; usage
// with the page cache in it refuses writes for ever.
func TestMemoryIsReadWhereItIsLimited(t *testing.T) {
	const mib = 1 << 20
	process := Reading{Used: 100 * mib, Limit: 1024 * mib}
	for name, c := range map[string]struct {
		files map[string]string
		want  Reading
	}{
		"no cgroups": {nil, process},
		"v2, in a container": {map[string]string{
			selfCgroup: "0::/\n", mountV2 + "/memory.max": "209715200\n", mountV2 + "/memory.current": "157286400\n",
			mountV2 + "/memory.stat": "anon 5\ninactive_file 31457280\nactive_file 20971520\n",
		}, Reading{Used: 100 * mib, Limit: 200 * mib, Group: true}},
		"v2, no limit": {map[string]string{
			selfCgroup: "0::/a\n", mountV2 + "/a/memory.max": "max\n", mountV2 + "/a/memory.current": "1\n", mountV2 + "/a/memory.stat": "",
		}, process},
		"v2, the limit is above": {map[string]string{
			selfCgroup: "0::/pod/node\n", mountV2 + "/pod/node/memory.max": "max\n", mountV2 + "/pod/node/memory.current": "1\n",
			mountV2 + "/pod/memory.max": "104857600\n", mountV2 + "/pod/memory.current": "52428800\n", mountV2 + "/pod/memory.stat": "inactive_file 0\n",
		}, Reading{Used: 50 * mib, Limit: 100 * mib, Group: true}},
		"v2, a path of another namespace": {map[string]string{
			selfCgroup: "0::/../../kubepods/x\n", mountV2 + "/memory.max": "104857600\n", mountV2 + "/memory.current": "1048576\n", mountV2 + "/memory.stat": "",
		}, Reading{Used: mib, Limit: 100 * mib, Group: true}},
		"v2, more than the machine has": {map[string]string{
			selfCgroup: "0::/\n", mountV2 + "/memory.max": "8589934592\n", mountV2 + "/memory.current": "1\n", mountV2 + "/memory.stat": "",
		}, process},
		"v1": {map[string]string{
			selfCgroup:                           "9:name=systemd:/\n4:cpu,memory:/x\n0::/\n",
			mountV1 + "/x/memory.limit_in_bytes": "209715200\n", mountV1 + "/x/memory.usage_in_bytes": "104857600\n",
			mountV1 + "/x/memory.stat": "hierarchical_memory_limit 157286400\ntotal_inactive_file 10485760\ntotal_active_file 10485760\n",
		}, Reading{Used: 80 * mib, Limit: 150 * mib, Group: true}},
		"v1, a path of another namespace": {map[string]string{
			selfCgroup: "4:memory:/docker/y\n", mountV1 + "/memory.limit_in_bytes": "104857600\n", mountV1 + "/memory.usage_in_bytes": "1048576\n",
			mountV1 + "/memory.stat": "total_inactive_file 2097152\n",
		}, Reading{Used: 0, Limit: 100 * mib, Group: true}},
		"v1, no limit": {map[string]string{
			selfCgroup: "4:memory:/\n", mountV1 + "/memory.limit_in_bytes": "9223372036854771712\n", mountV1 + "/memory.usage_in_bytes": "1\n",
			mountV1 + "/memory.stat": "hierarchical_memory_limit 9223372036854771712\n",
		}, process},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := NewReader(machine(c.files)).Read()
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

// The danger: a file that is not understood counts as no limit, and nobody is told.
func TestWhatIsNotUnderstoodIsAnError(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"limit":      {selfCgroup: "0::/\n", mountV2 + "/memory.max": "much\n"},
		"no usage":   {selfCgroup: "0::/\n", mountV2 + "/memory.max": "1000\n"},
		"no stat":    {selfCgroup: "0::/\n", mountV2 + "/memory.max": "1000\n", mountV2 + "/memory.current": "1\n"},
		"v1 no stat": {selfCgroup: "4:memory:/\n", mountV1 + "/memory.limit_in_bytes": "1000\n"},
		"meminfo":    {meminfo: "MemTotal: x kB\n"},
		"status":     {selfStatus: "VmRSS: x kB\n"},
	} {
		_, err := NewReader(machine(files)).Read()
		require.Error(t, err, name)
	}
	_, err := NewReader(fstest.MapFS{}).Read()
	require.Error(t, err)
}

func TestThisMachineCanBeRead(t *testing.T) {
	// The danger: the formats above are those of a book only.
	got, err := NewReader(os.DirFS("/")).Read()
	require.NoError(t, err)
	require.Positive(t, got.Used)
	require.Greater(t, got.Limit, got.Used)
	require.NotEmpty(t, got.String())
}

// The danger: a state that flaps empties caches and refuses writes again and again.
func TestStatesBeginAndEndApart(t *testing.T) {
	limits := Thresholds{High: 85, Critical: 95}
	state := OK
	for i, c := range []struct {
		used uint64
		want State
	}{
		{84, OK}, {85, High}, {81, High}, {80, High}, {79, OK}, {84, OK}, {94, High}, {95, Critical}, {91, Critical}, {90, Critical},
		{89, High}, {80, High}, {96, Critical}, {70, OK}, {100, Critical}, {0, OK},
	} {
		state = limits.Judge(Reading{Used: c.used, Limit: 100}, state)
		require.Equal(t, c.want, state, "step %d: %d", i, c.used)
	}
	require.Equal(t, OK, limits.Judge(Reading{Used: 1}, Critical), "without a limit nothing is short")
	require.Equal(t, []string{"ok", "high", "critical"}, []string{OK.String(), High.String(), Critical.String()})
}

// The danger: caches that never come back make the node slow for ever.
func TestCachesShrinkAtOnceAndComeBackInSteps(t *testing.T) {
	require.InDelta(t, 0.5, NextShare(High, 1), 0)
	require.InDelta(t, 0.125, NextShare(High, 0.2), 0)
	require.InDelta(t, 0.125, NextShare(Critical, 1), 0)
	share, steps := 0.125, 0
	for ; share < 1; steps++ {
		share = NextShare(OK, share)
	}
	require.Equal(t, 7, steps)
	require.InDelta(t, 1, NextShare(OK, 1), 0)
}

func TestGoLimitStaysBelowTheContainers(t *testing.T) {
	require.EqualValues(t, 500, GoLimit(500, Reading{Limit: 100}), "the machine is no limit of ours")
	require.EqualValues(t, 90, GoLimit(500, Reading{Limit: 100, Group: true}))
	require.EqualValues(t, 50, GoLimit(50, Reading{Limit: 100, Group: true}))
}
