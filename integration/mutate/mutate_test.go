package main

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the table of mutations into docs/TESTING.md")

const (
	tree      = "../.."
	page      = tree + "/docs/TESTING.md"
	tableFrom = "<!-- mutations: go test ./mutate -update -->\n"
	tableTo   = "<!-- end of mutations -->\n"
)

var testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)

// testsOf returns the tests of each package.
func testsOf(t *testing.T) map[string]map[string]bool {
	t.Helper()
	found := map[string]map[string]bool{}
	require.NoError(t, filepath.WalkDir(tree, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && name != tree {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(name, "_test.go") {
			return nil
		}
		source, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		pkg, err := filepath.Rel(tree, filepath.Dir(name))
		if err != nil {
			return err
		}
		if found[pkg] == nil {
			found[pkg] = map[string]bool{}
		}
		for _, match := range testFunc.FindAllStringSubmatch(string(source), -1) {
			found[pkg][match[1]] = true
		}
		return nil
	}))
	require.Greater(t, len(found), 20, "packages with tests")
	return found
}

func TestEveryMutationAppliesAndItsTestsExist(t *testing.T) {
	// A mutation that does not apply any more, or a test that was renamed, proves nothing, and nobody
	// notices until the long run.
	tests, names := testsOf(t), map[string]bool{}
	for _, m := range mutations {
		require.False(t, names[m.name], "two mutations are called %s", m.name)
		names[m.name] = true
		source, err := os.ReadFile(filepath.Join(tree, m.file))
		require.NoError(t, err)
		mutated, err := m.apply(string(source))
		require.NoError(t, err, "%s: the code has changed: say in integration/mutate/list.go what is to be replaced now", m.name)
		require.NotEqual(t, string(source), mutated, m.name)
		for _, name := range strings.Split(m.run, "|") {
			require.True(t, tests[m.pkg][name], "%s: %s has no %s", m.name, m.pkg, name)
		}
	}
	require.GreaterOrEqual(t, len(mutations), 14)
}

func TestPageNamesTheMutationsAndTestsThatAreThere(t *testing.T) {
	// A page that promises a test which is gone is worse than none.
	b, err := os.ReadFile(page)
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(b), tableFrom)
	require.True(t, ok, "%s has no %q", page, tableFrom)
	got, after, ok := strings.Cut(rest, tableTo)
	require.True(t, ok, "%s has no %q", page, tableTo)
	if *update {
		require.NoError(t, os.WriteFile(page, []byte(before+tableFrom+table(mutations)+tableTo+after), 0o600))
	} else {
		require.Equal(t, table(mutations), got, "cd integration && go test ./mutate -update")
	}
	all := map[string]bool{}
	for _, tests := range testsOf(t) {
		for name := range tests {
			all[name] = true
		}
	}
	named := regexp.MustCompile("`((?:Test|Fuzz)[A-Z]\\w+)`").FindAllStringSubmatch(string(b), -1)
	require.Greater(t, len(named), len(mutations))
	for _, match := range named {
		require.True(t, all[match[1]], "%s names %s, which is not there", page, match[1])
	}
}

func TestMutationMustApplyOnce(t *testing.T) {
	// A replacement that hits nothing, or the wrong one of two places, would count as survived or caught
	// for no reason.
	m := mutation{file: "x.go", swaps: []swap{{"a := 1", "a := 2"}, {"b := 1", "b := 2"}}}
	got, err := m.apply("a := 1; b := 1")
	require.NoError(t, err)
	require.Equal(t, "a := 2; b := 2", got)
	for _, source := range []string{"a := 1", "a := 1; a := 1; b := 1", ""} {
		_, err := m.apply(source)
		require.ErrorContains(t, err, "does not apply", source)
	}
}

func TestVerdictSaysHowATestFailed(t *testing.T) {
	// A test that hangs or panics is told from one that asserts; an exit code alone is no catch.
	for out, want := range map[string]string{
		"=== RUN   TestA\n--- FAIL: TestA (0.1s)\n    --- FAIL: TestA/x (0.1s)\n--- FAIL: TestB (0s)\n": "TestA, TestB",
		"=== RUN   TestA\npanic: test timed out after 4m0s\n":                                           "TestA (time limit)",
		"=== RUN   TestA\n--- PASS: TestA\n=== RUN   TestB\npanic: index out of range\n":                "TestB (panic: index out of range)",
		"--- FAIL: TestA (0s)\npanic: boom [recovered]\n":                                               "TestA (panic: boom [recovered])",
		"FAIL\n": "",
	} {
		by, ok := noticed(out)
		require.Equal(t, want, by)
		require.Equal(t, want != "", ok)
	}
}

func TestNamesChooseMutations(t *testing.T) {
	// A typing error must not look like a run in which everything was caught.
	chosen, err := choose(mutations, "^log-")
	require.NoError(t, err)
	require.NotEmpty(t, chosen)
	require.Less(t, len(chosen), len(mutations))
	_, err = choose(mutations, "no such mutation")
	require.Error(t, err)
	_, err = choose(mutations, "(")
	require.Error(t, err)
}
