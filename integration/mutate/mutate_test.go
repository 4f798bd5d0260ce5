package main

import (
	"flag"
	"go/format"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the tables of mutations into docs/TESTING.md and docs/THREAT_MODEL.md")

const (
	tree      = "../.."
	page      = tree + "/docs/TESTING.md"
	threats   = tree + "/docs/THREAT_MODEL.md"
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
		if strings.HasSuffix(m.file, ".go") {
			_, err = format.Source([]byte(mutated))
			require.NoError(t, err, m.name)
		}
		require.False(t, m.part != "" && strings.Contains(m.run, "|"), "%s: a part of which test?", m.name)
		for _, name := range strings.Split(m.run, "|") {
			require.True(t, tests[m.pkg][name], "%s: %s has no %s", m.name, m.pkg, name)
		}
	}
	require.GreaterOrEqual(t, len(promises), 50)
	require.GreaterOrEqual(t, len(protections), 80)
}

func TestPageNamesTheMutationsAndTestsThatAreThere(t *testing.T) {
	// A page that promises a test which is gone is worse than none.
	all := map[string]bool{}
	for _, tests := range testsOf(t) {
		for name := range tests {
			all[name] = true
		}
	}
	for file, listed := range map[string][]mutation{page: promises, threats: protections} {
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		before, rest, ok := strings.Cut(string(b), tableFrom)
		require.True(t, ok, "%s has no %q", file, tableFrom)
		got, after, ok := strings.Cut(rest, tableTo)
		require.True(t, ok, "%s has no %q", file, tableTo)
		if *update {
			require.NoError(t, os.WriteFile(file, []byte(before+tableFrom+table(listed)+tableTo+after), 0o600))
		} else {
			require.Equal(t, table(listed), got, "cd integration && go test ./mutate -update")
		}
		named := regexp.MustCompile("`((?:Test|Fuzz)[A-Z]\\w+)`").FindAllStringSubmatch(string(b), -1)
		require.Greater(t, len(named), len(listed))
		for _, match := range named {
			require.True(t, all[match[1]], "%s names %s, which is not there", file, match[1])
		}
	}
}

var (
	boundary  = regexp.MustCompile(`(?m)^\|([^|]*)\|([^|]+)\|([^|]+)\|([^|]+)\|$`)
	shownTest = regexp.MustCompile("`(Test\\w+)`")
)

// untried returns the boundaries of a page none of whose tests notices a mutation, and the tests of protections that no
// boundary names.
func untried(text string, all, protecting []mutation) (rows, tests []string, boundaries int) {
	_, text, _ = strings.Cut(text, "\n## Boundaries\n")
	text, _, _ = strings.Cut(text, "\n## ")
	notices, named := map[string]bool{}, map[string]bool{}
	for _, m := range all {
		for name := range strings.SplitSeq(m.run, "|") {
			notices[name] = true
		}
	}
	for _, cells := range boundary.FindAllStringSubmatch(text, -1) {
		if strings.TrimSpace(cells[1]) == "boundary" || strings.HasPrefix(cells[1], "---") {
			continue
		}
		boundaries++
		tried := false
		for _, shown := range shownTest.FindAllStringSubmatch(cells[4], -1) {
			named[shown[1]] = true
			tried = tried || notices[shown[1]]
		}
		if !tried {
			rows = append(rows, strings.TrimSpace(cells[2]))
		}
	}
	for _, m := range protecting {
		for name := range strings.SplitSeq(m.run, "|") {
			if !named[name] {
				tests = append(tests, m.name+": "+name)
			}
		}
	}
	return rows, tests, boundaries
}

func TestEachBoundaryHasAProtectionThatIsTakenAway(t *testing.T) {
	// A test that passes with the protection and without it shows nothing.
	text, err := os.ReadFile(threats)
	require.NoError(t, err)
	rows, tests, boundaries := untried(string(text), mutations, protections)
	require.Empty(t, rows, "no mutation of integration/mutate is noticed by a test of the row")
	require.Empty(t, tests, "docs/THREAT_MODEL.md does not name what notices")
	require.Greater(t, boundaries, 30)

	head := "\n## Boundaries\n| boundary | what | happens | tests |\n|---|---|---|---|\n"
	rows, tests, boundaries = untried(head+"| port | knock | no | `TestA` |\n| | enter | no | `TestB`, `TestC` |\n## Rest\n| x | y | z | `TestD` |\n",
		[]mutation{{run: "TestC|TestD"}}, []mutation{{name: "m", run: "TestD"}})
	require.Equal(t, []string{"knock"}, rows)
	require.Equal(t, []string{"m: TestD"}, tests)
	require.Equal(t, 2, boundaries)
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

func TestAProtectionMustNotSurvive(t *testing.T) {
	// Nine of ten are enough for promises that another one keeps as well; a door that one of ten opens is open.
	for _, c := range []struct {
		survivors []string
		broken    int
		want      string
	}{
		{nil, 0, ""}, {[]string{promises[0].name}, 0, ""}, {[]string{protections[0].name}, 0, protections[0].name},
		{nil, 1, "prove nothing"}, {[]string{"a", "b", "c"}, 0, "less than 90 %"},
	} {
		err := judge(20, c.broken, c.survivors)
		if c.want == "" {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, c.want)
		}
	}
}

func TestPartsOfTests(t *testing.T) {
	// A part that is not there would look like a test that passes.
	whole, part := mutation{run: "TestA|TestB"}, mutation{run: "TestA", part: "slow_ones"}
	require.Equal(t, "^(TestA|TestB)$", whole.pattern())
	require.Equal(t, "^(TestA)$/^slow_ones$", part.pattern())
	require.Contains(t, "=== RUN   TestA\n--- PASS: TestA (0.1s)\n    --- PASS: TestA/slow_ones (0.1s)\n", part.passes())
	require.NotContains(t, "=== RUN   TestA\n--- PASS: TestA (0.1s)\n", part.passes())
}
