// Package invariant states what must hold inside the program, and stops the program where it does
// not. It never judges input: bad bytes and bad requests are errors.
//
// Assertions are on in tests and in binaries built with -tags invariants; elsewhere each costs one
// predictable branch. Expensive checks, and checks whose arguments would be allocated on a hot
// path, stand behind Enabled:
//
//	if invariant.Enabled {
//		invariant.Check(sorted(tables), "tables of level %d are not sorted", level)
//	}
package invariant

import (
	"fmt"
	"testing"
)

// Enabled reports whether assertions are on.
var Enabled = enabledByTag || testing.Testing()

// Check panics with the formatted message if assertions are on and ok is false.
func Check(ok bool, format string, args ...any) {
	if Enabled && !ok {
		panic("invariant broken: " + fmt.Sprintf(format, args...))
	}
}
