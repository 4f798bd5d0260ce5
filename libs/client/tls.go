package client

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
)

// TLSFromFiles returns what Options.TLS needs to reach nodes that ask for a certificate: files (PEM) with
// the client's certificate, its key, and the authorities that nodes are checked against. Certificate and
// key are read again for each connection, so that new ones count without a restart; the authorities are
// read once.
func TLSFromFiles(cert, key, ca string) (*tls.Config, error) {
	if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
		return nil, fmt.Errorf("certificate of the client: %w", err)
	}
	authorities, err := os.ReadFile(ca)
	if err != nil {
		return nil, fmt.Errorf("authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authorities) {
		return nil, fmt.Errorf("authorities: %s has no certificate (PEM)", ca)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cert, key)
			return &pair, err
		},
	}, nil
}
