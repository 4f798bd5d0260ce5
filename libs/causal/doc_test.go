package causal

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Danger: the documented example is not what the code writes.
func TestDocumentedExampleIsGolden(t *testing.T) {
	doc, err := os.ReadFile("../../docs/formats/causal.md")
	require.NoError(t, err)
	_, example, ok := strings.Cut(string(doc), "**Example**")
	require.True(t, ok)
	example = strings.Split(example, "```")[1]
	hex := ""
	for _, line := range strings.Split(strings.TrimSpace(example), "\n") {
		digits := regexp.MustCompile(`^\s*((?:[0-9a-f]{2,} ?)+)(?:\s{2,}|$)`).FindStringSubmatch(line + "  ")
		require.NotNil(t, digits, line)
		hex += strings.ReplaceAll(digits[1], " ", "")
	}
	golden, err := os.ReadFile("testdata/golden.txt")
	require.NoError(t, err)
	require.Contains(t, string(golden), "first write of a node: "+hex+"\n")
}
