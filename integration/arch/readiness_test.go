package arch

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	claimRow    = regexp.MustCompile(`^\| (.+?) \| (.+) \|$`)
	evidence    = regexp.MustCompile("\\[`([^`]+)`\\]\\(([^)]+)\\)")
	gapSentence = regexp.MustCompile(`^\*\*Gap:\*\* \S.{20,}\.$`)
)

// unprovenClaims returns the rows of the checklist that neither name a test that is there nor a gap.
func unprovenClaims(text, docs string) (wrong []string, claims, gaps int) {
	for line := range strings.SplitSeq(text, "\n") {
		m := claimRow.FindStringSubmatch(line)
		if m == nil || m[1] == "claim" || strings.HasPrefix(m[1], "---") {
			if m == nil && strings.HasPrefix(line, "|") && !strings.HasPrefix(line, "|---") {
				wrong = append(wrong, line+": no row of two cells")
			}
			continue
		}
		claims++
		if strings.HasPrefix(m[2], "**Gap") {
			gaps++
			if !gapSentence.MatchString(m[2]) {
				wrong = append(wrong, m[1]+": a gap says what is not known")
			}
			continue
		}
		shown := evidence.FindAllStringSubmatch(m[2], -1)
		if len(shown) == 0 {
			wrong = append(wrong, m[1]+": no test and no gap")
		}
		for _, e := range shown {
			file, err := os.ReadFile(filepath.Join(docs, e[2]))
			declaration := "(?m)^func " + e[1] + `\(`
			if target, ok := strings.CutPrefix(e[1], "make "); ok {
				declaration = "(?m)^" + target + ":"
			}
			if err != nil || !regexp.MustCompile(declaration).Match(file) {
				wrong = append(wrong, fmt.Sprintf("%s: %s has no %s", m[1], e[2], e[1]))
			}
		}
	}
	return wrong, claims, gaps
}

func TestEachClaimOfReadinessHasATestOrIsAGap(t *testing.T) {
	// A checklist of good intentions is believed.
	docs := filepath.Join("..", "..", "docs")
	text, err := os.ReadFile(filepath.Join(docs, "PRODUCTION_READINESS.md"))
	require.NoError(t, err)
	wrong, claims, gaps := unprovenClaims(string(text), docs)
	require.Empty(t, wrong)
	require.Greater(t, claims, 30)
	require.Positive(t, gaps, "nothing is without a gap")

	for _, row := range []string{
		"| it is fast | we think so |", "| it is fast | **Gap:** yes |", "| it is fast |",
		"| it is fast | [`TestNobodyWrote`](../integration/arch/arch_test.go) |",
		"| it is fast | [`TestImportsPointDown`](../integration/arch/docs_test.go) |",
		"| it is fast | [`make faster`](../Makefile) |",
		"| it is fast | [`TestImportsPointDown`](../integration/arch/gone_test.go) |",
	} {
		wrong, _, _ := unprovenClaims(row, docs)
		require.Len(t, wrong, 1, row)
	}
}
