// Package authority makes a certificate authority for development and tests, and certificates of it. It
// never serves production: its key lies in a file beside what it signed.
package authority

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/pairdb/pairdb/libs/identity"
)

// Names of the files of an authority in its directory. A leaf is NAME.pem and NAME.key.
const (
	CertFile = "ca.pem"
	KeyFile  = "ca.key"
)

// skew is how far before now certificates begin: clocks of machines differ.
const skew = 5 * time.Minute

// Authority signs certificates. It is not safe for concurrent use.
type Authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Open returns the authority in a directory, and makes one that is valid for ten years if there is none.
func Open(dir string) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	a := &Authority{dir: dir}
	certPEM, err := os.ReadFile(a.CertPath())
	if errors.Is(err, fs.ErrNotExist) {
		return a, a.create()
	}
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	keyPEM, err := os.ReadFile(filepath.Join(dir, KeyFile))
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	certBlock, _ := pem.Decode(certPEM)
	keyBlock, _ := pem.Decode(keyPEM)
	if certBlock == nil || keyBlock == nil {
		return nil, fmt.Errorf("authority: %s and %s in %s are not PEM: remove both to make new ones", CertFile, KeyFile, dir)
	}
	if a.cert, err = x509.ParseCertificate(certBlock.Bytes); err != nil {
		return nil, fmt.Errorf("authority: %s: %w", CertFile, err)
	}
	if a.key, err = x509.ParseECPrivateKey(keyBlock.Bytes); err != nil {
		return nil, fmt.Errorf("authority: %s is no EC private key", KeyFile)
	}
	if !a.key.PublicKey.Equal(a.cert.PublicKey) {
		return nil, fmt.Errorf("authority: %s is not the key of %s in %s: remove both to make new ones", KeyFile, CertFile, dir)
	}
	return a, nil
}

// CertPath is the file with the certificate of the authority.
func (a *Authority) CertPath() string { return filepath.Join(a.dir, CertFile) }

func (a *Authority) create() error {
	template, key, err := template(10 * 365 * 24 * time.Hour)
	if err != nil {
		return err
	}
	template.Subject = pkix.Name{CommonName: "PairDB development authority"}
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return fmt.Errorf("authority: %w", err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return fmt.Errorf("authority: %w", err)
	}
	a.key = key
	return a.write("ca", der, key)
}

// Leaf is a certificate to make.
type Leaf struct {
	// File is the name of its files, without their endings; default the first role.
	File    string
	Cluster string
	// Roles are words: "client", "node"… Without one it is the certificate of a server that is not ours: of
	// NATS.
	Roles []string
	// Name is that of the process or the person; may be empty.
	Name string
	// Hosts are names and addresses at which a server with the certificate is reached. Whoever has none
	// can be no server.
	Hosts []string
	// Valid is for how long from now on; negative is over already.
	Valid time.Duration
}

// Issue makes a certificate and its key and writes both, the key readable by its owner only. Files of
// that name are replaced, each in one step. It returns what their processes need.
func (a *Authority) Issue(l Leaf) (identity.Files, error) {
	if len(l.Roles) == 0 && (len(l.Hosts) == 0 || l.File == "") {
		return identity.Files{}, errors.New("authority: a certificate needs a role, or hosts and a file")
	}
	if l.File == "" {
		l.File = l.Roles[0]
	}
	template, key, err := template(l.Valid)
	if err != nil {
		return identity.Files{}, err
	}
	template.Subject = pkix.Name{CommonName: l.Name, Organization: []string{l.Cluster}}
	template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	for _, role := range l.Roles {
		u, err := url.Parse(identity.URI(l.Cluster, role, l.Name))
		if err != nil {
			return identity.Files{}, fmt.Errorf("authority: %w", err)
		}
		template.URIs = append(template.URIs, u)
	}
	if _, err := identity.FromCertificate(template); err != nil && len(l.Roles) > 0 {
		return identity.Files{}, fmt.Errorf("authority: %w", err)
	}
	if len(l.Hosts) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, h := range l.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return identity.Files{}, fmt.Errorf("authority: %w", err)
	}
	if err := a.write(l.File, der, key); err != nil {
		return identity.Files{}, err
	}
	return a.Files(l.File), nil
}

// Files returns where the files of a leaf are.
func (a *Authority) Files(file string) identity.Files {
	return identity.Files{
		TLSCert: filepath.Join(a.dir, file+".pem"), TLSKey: filepath.Join(a.dir, file+".key"), TLSCA: a.CertPath(),
	}
}

// template has what all certificates have: a number, a time and a new key.
func template(valid time.Duration) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("authority: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, fmt.Errorf("authority: %w", err)
	}
	now := time.Now()
	begin, end := now.Add(-skew), now.Add(valid)
	if end.Before(begin) {
		begin = end.Add(-time.Hour)
	}
	return &x509.Certificate{SerialNumber: serial, NotBefore: begin, NotAfter: end}, key, nil
}

// write writes a certificate and its key: the key first, so that a process that reads both in between has
// two that do not fit, and waits.
func (a *Authority) write(file string, der []byte, key *ecdsa.PrivateKey) error {
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("authority: %w", err)
	}
	if err := replace(filepath.Join(a.dir, file+".key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		return err
	}
	return replace(filepath.Join(a.dir, file+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

func replace(path string, content []byte, mode fs.FileMode) error {
	temporary := path + ".new"
	if err := os.WriteFile(temporary, content, mode); err != nil {
		return fmt.Errorf("authority: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("authority: %w", err)
	}
	return nil
}
