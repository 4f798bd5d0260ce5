package verdict_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/services/health-agent/internal/verdict"
)

// serving is a pod of which everything is well.
func serving() verdict.Input {
	return verdict.Input{
		Node: &verdict.NodeStatus{
			State: verdict.StateServing, Progress: 1, Disk: "ok", Memory: "ok", OpenFiles: 100, OpenFilesLimit: 1024,
			Compactors: 1, Sidecars: map[string]time.Duration{"compactor": time.Second, "health-agent": 0, "migrator": time.Second},
		},
		Gossip: verdict.GossipStatus{Others: 2, Reachable: 2},
		Probe:  verdict.ProbeStatus{DiskPercent: 10, MemoryPercent: 10, FilesPercent: 10},
	}
}

func names(reasons []verdict.Reason) []verdict.Word {
	var out []verdict.Word
	for _, r := range reasons {
		out = append(out, r.Name)
	}
	return out
}

func TestVerdict(t *testing.T) {
	// A wrong row takes a good node out of service, or sends requests to a dead one.
	type words = []verdict.Word
	for name, c := range map[string]struct {
		change                      func(in *verdict.Input)
		notLive, notReady, degraded words
	}{
		"all is well": {change: func(*verdict.Input) {}},

		// The node's phases.
		"recovering": {change: state(verdict.StateRecovering), notReady: words{verdict.Recovering}},
		"recovering at a standstill is not started again": {change: func(in *verdict.Input) {
			in.Node.State, in.Node.Unmoved = verdict.StateRecovering, time.Hour
		}, notReady: words{verdict.Recovering}},
		"stopping":                {change: state(verdict.StateStopping), notReady: words{verdict.Stopping}},
		"poisoned":                {change: state(verdict.StatePoisoned), notLive: words{verdict.Poisoned}, notReady: words{verdict.Poisoned}},
		"a state of a newer node": {change: state("thinking"), notReady: words{verdict.Other}},
		"no state":                {change: state(""), notReady: words{verdict.Other}},

		// What the node says of itself is taken as it is, each word once.
		"not live by its own word": {change: func(in *verdict.Input) {
			in.Node.NotLive = []verdict.Reason{{Name: verdict.Stalled}}
		}, notLive: words{verdict.Stalled}},
		"not ready by its own word": {change: func(in *verdict.Input) {
			in.Node.NotReady = []verdict.Reason{{Name: verdict.Stalled}}
			in.Node.Stalled = time.Minute
		}, notReady: words{verdict.Stalled}},
		"degraded by its own words": {change: func(in *verdict.Input) {
			in.Node.Degraded = []verdict.Reason{{Name: verdict.Disk}, {Name: verdict.Pressure}, {Name: verdict.Events}}
			in.Node.Disk = "full"
		}, degraded: words{verdict.Disk, verdict.Pressure, verdict.Events}},

		"a directory that can't be written": {change: func(in *verdict.Input) {
			in.Node.NotReady = []verdict.Reason{verdict.FromNode("data-dir", "read-only")}
		}, notReady: words{verdict.DataDir}},

		// Resources.
		"disk warning":              {change: disk("warning"), degraded: words{verdict.Disk}},
		"disk throttled":            {change: disk("throttled"), degraded: words{verdict.Disk}},
		"a full disk serves reads":  {change: disk("full"), degraded: words{verdict.Disk}},
		"a node that tells no disk": {change: disk("")},
		"memory high":               {change: memory("high"), degraded: words{verdict.Memory}},
		"memory critical":           {change: memory("critical"), degraded: words{verdict.Memory}},
		"a busy disk":               {change: stalled(10*time.Second - 1)},
		"a disk that hangs":         {change: stalled(10 * time.Second), notReady: words{verdict.Stalled}},
		"files at 89 %":             {change: files(899, 1000)},
		"files at 90 %":             {change: files(900, 1000), degraded: words{verdict.Files}},
		"a limit that is not known": {change: files(900, 0)},

		// Sidecars.
		"no compactor leases": {change: func(in *verdict.Input) { in.Node.Compactors = 0 }, degraded: words{verdict.Compactor}},
		"a pod without compactor": {change: func(in *verdict.Input) {
			in.Node.Compactors = 0
			delete(in.Node.Sidecars, "compactor")
		}},
		"migrator late":          {change: migrator(time.Minute - 1)},
		"migrator gone":          {change: migrator(time.Minute), degraded: words{verdict.Migrator}},
		"a pod without migrator": {change: func(in *verdict.Input) { delete(in.Node.Sidecars, "migrator") }},
		"the node heard nobody":  {change: func(in *verdict.Input) { in.Node.Sidecars = nil }},

		// Silence.
		"silent for a moment": {change: away(3*time.Second - 1)},
		"silent":              {change: away(3 * time.Second), notReady: words{verdict.Node}},
		"silent for long":     {change: away(time.Minute - 1), notReady: words{verdict.Node}},
		"silent for too long": {change: away(time.Minute), notLive: words{verdict.Node}, notReady: words{verdict.Node}},
		"silent while recovering": {change: func(in *verdict.Input) {
			in.Node.State, in.Away = verdict.StateRecovering, time.Second
		}, notReady: words{verdict.Recovering}},
		"silent after it was poisoned": {change: func(in *verdict.Input) {
			in.Node.State, in.Away = verdict.StatePoisoned, 5*time.Second
		}, notReady: words{verdict.Node}},
		"never heard": {change: func(in *verdict.Input) { in.Node, in.Away = nil, 0 }, notReady: words{verdict.Node}},
		"never heard for too long": {change: func(in *verdict.Input) {
			in.Node, in.Away, in.Why = nil, time.Hour, "no such file"
		}, notLive: words{verdict.Node}, notReady: words{verdict.Node}},

		// Among the others.
		"gossip does not run": {change: func(in *verdict.Input) {
			in.Gossip = verdict.GossipStatus{Off: "address already in use"}
		}, degraded: words{verdict.Gossip}},
		"no seed answers":                  {change: func(in *verdict.Input) { in.Gossip = verdict.GossipStatus{Unanswered: true} }, degraded: words{verdict.Seeds}},
		"no seed answers, and others came": {change: func(in *verdict.Input) { in.Gossip.Unanswered = true }},
		"all others are gone":              {change: func(in *verdict.Input) { in.Gossip.Reachable = 0 }, degraded: words{verdict.Isolated}},
		"one of two others is gone":        {change: func(in *verdict.Input) { in.Gossip.Reachable = 1 }},
		"alone":                            {change: func(in *verdict.Input) { in.Gossip = verdict.GossipStatus{} }},
		"the id is taken":                  {change: func(in *verdict.Input) { in.Gossip.Duplicate = "10.0.0.1:7946" }, notReady: words{verdict.DuplicateID}},
		"removed":                          {change: func(in *verdict.Input) { in.Gossip.Removed = true }, notReady: words{verdict.Removed}},
		"bad keyring":                      {change: func(in *verdict.Input) { in.Gossip.Keyring = "line 1" }, degraded: words{verdict.Keyring}},

		// The agent's own probes.
		"clock jumped":                   {change: func(in *verdict.Input) { in.Probe.ClockJump = -time.Hour }, degraded: words{verdict.Clock}},
		"agent near memory":              {change: func(in *verdict.Input) { in.Probe.MemoryPercent = 90 }, degraded: words{verdict.AgentMemory}},
		"agent near files":               {change: func(in *verdict.Input) { in.Probe.FilesPercent = 90 }, degraded: words{verdict.AgentFiles}},
		"the node knows its disk better": {change: func(in *verdict.Input) { in.Probe.DiskPercent = 99 }},
		"a disk that only the agent sees": {change: func(in *verdict.Input) {
			in.Node.Disk, in.Probe.DiskPercent = "", 85
		}, degraded: words{verdict.Disk}},
		"a disk out of reach": {change: func(in *verdict.Input) { in.Node.Disk, in.Probe.DiskPercent = "", -1 }},
	} {
		t.Run(name, func(t *testing.T) {
			in := serving()
			c.change(&in)
			v := verdict.DefaultLimits.Judge(in)
			require.Equal(t, c.notLive, names(v.NotLive), "not live")
			require.Equal(t, c.notReady, names(v.NotReady), "not ready")
			require.Equal(t, c.degraded, names(v.Degraded), "degraded")
			require.Equal(t, len(c.notLive) == 0, v.Live)
			require.Equal(t, len(c.notLive)+len(c.notReady) == 0, v.Ready)
			require.Equal(t, v, verdict.DefaultLimits.Judge(in), "a pure function")
		})
	}
}

func state(s string) func(*verdict.Input) { return func(in *verdict.Input) { in.Node.State = s } }

func disk(s string) func(*verdict.Input) { return func(in *verdict.Input) { in.Node.Disk = s } }

func memory(s string) func(*verdict.Input) { return func(in *verdict.Input) { in.Node.Memory = s } }

func stalled(d time.Duration) func(*verdict.Input) {
	return func(in *verdict.Input) { in.Node.Stalled = d }
}

func files(n, limit int64) func(*verdict.Input) {
	return func(in *verdict.Input) { in.Node.OpenFiles, in.Node.OpenFilesLimit = n, limit }
}

func migrator(d time.Duration) func(*verdict.Input) {
	return func(in *verdict.Input) { in.Node.Sidecars["migrator"] = d }
}

func away(d time.Duration) func(*verdict.Input) {
	return func(in *verdict.Input) { in.Away = d }
}

func TestNothingBesideTheNodeMakesItUnreadyOrDead(t *testing.T) {
	// The rule itself, over all combinations: who stands beside the node fails alone.
	faults := []func(in *verdict.Input){
		func(in *verdict.Input) { in.Node.Compactors = 0 },
		func(in *verdict.Input) { in.Node.Sidecars["migrator"] = time.Hour },
		func(in *verdict.Input) {
			in.Node.Degraded = append(in.Node.Degraded, verdict.Reason{Name: verdict.Events})
		},
		func(in *verdict.Input) { in.Node.Disk = "full" },
		func(in *verdict.Input) { in.Node.Memory = "critical" },
		func(in *verdict.Input) { in.Gossip.Off = "port" },
		func(in *verdict.Input) { in.Gossip.Unanswered = true },
		func(in *verdict.Input) { in.Gossip.Reachable = 0 },
		func(in *verdict.Input) { in.Gossip.Keyring = "line 1" },
		func(in *verdict.Input) { in.Probe.ClockJump = time.Hour },
		func(in *verdict.Input) { in.Probe.MemoryPercent = 100 },
		func(in *verdict.Input) { in.Probe.FilesPercent = 100 },
	}
	for set := range 1 << len(faults) {
		in := serving()
		for i, fault := range faults {
			if set&(1<<i) != 0 {
				fault(&in)
			}
		}
		v := verdict.DefaultLimits.Judge(in)
		require.True(t, v.Live && v.Ready, "%b: %+v", set, v)
		if set != 0 && set != 1<<6 { // seeds that are silent are nothing while others answer
			require.NotEmpty(t, v.Degraded, "%b", set)
		}
	}
}

func TestEveryWordTravelsAsABit(t *testing.T) {
	// Other agents show the words of this pod: a bit that moves is another word to them.
	require.Less(t, len(verdict.All()), 64)
	for i, w := range verdict.All() {
		bits := verdict.Bits([]verdict.Reason{{Name: w}})
		require.Equal(t, uint64(1)<<i, bits)
		require.Equal(t, []verdict.Word{w}, verdict.FromBits(bits))
		require.Equal(t, verdict.Reason{Name: w, Detail: "d"}, verdict.FromNode(string(w), "d"))
	}
	require.Equal(t, []verdict.Word{verdict.Other, verdict.Disk}, verdict.FromBits(1<<63|1<<8))
	require.Empty(t, verdict.FromBits(0))
	require.Equal(t, verdict.Reason{Name: verdict.Other, Detail: "mood: low"}, verdict.FromNode("mood", "low"))
	require.Equal(t, verdict.Reason{Name: verdict.Other, Detail: "mood"}, verdict.FromNode("mood", ""))
}
