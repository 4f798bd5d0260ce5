package cmd

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A NATS server whose certificate has a role could be taken for a node, or call one.
func TestCertificateOfNATSHasNoRole(t *testing.T) {
	dir := t.TempDir()
	code, out, errs := run(t.Context(), "", "certs", "--dir", dir, "nats", "--hosts", "nats,*.nats-headless,127.0.0.1")
	require.Zero(t, code, errs)
	require.Contains(t, out, filepath.Join(dir, "nats.pem"))
	text, err := os.ReadFile(filepath.Join(dir, "nats.pem"))
	require.NoError(t, err)
	block, _ := pem.Decode(text)
	require.NotNil(t, block)
	cert, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	require.Empty(t, cert.URIs)
	require.Equal(t, []string{"nats", "*.nats-headless"}, cert.DNSNames)
	require.Contains(t, cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth)

	code, _, errs = run(t.Context(), "", "certs", "--dir", dir, "nats", "client")
	require.Equal(t, exitUsage, code)
	require.Contains(t, errs, "nats")
}
