package picker

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

type golden struct {
	v      *manifest.Version
	busy   Busy
	o      Options
	f      Facts
	manual Manual
}

func (g *golden) run(t *testing.T, d *datadriven.TestData) string {
	switch d.Cmd {
	case "define":
		var err error
		g.v, err = manifest.ParseVersion(d.Input)
		g.f, g.o = Facts{}, Options{BaseBytes: 256 << 20, L0Lazy: 4}
		if !d.HasArg("keep-jobs") {
			g.busy = Busy{}
		}
		if err != nil {
			return "error: " + err.Error() + "\n"
		}
		g.options(t, d)
		return ""
	case "facts":
		g.options(t, d)
		return ""
	case "status":
		var b strings.Builder
		base, levels := Status(g.v, &g.busy, g.o)
		fmt.Fprintf(&b, "base L%d, debt %d", base, Debt(g.v, g.o))
		if Lazy(g.v, g.o) {
			b.WriteString(", lazy")
		}
		b.WriteByte('\n')
		for i, l := range levels {
			if l.Tables > 0 || l.TargetBytes > 0 {
				fmt.Fprintf(&b, "L%d: %d tables, %d bytes, target %d, score %.2f\n", i, l.Tables, l.Bytes, l.TargetBytes, l.Score)
			}
		}
		return b.String()
	case "pick":
		p, ok := Pick(g.v, &g.busy, g.o, g.f)
		if !ok {
			return "nothing\n"
		}
		if d.HasArg("run") {
			g.busy.Add(&p)
		}
		return print(&p)
	case "manual":
		if d.Input != "" {
			var start, end string
			_, err := fmt.Sscanf(d.Input, "%s %s %d", &start, &end, &g.manual.Before)
			require.NoError(t, err)
			g.manual = Manual{Span: manifest.Span{Start: []byte(start), End: []byte(end)}, Before: g.manual.Before, Seq: ikey.Seq(g.manual.Before)}
		}
		p, next, outcome := PickManual(g.v, &g.busy, g.o, g.f, g.manual)
		g.manual = next
		out := [...]string{"done", "picked", "blocked", "impossible"}[outcome] + fmt.Sprintf(" next L%d behind %q\n", next.Level, next.Cursor)
		if outcome == Picked {
			out += print(&p)
		}
		return out
	}
	return "unknown command\n"
}

func (g *golden) options(t *testing.T, d *datadriven.TestData) {
	for _, arg := range d.CmdArgs {
		number := func() uint64 {
			n, err := manifest.ParseNumber(arg.Vals[0])
			require.NoError(t, err)
			return n
		}
		switch arg.Key {
		case "keep-jobs":
		case "lazy":
			g.o.L0Lazy = int(number())
		case "quiet":
			g.f.Quiet = true
		case "base":
			g.o.BaseBytes = number()
		case "table":
			g.o.TableBytes = number()
		case "max-input":
			g.o.MaxInputBytes = number()
		case "intra-l0":
			g.o.IntraL0 = true
		case "gc":
			g.f.GCBefore, g.o.CollectDelay = number(), -1
		case "snapshot":
			g.f.OldestSnapshot = ikey.Seq(number())
			g.f.NewestSnapshot = g.f.OldestSnapshot
		case "mem-merges":
			start, end, _ := strings.Cut(arg.Vals[0], "-")
			g.f.MemMerges = append(g.f.MemMerges, manifest.Span{Start: []byte(start), End: []byte(end)})
		case "range-delete":
			start, rest, _ := strings.Cut(arg.Vals[0], "-")
			end, seq, _ := strings.Cut(rest, "@")
			n, err := manifest.ParseNumber(seq)
			require.NoError(t, err)
			g.f.RangeDeletes = append(g.f.RangeDeletes, ikey.RangeDelete{Start: []byte(start), End: []byte(end), Seq: ikey.Seq(n)})
		case "cursor":
			level, key, _ := strings.Cut(arg.Vals[0], ":")
			l, ok := manifest.ParseLevel(level)
			require.True(t, ok)
			g.f.Cursors[l] = []byte(key)
		default:
			t.Fatalf("unknown argument %s", arg.Key)
		}
	}
}

func print(p *Plan) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s to L%d: %s (score %.2f)\n", p.Kind, p.OutputLevel, p.Reason, p.Score)
	for _, in := range p.Inputs {
		fmt.Fprintf(&b, "  L%d:", in.Level)
		for _, t := range in.Tables {
			fmt.Fprintf(&b, " %06d", t.Num)
		}
		b.WriteByte('\n')
	}
	if p.Kind == Merge {
		fmt.Fprintf(&b, "  span %s, cut at %d, bottommost", p.Span, p.TargetBytes)
		for _, r := range p.Bottommost {
			fmt.Fprintf(&b, " [%q %q)", r.Start, r.End)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// The danger: an order of versions that a compaction turns round, a job that never ends or is too
// large, tombstones that are dropped too early or never.
func TestPicks(t *testing.T) {
	datadriven.Walk(t, "testdata/picks", func(t *testing.T, path string) {
		g := &golden{}
		datadriven.RunTest(t, path, g.run)
	})
}

// The danger: writes that are refused too early, or never.
func TestPressure(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		load   Load
		delay  time.Duration
		refuse bool
		reason string
	}{
		{Load{0, 0}, 0, false, ""},
		{Load{19, 16*gib - 1}, 0, false, ""},
		{Load{20, 0}, time.Millisecond, false, "level 0 has many tables"},
		{Load{27, 0}, 8577 * time.Microsecond, false, "level 0 has many tables"},
		{Load{35, 0}, 100 * time.Millisecond, false, "level 0 has many tables"},
		{Load{36, 0}, 0, true, "level 0 has too many tables"},
		{Load{0, 16 * gib}, time.Millisecond, false, "much compaction is pending"},
		{Load{20, 40 * gib}, 10 * time.Millisecond, false, "much compaction is pending"},
		{Load{34, 40 * gib}, 73564 * time.Microsecond, false, "level 0 has many tables"},
		{Load{0, 64*gib - 1}, 100 * time.Millisecond, false, "much compaction is pending"},
		{Load{0, 64 * gib}, 0, true, "too much compaction is pending"},
	} {
		delay, refuse, reason := Pressure(c.load, Limits{})
		require.Equal(t, c.refuse, refuse, "%+v", c.load)
		require.Equal(t, c.reason, reason, "%+v", c.load)
		require.InDelta(t, c.delay, delay, float64(2*time.Microsecond), "%+v: %s", c.load, delay)
	}
	for l0 := 20; l0 < 35; l0++ {
		a, _, _ := Pressure(Load{L0Tables: l0}, Limits{})
		b, _, _ := Pressure(Load{L0Tables: l0 + 1}, Limits{})
		require.Less(t, a, b)
	}
}
