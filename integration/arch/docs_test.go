package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	markdownLink = regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)
	pathRow      = regexp.MustCompile(`^\| \d+ \| \[[^\]]+\]\(([^)]+)\) \| (.*?) \|`)
	codeWord     = regexp.MustCompile("`([A-Za-z]+)`")
)

// pages are the documents of the repository.
func pages(t *testing.T) []string {
	t.Helper()
	top := filepath.Join("..", "..")
	all := []string{filepath.Join(top, "README.md")}
	err := filepath.WalkDir(filepath.Join(top, "docs"), func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".md") {
			all = append(all, path)
		}
		return err
	})
	require.NoError(t, err)
	return all
}

func TestLinksOfThePagesLeadSomewhere(t *testing.T) {
	// A dead link is the first thing that a reader in trouble meets.
	for _, page := range pages(t) {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, m := range markdownLink.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			_, err := os.Stat(filepath.Join(filepath.Dir(page), m[1]))
			require.NoError(t, err, "%s links to %s", page, m[1])
		}
	}
}

func TestDataPathNamesWhatIsThere(t *testing.T) {
	// A walk through the code that names functions of last month leads astray.
	page := filepath.Join("..", "..", "docs", "DATA_PATH.md")
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	rows := 0
	for line := range strings.SplitSeq(string(text), "\n") {
		m := pathRow.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		rows++
		source, err := os.ReadFile(filepath.Join(filepath.Dir(page), m[1]))
		require.NoError(t, err)
		for _, name := range codeWord.FindAllStringSubmatch(m[2], -1) {
			declared := regexp.MustCompile(`(?m)^func (\([^)]*\) )?` + name[1] + `\(`)
			require.True(t, declared.Match(source), "%s says that %s has a function %s", page, m[1], name[1])
		}
	}
	require.GreaterOrEqual(t, rows, 25)
}

func TestExampleOfTheReadmeCompiles(t *testing.T) {
	// The first code that a newcomer copies must be code that was compiled.
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(readme), "```go\n")
	require.True(t, ok)
	snippet, _, ok := strings.Cut(rest, "```")
	require.True(t, ok)
	example, err := os.ReadFile(filepath.Join("..", "..", "libs", "client", "example_test.go"))
	require.NoError(t, err)
	inFunction := "\t" + strings.ReplaceAll(strings.TrimSpace(snippet), "\n", "\n\t")
	require.Contains(t, string(example), strings.ReplaceAll(inFunction, "\n\t\n", "\n\n"))
}

func TestThreatModelNamesTestsThatExist(t *testing.T) {
	// A boundary whose test went is one that nobody watches.
	top := filepath.Join("..", "..")
	page, err := os.ReadFile(filepath.Join(top, "docs", "THREAT_MODEL.md"))
	require.NoError(t, err)
	declared := map[string]bool{}
	err = filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(source), -1) {
			declared[m[1]] = true
		}
		return err
	})
	require.NoError(t, err)
	named := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(string(page), -1)
	require.Greater(t, len(named), 25)
	for _, m := range named {
		require.True(t, declared[m[1]], "docs/THREAT_MODEL.md names %s", m[1])
	}
	for line := range strings.Lines(string(page)) {
		if cells := strings.Split(line, "|"); len(cells) == 6 && !strings.Contains(line, "---") && !strings.Contains(line, "| boundary |") {
			require.Contains(t, cells[4], "`Test", "a boundary without a test: %s", line)
		}
	}
}
