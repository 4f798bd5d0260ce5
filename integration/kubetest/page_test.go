package kubetest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// page is where the procedures stand: blocks of shell, each behind a comment with its name.
var page = filepath.Join("docs", "DEPLOYMENT.md")

// block is one fenced block of shell, with the comment before it if there is one.
var block = regexp.MustCompile("(?ms)^(?:<!-- step: ([a-z-]+) -->\n)?```sh\n(.*?)^```$")

// steps returns the procedures of the page by name; what has none is under "".
func steps(t *testing.T) map[string][]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root(), page))
	require.NoError(t, err)
	out := map[string][]string{}
	for _, m := range block.FindAllStringSubmatch(string(b), -1) {
		out[m[1]] = append(out[m[1]], m[2])
	}
	return out
}

// step runs a procedure of the page, word for word. The page's own variables are in env.
func (b *box) step(t *testing.T, name string, limit time.Duration, env ...string) string {
	t.Helper()
	all := steps(t)[name]
	require.Len(t, all, 1, "%s has no step %q", page, name)
	return b.shell(t, limit, all[0], append([]string{"OVERLAY=" + overlay}, env...)...)
}

// Danger: an operator who types, in the worst hour, a command that nobody has ever run.
func TestEveryCommandOfThePageIsTried(t *testing.T) {
	all := steps(t)
	require.Empty(t, all[""], "a block of %s has no name: write <!-- step: NAME --> before it, and a test that runs it", page)
	require.Greater(t, len(all), 10)
	tests, err := filepath.Glob("*_test.go")
	require.NoError(t, err)
	var source strings.Builder
	for _, name := range tests {
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		source.Write(b)
	}
	for name, blocks := range all {
		require.Len(t, blocks, 1, "%s is in %s twice", name, page)
		require.Contains(t, source.String(), `.step(t, "`+name+`",`, "no test runs the step %s of %s", name, page)
	}
}
