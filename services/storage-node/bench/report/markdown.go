package report

import (
	"fmt"
	"io"
	"strings"

	"github.com/pairdb/pairdb/services/storage-node/bench/engines"
	"github.com/pairdb/pairdb/services/storage-node/bench/suite"
)

// Markdown writes the table of ratios, then the details.
func Markdown(w io.Writer, r suite.Result) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Size %s: %d keys of %d bytes with values of 1 KiB (%d within the caches, %d with values of 100 bytes); %d rounds; took %.0f s.\n",
		r.Size.Name, r.Size.Keys, 24, r.Size.SmallKeys, r.Size.ShortKeys, r.Size.Rounds, r.Took.Seconds())
	fmt.Fprintf(&b, "Calibration loop: median %.1f ms; %d measurements beside which it was off were repeated, %d kept all the same.\n\n",
		float64(r.Calibration.Microseconds())/1000, r.Disturbed, r.Kept)
	ratios(&b, r)
	b.WriteString("\n")
	limits(&b, r)
	details(&b, r)
	_, err := io.WriteString(w, b.String())
	return err
}

// ratios writes one line per number, relative to the baseline's.
func ratios(b *strings.Builder, r suite.Result) {
	header := []string{"", "unit", engines.Baseline}
	for _, e := range r.Engines {
		if e != engines.Baseline {
			header = append(header, e)
		}
	}
	rows := [][]string{header}
	for _, l := range lines(r) {
		base, ok := l.mean(r, engines.Baseline)
		label, absolute := l.label, "–"
		if l.lower {
			label += " (less is better)"
		}
		if ok {
			absolute = number(base)
		}
		row := []string{label, l.unit, absolute}
		for _, e := range r.Engines {
			if e == engines.Baseline {
				continue
			}
			switch v, has := l.mean(r, e); {
			case !has:
				row = append(row, "–")
			case !ok || base == 0:
				row = append(row, number(v))
			default:
				row = append(row, fmt.Sprintf("%.2f", v/base))
			}
		}
		rows = append(rows, row)
	}
	fmt.Fprintf(b, "Ratios to %s, whose own numbers are in its column:\n\n", engines.Baseline)
	table(b, rows, 2)
}

// limits writes what the machine itself could do.
func limits(b *strings.Builder, r suite.Result) {
	if len(r.Limits) == 0 {
		return
	}
	rows := [][]string{{"the machine itself, in the same run", "unit", ""}}
	for _, l := range r.Limits {
		rows = append(rows, []string{l.Name, l.Unit, number(l.Value)})
	}
	table(b, rows, 2)
	b.WriteString("\n")
}

// details writes every measurement.
func details(b *strings.Builder, r suite.Result) {
	rows := [][]string{{"measurement", "engine", "round", "ops/s", "p50 µs", "p99 µs", "p99.9 µs", "max ms",
		"CPU µs/op", "allocs/op", "written ×", "space ×", "calibration", ""}}
	for _, l := range lines(r) {
		if l.label != l.measurement && l.measurement != "recovery" {
			continue // an extra line: its measurement has one already
		}
		for _, e := range r.Engines {
			for _, c := range r.Cells {
				if c.Name != l.measurement || c.Engine != e {
					continue
				}
				allocs := "n/a"
				if c.Allocs >= 0 {
					allocs = fmt.Sprintf("%.2f", c.Allocs)
				}
				rows = append(rows, []string{c.Name, e, fmt.Sprint(c.Round + 1), number(c.Rate()), orDash(c.P50), orDash(c.P99),
					orDash(c.P999), orDash(c.Max / 1000), number(c.CPU), allocs, orDash(c.Written), orDash(c.Space),
					fmt.Sprintf("%.2f", c.Calibration), c.Note})
			}
		}
	}
	b.WriteString("Each measurement:\n\n")
	table(b, rows, 2)
}

func orDash(v float64) string {
	if v == 0 {
		return "–"
	}
	return number(v)
}

// number writes three significant digits, and no more behind the point than make sense.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// table writes rows, the first of which is the header, in columns of even width; the first left
// columns are aligned to the left, the others to the right.
func table(b *strings.Builder, rows [][]string, left int) {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], len([]rune(cell)), 3)
		}
	}
	for n, row := range rows {
		for i, cell := range row {
			pad := strings.Repeat(" ", width[i]-len([]rune(cell)))
			if i < left {
				b.WriteString("| " + cell + pad + " ")
			} else {
				b.WriteString("| " + pad + cell + " ")
			}
		}
		b.WriteString("|\n")
		if n > 0 {
			continue
		}
		for i := range row {
			if i < left {
				b.WriteString("|" + strings.Repeat("-", width[i]+2))
			} else {
				b.WriteString("|" + strings.Repeat("-", width[i]+1) + ":")
			}
		}
		b.WriteString("|\n")
	}
}
