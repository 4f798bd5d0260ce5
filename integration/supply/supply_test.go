package supply

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/mod/modfile"

	"github.com/pairdb/pairdb/integration/podtest"
)

var binaries = []string{"storage-node", "compactor", "migrator", "health-agent", "pairctl"}

// production are the modules whose packages are in the binaries, or in an application that uses the client.
var production = []string{"proto", "libs", "libs/client", "libs/localpod", "libs/tracing", "services"}

func TestBillOfMaterialsNamesEveryModule(t *testing.T) {
	// Who has to know within the hour whether a hole is in what runs reads the bill, not our go.mod.
	for _, name := range binaries {
		file := filepath.Join(podtest.Binaries(t), name)
		bill, err := Bill(file, "v1")
		require.NoError(t, err)
		var text bytes.Buffer
		require.NoError(t, cdx.NewBOMEncoder(&text, cdx.BOMFileFormatJSON).Encode(bill))
		var read cdx.BOM
		require.NoError(t, cdx.NewBOMDecoder(bytes.NewReader(text.Bytes()), cdx.BOMFileFormatJSON).Decode(&read))
		require.Equal(t, name, read.Metadata.Component.Name)

		info, err := buildinfo.ReadFile(file)
		require.NoError(t, err)
		want := map[string]string{"std": strings.TrimPrefix(info.GoVersion, "go")}
		for _, dep := range info.Deps {
			if !strings.HasPrefix(dep.Path, own) {
				require.Nil(t, dep.Replace, "%s is replaced by %v", dep.Path, dep.Replace)
				want[dep.Path] = dep.Version
				require.NotEmpty(t, dep.Sum, dep.Path)
			}
		}
		got := map[string]string{}
		for _, c := range *read.Components {
			got[c.Name] = c.Version
			require.Equal(t, "pkg:golang/"+c.Name+"@"+c.Version, c.PackageURL)
		}
		require.Equal(t, want, got)
		require.Greater(t, len(got), 5)

		again, err := Bill(file, "v1")
		require.NoError(t, err)
		require.Equal(t, bill, again)
	}
	_, err := Bill("supply_test.go", "v1")
	require.Error(t, err)
}

// page is where each dependency has its reason.
const page = "../../docs/DEPENDENCIES.md"

var row = regexp.MustCompile("^\\| `([^`]+)` \\| ([^|]+) \\| ([^|]+) \\|$")

func TestEachDirectDependencyHasAReason(t *testing.T) {
	// A dependency comes with all that its authors will do to it in ten years: somebody has to want it.
	used := map[string][]string{}
	for _, m := range production {
		file := filepath.Join("..", "..", m, "go.mod")
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		mod, err := modfile.Parse(file, b, nil)
		require.NoError(t, err)
		for _, r := range mod.Require {
			if !r.Indirect && !strings.HasPrefix(r.Mod.Path, own) {
				used[r.Mod.Path] = append(used[r.Mod.Path], m)
			}
		}
		for _, r := range mod.Replace {
			require.True(t, strings.HasPrefix(r.Old.Path, own), "%s replaces %s: a fork is a dependency that nobody keeps", m, r.Old.Path)
		}
	}
	f, err := os.Open(page)
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	listed := map[string][]string{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if m := row.FindStringSubmatch(lines.Text()); m != nil {
			require.NotContains(t, listed, m[1], "listed twice")
			listed[m[1]] = strings.Split(m[2], ", ")
			require.Greater(t, len(strings.TrimSpace(m[3])), 10, "why %s?", m[1])
		}
	}
	for path, modules := range used {
		require.Contains(t, listed, path, "a new dependency of %v: say in docs/DEPENDENCIES.md why it is worth ten years, or do without", modules)
		require.ElementsMatch(t, modules, listed[path], "which modules use %s", path)
	}
	for path := range listed {
		require.Contains(t, used, path, "nobody uses it any more: take it out of docs/DEPENDENCIES.md")
	}
}

func TestBinariesAreReproducible(t *testing.T) {
	// Only then can anybody else check that a binary is made of this source: no path, time or name of the
	// machine is in it. The long form compiles everything anew, the short one links.
	sums := make([]map[string]string, 2)
	for i, dir := range []string{"a", "another/place"} {
		tree := filepath.Join(t.TempDir(), dir)
		copyTree(t, tree)
		build := exec.Command("make", "-C", tree, "build", "VERSION=v1")
		build.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "MAKE") || strings.HasPrefix(kv, "MFLAGS=") })
		if os.Getenv("PAIRDB_LONG") != "" {
			build.Env = append(build.Env, "GOCACHE="+t.TempDir())
		}
		out, err := build.CombinedOutput()
		require.NoError(t, err, "%s", out)
		sums[i] = map[string]string{}
		for _, name := range binaries {
			b, err := os.ReadFile(filepath.Join(tree, "bin", name))
			require.NoError(t, err)
			require.NotContains(t, string(b), tree, "the path of the source is in %s", name)
			sums[i][name] = fmt.Sprintf("%x", sha256.Sum256(b))
		}
	}
	require.Equal(t, sums[0], sums[1])
}

// copyTree copies what is tracked, as it is now.
func copyTree(t *testing.T, to string) {
	t.Helper()
	list := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = "../.."
	out, err := list.Output()
	require.NoError(t, err)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		b, err := os.ReadFile(filepath.Join("..", "..", name))
		if os.IsNotExist(err) {
			continue // deleted and not committed yet
		}
		require.NoError(t, err)
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(to, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(to, name), b, 0o644))
	}
}
