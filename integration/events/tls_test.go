package events

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/event"
)

// authority makes a certificate of 127.0.0.1 that signs itself, and the file that clients check it with.
func authority(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, file
}

// Danger: events and commands travel in the clear, or to whoever calls itself the server.
func TestEventsTravelOverTLSToTheServerThatIsMeant(t *testing.T) {
	cert, ca := authority(t)
	_, other := authority(t)
	b := newBroker(t)
	b.options.TLS, b.options.TLSConfig = true, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	b.up()
	url := strings.Replace(b.url(), "nats://", "tls://", 1)

	deceived := newQueue(t)
	deceived.add(1)
	p := publish(t, event.Config{NATSURL: url, NATSCA: other}, deceived)
	eventually(t, 20*time.Second, "the certificate is not taken", func() bool { return p.log.count("certificate") > 0 })
	require.False(t, p.conn.Connected())

	q := newQueue(t)
	want := q.add(3)
	secure := publish(t, event.Config{NATSURL: url, NATSCA: ca}, q)
	eventually(t, 20*time.Second, "published", q.empty)
	state, err := secure.conn.NATS().TLSConnectionState()
	require.NoError(t, err)
	require.GreaterOrEqual(t, state.Version, uint16(tls.VersionTLS12))
	require.Equal(t, want, ids(b.events(nats.RootCAs(ca))))
	require.False(t, deceived.empty(), "nothing went to the wrong server")
}
