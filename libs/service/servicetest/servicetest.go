// Package servicetest holds the checks that every binary's configuration must pass. It never runs
// outside of tests.
package servicetest

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/service"
)

var update = flag.Bool("update", false, "rewrite generated pages instead of comparing them")

// Config checks the configuration of a binary: its keys are known to all binaries, its defaults
// load and are valid, and its section of docs/CONFIGURATION.md is current. config is a pointer to a
// zero configuration.
func Config(t *testing.T, binary string, config any) {
	t.Helper()
	fields, err := service.Fields(config)
	require.NoError(t, err)
	for _, f := range fields {
		require.True(t, service.Known(f.Key), "%s is missing in service.Keys: other binaries of the pod would refuse to start with it", f.Key)
	}
	ClearEnvironment(t)
	require.NoError(t, service.Load(config), "the defaults must be a valid configuration")
	Section(t, "docs/CONFIGURATION.md", binary, service.Reference(binary, fields))
}

// ClearEnvironment removes every PAIRDB_ key until the test ends.
func ClearEnvironment(t *testing.T) {
	t.Helper()
	for _, kv := range os.Environ() {
		if key, value, _ := strings.Cut(kv, "="); strings.HasPrefix(key, service.Prefix) {
			t.Setenv(key, value) // restores it at the end
			require.NoError(t, os.Unsetenv(key))
		}
	}
}

// Section checks that a generated page of the repository has this text between the marks of name;
// with -update it writes it there.
func Section(t *testing.T, page, name, text string) {
	t.Helper()
	path := filepath.Join(root(t), page)
	old, err := os.ReadFile(path)
	require.NoError(t, err)
	now, err := service.SpliceSection(string(old), name, text)
	require.NoError(t, err)
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(now), 0o644))
		return
	}
	require.Equal(t, string(old), now, "section %q of %s is not current: run this test with -update", name, page)
}

// root returns the directory of go.work above the package under test.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	require.NoError(t, err)
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		require.NotEqual(t, parent, dir, "no go.work above the package under test")
		dir = parent
	}
}
