package report

import (
	"github.com/pairdb/pairdb/services/storage-node/bench/suite"
)

// line is a line of the table of ratios: one number of one measurement.
type line struct {
	label, unit string
	measurement string
	value       func(suite.Measurement) float64
	// lower says that less is better: the ratio is still that of the numbers.
	lower bool
}

func rate(m suite.Measurement) float64    { return m.Rate() }
func worst(m suite.Measurement) float64   { return m.Max / 1000 }
func p999(m suite.Measurement) float64    { return m.P999 }
func written(m suite.Measurement) float64 { return m.Written }
func space(m suite.Measurement) float64   { return m.Space }
func millis(m suite.Measurement) float64  { return m.Seconds * 1000 }

// extra are lines beside the rate of a measurement.
var extra = []line{
	{"worst put while filling", "ms", "fill-random", worst, true},
	{"p99.9 of puts while filling", "µs", "fill-random", p999, true},
	{"p99.9 of puts while overwriting", "µs", "overwrite-4", p999, true},
	{"bytes to disk per byte, fill and settle", "×", "fill-random+settle", written, true},
	{"bytes to disk per byte, overwrite and settle", "×", "overwrite-4+settle", written, true},
	{"bytes on disk per byte, after fill", "×", "fill-random+settle", space, true},
	{"bytes on disk per byte, after overwrite", "×", "overwrite-4+settle", space, true},
}

// lines returns the lines for what was measured, in the order of the measurements.
func lines(r suite.Result) []line {
	var out []line
	seen := map[string]bool{}
	for _, c := range r.Cells {
		if seen[c.Name] {
			continue
		}
		seen[c.Name] = true
		if c.Name == "recovery" {
			out = append(out, line{"open after kill -9", "ms", c.Name, millis, true})
			continue
		}
		out = append(out, line{c.Name, "ops/s", c.Name, rate, false})
	}
	for _, l := range extra {
		if seen[l.measurement] {
			out = append(out, l)
		}
	}
	return out
}

// mean returns the mean over the rounds, and false if the engine has none.
func (l line) mean(r suite.Result, engine string) (float64, bool) {
	sum, n := 0.0, 0
	for _, c := range r.Cells {
		if c.Engine == engine && c.Name == l.measurement {
			sum += l.value(c.Measurement)
			n++
		}
	}
	if n == 0 {
		return 0, false
	}
	return sum / float64(n), true
}
