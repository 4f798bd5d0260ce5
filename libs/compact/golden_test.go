package compact

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/libs/sstable"
)

func contextT() context.Context { return context.Background() }

// Each line of these scripts is a rule about what may be dropped: a wrong one loses writes or
// brings deleted ones back.
func TestMergeScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		if !strings.HasSuffix(path, ".txt") {
			return // inputs of the fuzz and property tests stand beside the scripts
		}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			require.Equal(t, "merge", d.Cmd)
			w := newWorld()
			job := Job{ID: 1, Kind: Merge, MaxOutputs: 64}
			for i, tab := range parseTables(d.Input) {
				job.Inputs = append(job.Inputs, w.input(t, uint64(i+1), tab))
			}
			for _, arg := range d.CmdArgs {
				parseArg(t, &job, arg)
			}
			return w.run(t, job)
		})
	})
}

func parseArg(t *testing.T, job *Job, arg datadriven.CmdArg) {
	number := func(s string) uint64 {
		n, err := strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
		return n
	}
	for _, v := range arg.Vals {
		switch arg.Key {
		case "snapshots":
			job.Snapshots = append(job.Snapshots, ikey.Seq(number(v)))
		case "bottom":
			start, end, _ := strings.Cut(v, "-")
			job.Bottommost = append(job.Bottommost, Range{[]byte(start), []byte(end)})
		case "gc":
			job.GCBefore = number(v)
		case "gc-seconds":
			job.GCBefore = number(v) * 1000 << 16
		case "cuts", "drop":
			cuts := &job.Drop
			if arg.Key == "cuts" {
				cuts, job.CutsInForce = &job.Cuts, true
			}
			key, seq, _ := strings.Cut(v, ":")
			if key == "none" {
				continue
			}
			c := HashCut{Seq: ikey.Seq(number(seq))}
			if key != "all" {
				token, ok := TokenOf([]byte(strings.ReplaceAll(key, "/", "\x00")))
				require.True(t, ok)
				c.Range = ring.HashRange{Start: token, End: token + 1}
			}
			*cuts = UniteCuts(append(*cuts, c))
		case "target":
			job.Table.TargetBytes = int64(number(v))
		case "max-outputs":
			job.MaxOutputs = int(number(v))
		default:
			t.Fatalf("unknown argument %s", arg.Key)
		}
	}
}

// run does the job and prints outputs and accounts.
func (w *world) run(t *testing.T, job Job) string {
	outs, stats, corrupt, err := Run(context.Background(), job, w.env)
	if err != nil {
		return err.Error()
	}
	require.Empty(t, corrupt)
	var b strings.Builder
	for _, o := range outs {
		fmt.Fprintf(&b, "%s %s to %s\n", OutputName(o.Index), bound(o.Smallest), bound(o.Largest))
		for _, e := range w.read(t, OutputName(o.Index), job.OutputLevel).entries {
			fmt.Fprintf(&b, "  %s\n", e)
		}
	}
	fmt.Fprintf(&b, "in %d = out %d + shadowed %d + joined %d + collected %d\n",
		stats.EntriesIn, stats.EntriesOut, stats.Shadowed, stats.Joined, stats.Collected)
	if stats.Dropped+stats.DropLeft > 0 {
		fmt.Fprintf(&b, "dropped %d, left %d of those\n", stats.Dropped, stats.DropLeft)
	}
	return b.String()
}

func bound(k ikey.Key) string {
	if sstable.IsExclusive(k) {
		return shown(k.User) + " (exclusive)"
	}
	return fmt.Sprintf("%s#%d", shown(k.User), k.Seq())
}
