package kubetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Danger: whoever tries it for the first time waits, and gives up.
func TestInstallIsReadyWithinAMinute(t *testing.T) {
	b := installed(t)
	fmt.Printf("%s: ready %s after kubectl apply (bar: %s)\n", t.Name(), suite.took.Round(100*time.Millisecond), readyBar)
	require.Less(t, suite.took, 2*readyBar, "twice the bar: the machine is shared")
	underLoad(t, b, func(*load) {
		b.step(t, "first-look", 2*time.Minute)
	})
}
