package moves

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/ring"
)

var update = flag.Bool("update", false, "write the table instead of comparing it")

// lives are the specs whose lives differ.
var lives = []struct {
	name string
	spec Spec
}{
	{"copy", Spec{Purpose: PurposeReplicate, Mode: Once}},
	{"hand-over", Spec{Purpose: PurposeDrain, Mode: Once, HandOver: true, What: Selection{HashRanges: []ring.HashRange{{Start: 1, End: 2}}}}},
	{"follow", Spec{Purpose: PurposeReplicate, Mode: Follow}},
	{"repair", Spec{Purpose: PurposeRepair, Mode: Once}},
}

// Danger: a step that is left out: a range is given away that was never fenced, or one called verified that
// nobody compared. The whole table is written down in testdata/follows.txt, and who changes it sees it.
func TestWhichStateMayFollowWhich(t *testing.T) {
	var out strings.Builder
	for _, life := range lives {
		for _, by := range []By{ByMigrator, ByNode} {
			fmt.Fprintf(&out, "%s, by the %s\n", life.name, map[By]string{ByMigrator: "migrator", ByNode: "node"}[by])
			for _, from := range States {
				var to []string
				for _, s := range States {
					if Follows(&life.spec, from, s, by) {
						to = append(to, s.String())
					}
				}
				fmt.Fprintf(&out, "  %-9s → %s\n", from, strings.Join(to, " "))
			}
		}
	}
	file := filepath.Join("testdata", "follows.txt")
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(out.String()), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), out.String())
}

// Danger: whatever the table says, these may never hold.
func TestWhatNoLifeAllows(t *testing.T) {
	for _, life := range lives {
		for _, from := range append([]State{0, Cancelled + 1}, States...) {
			for _, to := range append([]State{0, Cancelled + 1}, States...) {
				for _, by := range []By{0, ByMigrator, ByNode} {
					if !Follows(&life.spec, from, to, by) {
						continue
					}
					name := fmt.Sprintf("%s: %s → %s by %d", life.name, from, to, by)
					require.False(t, from.Ended() || from == Failed, name)
					require.NotEqual(t, Cancelled, to, "%s: a cancel is a call of its own", name)
					if to == Pinned || to == Fenced || to == Released {
						require.True(t, by == ByNode || from == to, "%s: the node does it, the migrator can't say it", name)
					}
					if to == Fenced || to == Accepted {
						require.Equal(t, "hand-over", life.name, name)
					}
					if life.name == "hand-over" && to == Committed && from != to {
						require.True(t, by == ByNode && from == Accepted, "%s: given only after it was accepted", name)
					}
					if from >= Fenced && to < from {
						require.True(t, by == ByNode && from == Fenced && to == Verifying, "%s: only a lifted fence leads back", name)
					}
				}
			}
		}
	}
}

// Danger: a drain is done whose moves never ran.
func TestWhichStateOfADrainMayFollowWhich(t *testing.T) {
	allowed := map[[2]DrainState]bool{
		{DrainRequested, DrainRequested}: true, {DrainRequested, DrainMoving}: true,
		{DrainMoving, DrainMoving}: true, {DrainMoving, DrainCompleted}: true,
	}
	for from := DrainState(0); from <= DrainCancelled+1; from++ {
		for to := DrainState(0); to <= DrainCancelled+1; to++ {
			require.Equal(t, allowed[[2]DrainState{from, to}], DrainFollows(from, to), "%s → %s", from, to)
		}
	}
}

// Danger: a node that is drained comes back to life with the same directory.
func TestWhatANodeMayWantAfterWhat(t *testing.T) {
	allowed := map[[2]membership.State]bool{
		{membership.Joining, membership.Up}: true, {membership.Up, membership.Draining}: true,
		{membership.Draining, membership.Up}: true, {membership.Draining, membership.Drained}: true,
	}
	for from := membership.State(0); from <= membership.Removed+1; from++ {
		for to := membership.State(0); to <= membership.Removed+1; to++ {
			require.Equal(t, allowed[[2]membership.State{from, to}], wantedFollows(from, to), "%s → %s", from, to)
		}
	}
}

// Danger: a log that shows numbers.
func TestWords(t *testing.T) {
	require.Equal(t, "PLANNED", Planned.String())
	require.Equal(t, "State(0)", State(0).String())
	require.Equal(t, "State(12)", State(12).String())
	require.Equal(t, "FOLLOW", Follow.String())
	require.Equal(t, "STREAM", PurposeStream.String())
	require.Equal(t, "CANCELLED", DrainCancelled.String())
	require.Equal(t, "failed", Stuck.String())
}
