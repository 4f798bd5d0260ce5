package smoke

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/localpod"
)

func TestExamplesOfTheClientHoldOnARealNode(t *testing.T) {
	// They are run with a node in memory otherwise, which must not be kinder than the real one.
	pods, _ := podtest.Start(t, localpod.Options{NoCompactor: true})
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-run", "^Example", "-v", ".")
	cmd.Dir = filepath.Join("..", "..", "libs", "client")
	cmd.Env = append(os.Environ(), "PAIRDB_TEST_ADDR="+pods.All()[0].Addr)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: ExampleClient_Update")
}
