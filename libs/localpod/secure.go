package localpod

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/pairdb/pairdb/libs/identity"
	"github.com/pairdb/pairdb/libs/identity/authority"
)

const (
	// certificateValid is how long the certificates of local pods are good for; each start makes new ones.
	certificateValid = 365 * 24 * time.Hour
	// maxSecurePods bounds the pods that NATS knows.
	maxSecurePods = 32
	// gossipKeyBytes is AES-256.
	gossipKeyBytes = 32
)

// Files of TLSDir, beside those that package authority makes: ROLE.pem and ROLE.key, admin.pem and
// admin.key of an operator who is a client as well.
const (
	gossipKeysFile   = "gossip.keys"
	natsOperatorFile = "nats-operator.nk"
)

// security is what the processes of secure pods have in common.
type security struct {
	dir, cluster string
	authority    *authority.Authority
	http         *http.Client
	natsUsers    []*server.NkeyUser
	natsTLS      *tls.Config
}

// TLSDir is where certificates and keys of secure pods are.
func (p *Pods) TLSDir() string { return filepath.Join(p.options.Dir, "tls") }

// Files returns the certificate of a role, or "admin": an operator who is a client as well. It is empty if
// the pods are not secure.
func (p *Pods) Files(role string) identity.Files {
	if p.security == nil {
		return identity.Files{}
	}
	return p.security.authority.Files(role)
}

// Authority returns what signed the certificates; nil if the pods are not secure.
func (p *Pods) Authority() *authority.Authority {
	if p.security == nil {
		return nil
	}
	return p.security.authority
}

// NATSOperator returns the file with the credentials of an operator at NATS.
func (p *Pods) NATSOperator() string { return filepath.Join(p.TLSDir(), natsOperatorFile) }

// secure makes what secure pods need, or takes what the last start has left.
func (p *Pods) secure() error {
	s := &security{dir: p.TLSDir(), cluster: "pairdb"}
	for _, kv := range p.options.Env {
		if cluster, ok := strings.CutPrefix(kv, "PAIRDB_CLUSTER_ID="); ok {
			s.cluster = cluster
		}
	}
	var err error
	if s.authority, err = authority.Open(s.dir); err != nil {
		return err
	}
	for _, l := range []authority.Leaf{
		{Roles: []string{"client"}}, {Roles: []string{"coordinator"}}, {Roles: []string{"operator"}}, {Roles: []string{"monitor"}},
		{File: "admin", Roles: []string{"operator", "client"}},
		{File: "nats", Hosts: hosts(p.options.NATSHost)},
	} {
		if _, err := s.issue(l); err != nil {
			return err
		}
	}
	if err := s.gossipKeys(); err != nil {
		return err
	}
	if err := s.nats(); err != nil {
		return err
	}
	pool, err := s.pool()
	if err != nil {
		return err
	}
	s.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}}}
	p.security = s
	return nil
}

// hosts are the names of a server that listens on host.
func hosts(host string) []string {
	if host == "127.0.0.1" {
		return []string{host, "localhost"}
	}
	return []string{host}
}

func (s *security) issue(l authority.Leaf) (identity.Files, error) {
	l.Cluster, l.Valid = s.cluster, certificateValid
	return s.authority.Issue(l)
}

func (s *security) pool() (*x509.CertPool, error) {
	b, err := os.ReadFile(s.authority.CertPath())
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(b)
	return pool, nil
}

// env is what a pod's processes get.
func (s *security) env(pod *Pod) ([]string, error) {
	host, _, err := net.SplitHostPort(pod.Addr)
	if err != nil {
		return nil, err
	}
	files, err := s.issue(authority.Leaf{File: pod.Name, Roles: []string{"node"}, Name: pod.Name, Hosts: hosts(host)})
	if err != nil {
		return nil, err
	}
	return []string{
		"PAIRDB_TLS_CERT=" + files.TLSCert, "PAIRDB_TLS_KEY=" + files.TLSKey, "PAIRDB_TLS_CA=" + files.TLSCA,
		"PAIRDB_GOSSIP_KEYRING=" + filepath.Join(s.dir, gossipKeysFile),
		"PAIRDB_NATS_CA=" + files.TLSCA, "PAIRDB_NATS_CREDENTIALS=" + s.natsSeed(pod.Name),
	}, nil
}

// once writes a file that is not there yet.
func once(path string, content func() ([]byte, error)) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	b, err := content()
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

func (s *security) gossipKeys() error {
	return once(filepath.Join(s.dir, gossipKeysFile), func() ([]byte, error) {
		key := make([]byte, gossipKeyBytes)
		_, err := rand.Read(key)
		return []byte(base64.StdEncoding.EncodeToString(key) + "\n"), err
	})
}

func (s *security) natsSeed(name string) string { return filepath.Join(s.dir, "nats-"+name+".nk") }

// nats makes the users of NATS: those of docs/EVENTS.md, one for each pod and an operator.
func (s *security) nats() error {
	files := s.authority.Files("nats")
	cert, err := tls.LoadX509KeyPair(files.TLSCert, files.TLSKey)
	if err != nil {
		return err
	}
	s.natsTLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
	add := func(path string, publish, subscribe []string) error {
		err := once(path, func() ([]byte, error) {
			user, err := nkeys.CreateUser()
			if err != nil {
				return nil, err
			}
			return user.Seed()
		})
		if err != nil {
			return err
		}
		seed, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		key, err := nkeys.FromSeed(seed)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		public, err := key.PublicKey()
		if err != nil {
			return err
		}
		s.natsUsers = append(s.natsUsers, &server.NkeyUser{Nkey: public, Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Allow: publish}, Subscribe: &server.SubjectPermission{Allow: subscribe},
		}})
		return nil
	}
	for i := range maxSecurePods {
		name := "node-" + strconv.Itoa(i)
		err := add(s.natsSeed(name),
			[]string{"pairdb." + s.cluster + ".event." + name + ".>", "_INBOX.>", "$JS.API.STREAM.INFO.PAIRDB_EVENTS", "$JS.API.STREAM.CREATE.PAIRDB_EVENTS"},
			[]string{"pairdb." + s.cluster + ".cmd." + name + ".>", "$SRV.>", "_INBOX.>"})
		if err != nil {
			return err
		}
	}
	return add(filepath.Join(s.dir, natsOperatorFile),
		[]string{"pairdb." + s.cluster + ".cmd.>", "$SRV.>", "$JS.API.>"},
		[]string{"pairdb." + s.cluster + ".event.>", "_INBOX.>"})
}
