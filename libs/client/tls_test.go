package client_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/client"
)

func TestFilesOfACertificateThatCanNotBeUsedAreAnErrorAtOnce(t *testing.T) {
	// The alternative is a client that fails at its first call, in production. What good files do is tested
	// with a real node, in integration/security.
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	for _, cert := range []string{filepath.Join(dir, "missing"), empty} {
		_, err := client.TLSFromFiles(cert, cert, empty)
		require.ErrorContains(t, err, "certificate of the client")
	}
}
