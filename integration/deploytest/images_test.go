package deploytest

import (
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/supply"
)

// binaries are the images that are released.
var binaries = []string{"storage-node", "compactor", "migrator", "health-agent", "pairctl"}

// maxImageBytes is what an image may have: it is pulled while a pod is down.
const maxImageBytes = 40_000_000

// run runs a program in the root of the repository and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...) // also when the test ends: t.Context() is over then
	cmd.Dir = root
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%s %v: %s", name, args, stderr.String())
	return strings.TrimSpace(string(out))
}

// Danger: an image has what nobody put there, differs from the one that was tested, or runs as root.
func TestImagesAreSmallAndBuiltTwiceTheyAreEqual(t *testing.T) {
	if out, err := exec.CommandContext(t.Context(), "docker", "info").CombinedOutput(); err != nil {
		require.NotEqual(t, "true", os.Getenv("CI"), "a Docker engine is needed: %s", out)
		t.Skip("no Docker engine answers")
	}
	const revision = "of-deploytest" // whatever has this label is garbage afterwards
	arch := run(t, "go", "env", "GOARCH")
	var contexts [2]string
	for i := range contexts {
		contexts[i] = t.TempDir()
		run(t, "make", "image-binaries", "image-tool", "IMAGES="+contexts[i])
	}
	for _, name := range binaries {
		one, err := os.ReadFile(filepath.Join(contexts[0], "linux_"+arch, name))
		require.NoError(t, err)
		two, err := os.ReadFile(filepath.Join(contexts[1], "linux_"+arch, name))
		require.NoError(t, err)
		require.Equal(t, sha256.Sum256(one), sha256.Sum256(two), "%s, linked twice", name)
		var seen [2]string
		for i, context := range contexts {
			tag := "pairdb-deploytest/" + name + ":" + string(rune('a'+i))
			t.Cleanup(func() {
				run(t, "docker", "rmi", "-f", tag)
				run(t, "docker", "image", "prune", "-f", "--filter", "label=org.opencontainers.image.revision="+revision)
			})
			// One without its cache shows that layers are equal; a builder without BuildKit makes all targets
			// before the one that is asked for, so the first.
			fresh := name == binaries[0]
			run(t, "env", "ARCH="+arch, fmt.Sprintf("NO_CACHE=%v", fresh), "integration/scripts/build-image", name, context, "v1.2.3", revision, "1700000000", tag)
			var image []struct {
				ID     string `json:"Id"`
				Size   int64
				RootFS struct{ Layers []string }
				Config struct {
					User       string
					Entrypoint []string
					Cmd, Env   []string
					Labels     map[string]string
				}
			}
			require.NoError(t, json.Unmarshal([]byte(run(t, "docker", "image", "inspect", tag)), &image))
			got := image[0]
			require.Less(t, got.Size, int64(maxImageBytes), name)
			require.Len(t, got.RootFS.Layers, 1, "the binary and nothing else")
			require.Equal(t, []string{"/" + name}, got.Config.Entrypoint)
			require.NotContains(t, []string{"", "0", "root"}, strings.Split(got.Config.User, ":")[0])
			for label, want := range map[string]string{"version": "v1.2.3", "revision": revision, "licenses": "Apache-2.0", "source": "https://github.com/pairdb/pairdb"} {
				require.Equal(t, want, got.Config.Labels["org.opencontainers.image."+label], name)
			}
			require.NotEmpty(t, got.Config.Labels["org.opencontainers.image.title"])
			require.NotEmpty(t, got.Config.Labels["org.opencontainers.image.description"])
			seen[i] = got.ID // the sum of all that it is
		}
		require.Equal(t, seen[0], seen[1], "%s, built twice", name)
		requireBill(t, "pairdb-deploytest/"+name+":a", seen[0], filepath.Join(contexts[0], "linux_"+arch, name))
		require.Contains(t, run(t, "docker", "run", "--rm", "--network", "none", "--read-only", "--cap-drop", "ALL", "pairdb-deploytest/"+name+":a", "--version"), name)
	}
}

// requireBill checks the bill of materials of an image: its id, its one file, and what that is made of.
func requireBill(t *testing.T, tag, id, binary string) {
	t.Helper()
	saved := filepath.Join(t.TempDir(), "image.tar")
	run(t, "docker", "save", "-o", saved, tag)
	f, err := os.Open(saved)
	require.NoError(t, err)
	defer f.Close()
	info, err := f.Stat()
	require.NoError(t, err)
	bill, err := supply.ImageBill(f, info.Size(), tag)
	require.NoError(t, err)
	require.Equal(t, cdx.ComponentTypeContainer, bill.Metadata.Component.Type)
	if !strings.Contains(run(t, "docker", "info", "--format", "{{.DriverStatus}}"), "containerd.snapshotter") { // there ids are of manifests
		require.Equal(t, id, "sha256:"+(*bill.Metadata.Component.Hashes)[0].Value)
	}
	alone, err := supply.Bill(binary, "a")
	require.NoError(t, err)
	parts := *bill.Components
	require.Equal(t, filepath.Base(binary), parts[0].Name)
	text, err := os.ReadFile(binary)
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("%x", sha256.Sum256(text)), (*parts[0].Hashes)[0].Value)
	require.Equal(t, *alone.Components, parts[1:], "the modules of the binary and nothing else")
}

// Danger: the other architecture is built for the first time when somebody needs it.
func TestBinariesOfImagesAreForBothArchitectures(t *testing.T) {
	if testing.Short() {
		t.Skip("it compiles everything for another architecture")
	}
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	for arch, machine := range machines {
		dir := t.TempDir()
		run(t, "make", "image-binaries", "ARCHS="+arch, "IMAGES="+dir)
		sums := map[[32]byte]bool{}
		for _, name := range append([]string{"nats-server"}, binaries...) {
			path := filepath.Join(dir, "linux_"+arch, name)
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			sums[sha256.Sum256(text)] = true
			f, err := elf.Open(path)
			require.NoError(t, err)
			require.Equal(t, machine, f.Machine, path)
			libraries, err := f.ImportedLibraries()
			require.NoError(t, err)
			require.Empty(t, libraries, "%s is not static", name)
			require.NoError(t, f.Close())
		}
		require.Len(t, sums, len(binaries)+1)
	}
}
