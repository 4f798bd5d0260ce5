package identity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
)

const (
	// pollEvery is how often the files are read: three small ones from the page cache. The time until new
	// ones count is twice that for files that are not replaced in one step.
	pollEvery = time.Second
	// maxFileBytes bounds what is read of a file: hundreds of certificates.
	maxFileBytes = 1 << 20
)

// Source is a certificate, its key and the authorities, as the files have them now. It is safe for
// concurrent use.
type Source struct {
	files Files
	log   *slog.Logger
	every time.Duration

	current  atomic.Pointer[material]
	reloads  atomic.Int64 // files that count from then on
	failures atomic.Int64 // files that could not be used
	refusals refusals
	places   places

	mu       sync.Mutex
	seen     [sha256.Size]byte // guarded by mu; of the files that were read last
	reported bool              // guarded by mu; that they can't be used was said
	problem  string            // guarded by mu; empty while the files are those in use
}

// material is what one state of the files gives.
type material struct {
	digest         [sha256.Size]byte
	identity       Identity
	expires        time.Time
	cert           tls.Certificate
	pool           *x509.CertPool
	server, client credentials.TransportCredentials
	ops            *tls.Config
}

// Open reads the files. The errors say which file, and what to do.
func Open(files Files, log *slog.Logger) (*Source, error) {
	content, err := read(files)
	if err != nil {
		return nil, err
	}
	m, err := parse(content, time.Now())
	if err != nil {
		return nil, err
	}
	s := &Source{files: files, log: log, every: pollEvery, seen: m.digest}
	s.places.limit.Store(maxConnections)
	s.current.Store(m)
	return s, nil
}

// Identity returns who this process is.
func (s *Source) Identity() Identity { return s.current.Load().identity }

// Expires returns when the certificate in use, or one between it and its authority, is over.
func (s *Source) Expires() time.Time { return s.current.Load().expires }

// Problem says why the files, as they are now, are not used, or that what is used is over; empty if
// all is well.
func (s *Source) Problem() string {
	s.mu.Lock()
	problem := s.problem
	s.mu.Unlock()
	if problem == "" && time.Now().After(s.Expires()) {
		return fmt.Sprintf("the certificate in PAIRDB_TLS_CERT is over since %s: put a new one into the file", s.Expires().UTC().Format(time.RFC3339))
	}
	return problem
}

// Run reads the files again and again until ctx ends.
func (s *Source) Run(ctx context.Context) {
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.poll()
		case <-ctx.Done():
			return
		}
	}
}

// poll looks at the files once. Files that can't be used are an error only when they are the same twice:
// those that are replaced one after another do not fit for a moment.
func (s *Source) poll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	content, err := read(s.files)
	digest := content.digest()
	if err == nil && digest == s.current.Load().digest {
		s.seen, s.reported, s.problem = digest, false, ""
		return
	}
	var next *material
	if err == nil {
		next, err = parse(content, time.Now())
	}
	if err == nil {
		if was := s.current.Load().identity; was.Cluster != next.identity.Cluster || was.Roles != next.identity.Roles {
			err = fmt.Errorf("PAIRDB_TLS_CERT: the new certificate is of %s, this process is %s: restart it to make it another", next.identity, was)
		}
	}
	if err == nil {
		s.current.Store(next)
		s.seen, s.reported, s.problem = digest, false, ""
		s.reloads.Add(1)
		s.log.Info("new certificate in use", "identity", next.identity.String(), "expires", next.expires.UTC())
		return
	}
	if digest != s.seen {
		s.seen, s.reported = digest, false
		return
	}
	if !s.reported {
		s.reported, s.problem = true, err.Error()+"; the certificate before stays in use"
		s.failures.Add(1)
		s.log.Error("new certificate can't be used, the one before stays", "error", err)
	}
}

// content is what is in the files.
type content struct{ cert, key, ca []byte }

func (c content) digest() [sha256.Size]byte {
	h := sha256.New()
	for _, b := range [][]byte{c.cert, c.key, c.ca} {
		fmt.Fprintf(h, "%d:", len(b))
		h.Write(b)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func read(files Files) (content, error) {
	var c content
	var errs []error
	for _, f := range []struct {
		key, path string
		into      *[]byte
	}{
		{"PAIRDB_TLS_CERT", files.TLSCert, &c.cert}, {"PAIRDB_TLS_KEY", files.TLSKey, &c.key}, {"PAIRDB_TLS_CA", files.TLSCA, &c.ca},
	} {
		b, err := readFile(f.path)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.key, err))
		}
		*f.into = b
	}
	return c, errors.Join(errs...)
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	b, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err == nil && len(b) > maxFileBytes {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxFileBytes)
	}
	return b, err
}

// parse makes of the files what connections need. Nothing of a key gets into an error.
func parse(c content, now time.Time) (*material, error) {
	if len(bytes.TrimSpace(c.cert)) == 0 || len(bytes.TrimSpace(c.key)) == 0 {
		return nil, errors.New("PAIRDB_TLS_CERT or PAIRDB_TLS_KEY is an empty file")
	}
	cert, err := tls.X509KeyPair(c.cert, c.key)
	if err != nil {
		return nil, fmt.Errorf("PAIRDB_TLS_CERT and PAIRDB_TLS_KEY are not a certificate and its key: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(c.ca) {
		return nil, errors.New("PAIRDB_TLS_CA has no certificate (PEM)")
	}
	id, err := FromCertificate(cert.Leaf)
	if err != nil {
		return nil, fmt.Errorf("PAIRDB_TLS_CERT: %w", err)
	}
	m := &material{digest: c.digest(), identity: id, cert: cert, pool: pool, expires: cert.Leaf.NotAfter}
	between := x509.NewCertPool()
	for _, der := range cert.Certificate[1:] {
		b, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("PAIRDB_TLS_CERT: %w", err)
		}
		between.AddCert(b)
		if b.NotAfter.Before(m.expires) {
			m.expires = b.NotAfter
		}
	}
	// What others would refuse is to be noticed here, and not by them.
	usages := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if id.Roles&Node != 0 {
		usages = append(usages, x509.ExtKeyUsageServerAuth)
	}
	for _, u := range usages {
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{u}}); err != nil {
			return nil, fmt.Errorf("PAIRDB_TLS_CERT is not valid with the authorities in PAIRDB_TLS_CA: %w", err)
		}
	}
	m.configure()
	return m, nil
}
