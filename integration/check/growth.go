package check

import (
	"fmt"
	"strings"
)

// Grown is the rule of Growth.
const Grown Rule = "process has grown"

// Usage is what a process holds while nothing is asked of it.
type Usage struct {
	// Descriptors and Goroutines are counts, Bytes is resident memory.
	Descriptors, Goroutines, Bytes float64
}

// Limits are how much more of each a process may hold at the end than at the start: what its data, and the
// connections of a larger cluster, explain. A leak per fault or per operation is far above it.
var Limits = Usage{Descriptors: 150, Goroutines: 150, Bytes: 256 << 20}

// Growth compares what processes, by name, held at the start with what they hold at the end. A process that
// is missing at the end is a violation too.
func Growth(before, after map[string]Usage, limits Usage) []Violation {
	var out []Violation
	for name, b := range before {
		a, found := after[name]
		if !found {
			out = append(out, Violation{Rule: Grown, Key: name, Text: "does not tell its metrics at the end"})
			continue
		}
		var more []string
		for _, of := range []struct {
			what                 string
			before, after, limit float64
		}{
			{"descriptors", b.Descriptors, a.Descriptors, limits.Descriptors},
			{"goroutines", b.Goroutines, a.Goroutines, limits.Goroutines},
			{"bytes", b.Bytes, a.Bytes, limits.Bytes},
		} {
			if of.after > of.before+of.limit {
				more = append(more, fmt.Sprintf("%s from %.0f to %.0f", of.what, of.before, of.after))
			}
		}
		if more != nil {
			out = append(out, Violation{Rule: Grown, Key: name, Text: strings.Join(more, ", ")})
		}
	}
	return out
}
