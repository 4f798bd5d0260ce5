package invariant_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/invariant"
)

// Danger: assertions that are silently off let every other test pass over a broken structure.
func TestAssertionsAreOnInTests(t *testing.T) {
	require.True(t, invariant.Enabled)
	require.PanicsWithValue(t, "invariant broken: level 3", func() { invariant.Check(false, "level %d", 3) })
	require.NotPanics(t, func() { invariant.Check(true, "never shown") })
}
