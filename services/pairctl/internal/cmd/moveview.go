package cmd

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"

	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// migratorAway is after which silence the migrator counts as away: it asks for work every few seconds.
const migratorAway = 15 * time.Second

func moveStateWord(s movev1.State) string       { return word("STATE_", s.String()) }
func purposeWord(p movev1.Purpose) string       { return word("PURPOSE_", p.String()) }
func drainStateWord(s movev1.DrainState) string { return word("DRAIN_STATE_", s.String()) }

// ended reports whether nothing will happen to a move by itself any more.
func ended(m *movev1.Move) bool {
	switch m.GetState() {
	case movev1.State_STATE_RELEASED, movev1.State_STATE_FAILED, movev1.State_STATE_CANCELLED:
		return true
	}
	return false
}

// stateText is where a move stands and what it is about to do.
func stateText(m *movev1.Move) string {
	text := moveStateWord(m.GetState())
	switch {
	case m.GetState() == movev1.State_STATE_FAILED && m.GetResumeState() != movev1.State_STATE_UNSPECIFIED:
		text += " while " + moveStateWord(m.GetResumeState())
	case m.GetCancelling():
		text += ", to be cancelled"
	case m.GetFinishing() && !ended(m):
		text += ", to be finished"
	}
	return text
}

// whatText says in words what a selection is.
func whatText(s *movev1.Selection) string {
	var parts []string
	if s.GetTenant() != "" {
		parts = append(parts, "tenant "+tenantName(s.GetTenant()))
	}
	if r := s.GetRange(); r != nil {
		parts = append(parts, "keys "+keyRangeText(r))
	}
	if n := len(s.GetKeys()); n == 1 {
		parts = append(parts, "key "+tenantName(s.GetKeys()[0]))
	} else if n > 1 {
		parts = append(parts, fmt.Sprintf("%d keys", n))
	}
	if n := len(s.GetHashRanges()); n == 1 && s.GetHashRanges()[0].GetStart() != s.GetHashRanges()[0].GetEnd() { // else the whole ring
		parts = append(parts, "hashes "+hashRangeText(s.GetHashRanges()[0]))
	} else if n > 1 {
		parts = append(parts, fmt.Sprintf("%d hash ranges", n))
	}
	if len(parts) == 0 {
		return "everything"
	}
	return strings.Join(parts, ", ")
}

func keyRangeText(r *datav1.KeyRange) string {
	end := "the end"
	if r.GetEnd() != "" {
		end = tenantName(r.GetEnd())
	}
	if r.GetStart() == "" {
		return "before " + end
	}
	return tenantName(r.GetStart()) + " to " + end
}

// hashRangeText is the form that --hash-range takes.
func hashRangeText(r *datav1.HashRange) string {
	return fmt.Sprintf("0x%016x-0x%016x", r.GetStart(), r.GetEnd())
}

// percentDone is how much of the copy of a move is done; false: nobody knows. What follows the copy has
// no end that could be told in percent: the state and the lag say more.
func percentDone(m *movev1.Move) (int, bool) {
	state := m.GetState()
	if state == movev1.State_STATE_FAILED {
		state = m.GetResumeState()
	}
	switch state {
	case movev1.State_STATE_PLANNED, movev1.State_STATE_PINNED:
		return 0, true
	case movev1.State_STATE_COPYING:
	case movev1.State_STATE_COMMITTED, movev1.State_STATE_RELEASED:
		return 100, true
	case movev1.State_STATE_TAILING, movev1.State_STATE_VERIFYING, movev1.State_STATE_FENCED, movev1.State_STATE_ACCEPTED:
		return 100, m.GetPurpose() != movev1.Purpose_PURPOSE_REPAIR
	default: // cancelled
		if m.GetProgress().GetTotalBytes() == 0 {
			return 0, false
		}
	}
	p := m.GetProgress()
	if p.GetTotalBytes() <= 0 {
		return 0, false
	}
	// The total is an estimate: a copy that goes on is not done.
	return int(min(99, 100*float64(p.GetCopiedBytes())/float64(p.GetTotalBytes()))), true
}

// barCells is the width of a bar in a table.
const barCells = 10

// barText is a bar and its percentage.
func barText(m *movev1.Move) string {
	percent, known := percentDone(m)
	if !known {
		return "-"
	}
	full := percent * barCells / 100
	return fmt.Sprintf("[%s%s] %3d %%", strings.Repeat("#", full), strings.Repeat(".", barCells-full), percent)
}

func rateText(m *movev1.Move) string {
	if ended(m) || m.GetProgress().GetBytesPerSecond() <= 0 {
		return "-"
	}
	return humanBytes(m.GetProgress().GetBytesPerSecond()) + "/s"
}

func remainingText(m *movev1.Move) string {
	p := m.GetProgress()
	if m.GetState() != movev1.State_STATE_COPYING || p.GetRemainingSeconds() < 0 || p.GetTotalBytes() == 0 {
		return "-"
	}
	return (time.Duration(p.GetRemainingSeconds()) * time.Second).String()
}

// lagText is how far the target is behind.
func lagText(m *movev1.Move) string {
	p := m.GetProgress()
	if ended(m) || p == nil || p.GetLagMs() < 0 || m.GetState() < movev1.State_STATE_TAILING {
		return "-"
	}
	lag := (time.Duration(p.GetLagMs()) * time.Millisecond).Round(100 * time.Millisecond).String()
	if p.GetLagRecords() == 0 {
		return lag
	}
	return fmt.Sprintf("%s (%d records)", lag, p.GetLagRecords())
}

// renderMoves prints a table of moves, then the drains, then what an operator must know of the migrator.
func renderMoves(w io.Writer, v *adminv1.MovesResponse) error {
	if len(v.GetMoves()) > 0 {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "id\tpurpose\twhat\ttarget\tstate\tcopied\trate\tremaining\tlag\tnote")
		for _, m := range v.GetMoves() {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", plain(m.GetId()), purposeWord(m.GetPurpose()), whatText(m.GetWhat()),
				plain(m.GetTarget().GetNodeId()), stateText(m), barText(m), rateText(m), remainingText(m), lagText(m), noteText(m.GetReason()))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	for _, d := range v.GetDrains() {
		if _, err := fmt.Fprintln(w, drainText(d)); err != nil {
			return err
		}
	}
	if len(v.GetMoves())+len(v.GetDrains()) == 0 {
		if _, err := fmt.Fprintln(w, "nothing moves"); err != nil {
			return err
		}
	}
	if text := migratorText(v); text != "" {
		_, err := fmt.Fprintln(w, text)
		return err
	}
	return nil
}

// noteText is a reason that fits into a table.
func noteText(reason string) string {
	const maxLength = 100
	text := []rune(plain(oneLine(reason)))
	if len(text) > maxLength {
		return string(text[:maxLength-1]) + "…"
	}
	return string(text)
}

// drainText is a line about a drain.
func drainText(d *movev1.Drain) string {
	text := fmt.Sprintf("drain %s: %s", plain(d.GetId()), drainStateWord(d.GetState()))
	if d.GetMovesTotal() > 0 {
		text += fmt.Sprintf(", %d of %d moves done", d.GetMovesDone(), d.GetMovesTotal())
	}
	if d.GetForceReason() != "" {
		text += ", forced (" + noteText(d.GetForceReason()) + ")"
	}
	if d.GetReason() != "" && d.GetReason() != d.GetForceReason() {
		text += ": " + noteText(d.GetReason())
	}
	return text
}

// migratorText warns when nobody works; empty: somebody does.
func migratorText(v *adminv1.MovesResponse) string {
	ms := v.GetMigratorLastSeenMsAgo()
	switch {
	case ms < 0:
		return "the migrator was not heard since the node started: nothing goes on until it is back"
	case time.Duration(ms)*time.Millisecond > migratorAway:
		return fmt.Sprintf("the migrator was heard %s ago: nothing goes on until it is back", units.HumanDuration(time.Duration(ms)*time.Millisecond))
	}
	return ""
}

// renderMove prints all that is known of a move.
func renderMove(w io.Writer, m *movev1.Move) error {
	p := m.GetProgress()
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, name+"\t"+format+"\n", args...) }
	row("move", "%s, for %s", plain(m.GetId()), purposeWord(m.GetPurpose()))
	row("state", "%s", stateText(m))
	if m.GetReason() != "" {
		row("reason", "%s", plain(oneLine(m.GetReason())))
	}
	row("what", "%s", whatText(m.GetWhat()))
	target := plain(m.GetTarget().GetNodeId())
	if m.GetTarget().GetAddr() != "" {
		target += " at " + plain(m.GetTarget().GetAddr())
	}
	row("way", "%s to %s", plain(m.GetSourceNodeId()), target)
	row("ends", "%s", endText(m))
	if m.GetParent() != "" {
		row("part of", "%s", plain(m.GetParent()))
	}
	if m.GetMaxBytesPerSecond() > 0 {
		row("limit", "%s/s", humanBytes(m.GetMaxBytesPerSecond()))
	}
	copied := fmt.Sprintf("%d records, %s", p.GetCopiedRecords(), humanBytes(p.GetCopiedBytes()))
	if p.GetTotalBytes() > 0 {
		copied += " of about " + humanBytes(p.GetTotalBytes())
	}
	row("copied", "%s  %s", copied, barText(m))
	row("rate", "%s, remaining %s", rateText(m), remainingText(m))
	row("tailed", "%d records, %s; lag %s", p.GetTailedRecords(), humanBytes(p.GetTailedBytes()), lagText(m))
	row("compared", "%d keys, %d of them sent again", p.GetComparedKeys(), p.GetRepairedKeys())
	row("verified", "%s", instant(m.GetVerifiedAtMs()))
	row("taken up again", "%d times, %s sent twice", p.GetResumes(), humanBytes(p.GetResentBytes()))
	row("sequences", "pinned %d, tailed %d, fenced %d; epoch %d", m.GetPinnedSequence(), m.GetTailSequence(), m.GetFenceSequence(), m.GetEpoch())
	row("created", "%s", instant(m.GetCreatedAtMs()))
	row("changed", "%s, version %d", instant(m.GetUpdatedAtMs()), m.GetVersion())
	return t.Flush()
}

// endText says when a move ends and what is so then.
func endText(m *movev1.Move) string {
	switch {
	case m.GetPurpose() == movev1.Purpose_PURPOSE_REPAIR:
		return "when both sides are equal"
	case m.GetMode() == movev1.Mode_MODE_FOLLOW:
		return "when it is finished (pairctl finish) or cancelled"
	case m.GetHandOver():
		return "when the target owns the ranges"
	}
	return "when the target has everything"
}

// renderRanges prints the ranges of a node: all of them, or what matters of them.
func renderRanges(w io.Writer, r *adminv1.RangesResponse, all bool, now time.Time) error {
	if len(r.GetRanges()) == 0 {
		if _, err := fmt.Fprintln(w, "no ranges: the node does not know its cluster yet, or owns nothing"); err != nil {
			return err
		}
	} else if err := renderOwned(w, r, all, now); err != nil {
		return err
	}
	if n := len(r.GetCleanupNeeded()); n > 0 {
		fmt.Fprintf(w, "cleanup needed: %d ranges are not the node's any more and hold data (pairctl cleanup)\n", n)
		if all {
			for _, c := range r.GetCleanupNeeded() {
				fmt.Fprintf(w, "  %s\n", hashRangeText(c))
			}
		}
	}
	return nil
}

// longNotEqual is four times what comparisons are apart by default: who was not equal for so long is behind.
const longNotEqual = 4 * time.Hour

func renderOwned(w io.Writer, r *adminv1.RangesResponse, all bool, now time.Time) error {
	if all {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "hashes\treplicas\tequal\tbehind")
		for _, o := range r.GetRanges() {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", hashRangeText(o.GetRange()), plain(strings.Join(o.GetReplicas(), ", ")), equalText(o, now), plain(o.GetBehind()))
		}
		return t.Flush()
	}
	fewest, never, short := -1, 0, 0
	oldest := int64(0)
	behind := map[string]int{}
	var names []string // in the order in which they are met
	for _, o := range r.GetRanges() {
		n := len(o.GetReplicas())
		if fewest < 0 || n < fewest {
			fewest = n
		}
		if n < int(r.GetReplicationFactor()) {
			short++
		}
		if n > 1 && o.GetEqualAtMs() == 0 {
			never++
		} else if n > 1 && (oldest == 0 || o.GetEqualAtMs() < oldest) {
			oldest = o.GetEqualAtMs()
		}
		if b := o.GetBehind(); b != "" && (o.GetEqualAtMs() == 0 || now.Sub(time.UnixMilli(o.GetEqualAtMs())) > longNotEqual) {
			if behind[b] == 0 {
				names = append(names, b)
			}
			behind[b]++
		}
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "ranges\t%d\n", len(r.GetRanges()))
	fmt.Fprintf(t, "copies\t%d wanted", r.GetReplicationFactor())
	if short > 0 {
		fmt.Fprintf(t, ", %d ranges have fewer (%d): there are too few nodes", short, fewest)
	}
	fmt.Fprintln(t)
	fmt.Fprintf(t, "equal\t%s\n", equalSummary(oldest, never, now))
	for _, name := range names {
		fmt.Fprintf(t, "behind\t%s in %d ranges\n", plain(name), behind[name])
	}
	return t.Flush()
}

func equalSummary(oldest int64, never int, now time.Time) string {
	text := "alone: there is nobody to compare with"
	if oldest > 0 {
		text = "all within the last " + units.HumanDuration(now.Sub(time.UnixMilli(oldest)))
	}
	if never > 0 {
		text = fmt.Sprintf("%d ranges were not equal on all replicas since they are known", never)
		if oldest > 0 {
			text += ", the others within the last " + units.HumanDuration(now.Sub(time.UnixMilli(oldest)))
		}
	}
	return text
}

func equalText(o *adminv1.OwnedRange, now time.Time) string {
	switch {
	case len(o.GetReplicas()) < 2:
		return "alone"
	case o.GetEqualAtMs() == 0:
		return "not yet"
	}
	return units.HumanDuration(now.Sub(time.UnixMilli(o.GetEqualAtMs()))) + " ago"
}
