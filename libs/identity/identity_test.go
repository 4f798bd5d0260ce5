package identity_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/identity"
	"github.com/pairdb/pairdb/libs/identity/authority"
	"github.com/pairdb/pairdb/libs/service"
)

// buffer is a log that a test reads while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *buffer) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *buffer) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// world is an authority and a node that has a certificate of it.
type world struct {
	t    *testing.T
	dir  string
	a    *authority.Authority
	node *identity.Source
	log  *buffer
	addr string
}

var table = identity.Table{
	healthv1.Health_Check_FullMethodName: identity.Client,
	healthv1.Health_Watch_FullMethodName: identity.Operator,
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), log: &buffer{}}
	var err error
	w.a, err = authority.Open(w.dir)
	require.NoError(t, err)
	w.node, err = identity.Open(w.issue(w.a, nodeLeaf), slog.New(slog.NewTextHandler(w.log, nil)))
	require.NoError(t, err)
	s := grpc.NewServer(w.node.ServerOptions(table)...)
	h := health.NewServer()
	healthv1.RegisterHealthServer(s, h)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	w.addr = l.Addr().String()
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); require.NoError(t, <-done) })
	return w
}

var nodeLeaf = authority.Leaf{Cluster: "c", Roles: []string{"node"}, Name: "n1", Hosts: []string{"127.0.0.1"}, Valid: time.Hour}

func (w *world) issue(a *authority.Authority, l authority.Leaf) identity.Files {
	w.t.Helper()
	files, err := a.Issue(l)
	require.NoError(w.t, err)
	return files
}

// client returns a source with the certificate of a role.
func (w *world) client(a *authority.Authority, l authority.Leaf) *identity.Source {
	w.t.Helper()
	s, err := identity.Open(w.issue(a, l), slog.New(slog.DiscardHandler))
	require.NoError(w.t, err)
	return s
}

func (w *world) check(o grpc.DialOption) error {
	w.t.Helper()
	conn, err := grpc.NewClient(w.addr, o)
	require.NoError(w.t, err)
	defer conn.Close() //nolint:errcheck // a test's
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	_, err = healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
	return err
}

func TestWhoIsInTheTableMayCallWhatItSays(t *testing.T) {
	// The whole point: a certificate opens what its role may, and no more.
	w := newWorld(t)
	client := w.client(w.a, authority.Leaf{Cluster: "c", Roles: []string{"client"}, Name: "shop", Valid: time.Hour})
	require.Equal(t, identity.Identity{Cluster: "c", Roles: identity.Client, Name: "shop"}, client.Identity())
	require.NoError(t, w.check(client.DialOption()))

	monitor := w.client(w.a, authority.Leaf{Cluster: "c", Roles: []string{"monitor"}, Name: "m", Valid: time.Hour})
	err := w.check(monitor.DialOption())
	require.Equal(t, codes.PermissionDenied, status.Code(err))
	require.ErrorContains(t, err, "the certificate is that of c/monitor/m, needed is client")
	require.Contains(t, w.log.String(), `audit=refused method=/grpc.health.v1.Health/Check who=c/monitor/m from=127.0.0.1:`)

	both := w.client(w.a, authority.Leaf{File: "both", Cluster: "c", Roles: []string{"monitor", "client"}, Valid: time.Hour})
	require.NoError(t, w.check(both.DialOption()))
}

func TestRefusedConnections(t *testing.T) {
	// Each of these must fail closed, and say why.
	w := newWorld(t)
	foreign, err := authority.Open(t.TempDir())
	require.NoError(t, err)
	t.Run("plain", func(t *testing.T) {
		require.Equal(t, codes.Unavailable, status.Code(w.check((*identity.Source)(nil).DialOption())))
	})
	t.Run("another authority", func(t *testing.T) {
		stranger := w.issue(foreign, authority.Leaf{Cluster: "c", Roles: []string{"client"}, Valid: time.Hour})
		require.Equal(t, codes.Unavailable, status.Code(w.checkRaw(stranger, tls.VersionTLS13)))
		_, err := identity.Open(identity.Files{TLSCert: stranger.TLSCert, TLSKey: stranger.TLSKey, TLSCA: w.a.CertPath()}, slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, "PAIRDB_TLS_CERT is not valid with the authorities in PAIRDB_TLS_CA")
	})
	t.Run("over", func(t *testing.T) {
		over := w.issue(w.a, authority.Leaf{File: "over", Cluster: "c", Roles: []string{"client"}, Valid: -time.Minute})
		require.Equal(t, codes.Unavailable, status.Code(w.checkRaw(over, tls.VersionTLS13)))
		_, err := identity.Open(over, slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, "expired")
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		good := w.issue(w.a, authority.Leaf{File: "good", Cluster: "c", Roles: []string{"client"}, Valid: time.Hour})
		require.NoError(t, w.checkRaw(good, tls.VersionTLS13))
		require.ErrorContains(t, w.checkRaw(good, tls.VersionTLS12), "protocol version")
	})
	t.Run("no certificate", func(t *testing.T) {
		require.Equal(t, codes.Unavailable, status.Code(w.checkRaw(identity.Files{}, tls.VersionTLS13)), "not even a connection")
	})
	t.Run("another cluster", func(t *testing.T) {
		other := w.issue(w.a, authority.Leaf{File: "other", Cluster: "d", Roles: []string{"client"}, Valid: time.Hour})
		err := w.checkRaw(other, tls.VersionTLS13)
		require.Equal(t, codes.PermissionDenied, status.Code(err))
		require.ErrorContains(t, err, "the certificate is of the cluster d, this is c")
	})
	require.Contains(t, w.log.String(), "audit=handshake")
	require.NotContains(t, w.log.String(), "BEGIN")
	registry := prometheus.NewRegistry()
	registry.MustRegister(identity.NewCollector(w.node, nil))
	require.GreaterOrEqual(t, metric(t, registry, "pairdb_tls_refusals_total", "handshake"), 5.0)
	require.Equal(t, 1.0, metric(t, registry, "pairdb_tls_refusals_total", "call"))
}

// checkRaw calls with a client that trusts the node and shows a certificate, whatever it is worth.
func (w *world) checkRaw(files identity.Files, version uint16) error {
	w.t.Helper()
	ca, err := os.ReadFile(w.a.CertPath())
	require.NoError(w.t, err)
	pool := x509.NewCertPool()
	require.True(w.t, pool.AppendCertsFromPEM(ca))
	cfg := &tls.Config{RootCAs: pool, MinVersion: version, MaxVersion: version, NextProtos: []string{"h2"}, ServerName: "127.0.0.1"}
	if files.Enabled() {
		cert, err := tls.LoadX509KeyPair(files.TLSCert, files.TLSKey)
		require.NoError(w.t, err)
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	}
	return w.check(grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
}

func TestMethodWithoutARowIsRefusedToEverybody(t *testing.T) {
	// What somebody serves and forgets to give to a role must be open to nobody, and not to everybody.
	w := newWorld(t)
	all := authority.Leaf{File: "all", Cluster: "c", Roles: identity.RoleNames(), Hosts: []string{"127.0.0.1"}, Valid: time.Hour}
	conn, err := grpc.NewClient(w.addr, w.client(w.a, all).DialOption())
	require.NoError(t, err)
	defer conn.Close() //nolint:errcheck // a test's
	require.NotContains(t, table, healthv1.Health_List_FullMethodName)
	_, err = healthv1.NewHealthClient(conn).List(t.Context(), &healthv1.HealthListRequest{})
	require.Equal(t, codes.Unimplemented, status.Code(err), "%v", err)
	require.ErrorContains(t, err, "unknown method /grpc.health.v1.Health/List")
}

func TestSessionsAreNotResumed(t *testing.T) {
	// A session that is resumed is one whose certificate nobody looks at again: it could be over by then.
	w := newWorld(t)
	files := w.issue(w.a, authority.Leaf{Cluster: "c", Roles: []string{"client"}, Valid: time.Hour})
	pair, err := tls.LoadX509KeyPair(files.TLSCert, files.TLSKey)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	ca, err := os.ReadFile(w.a.CertPath())
	require.NoError(t, err)
	require.True(t, pool.AppendCertsFromPEM(ca))
	ops, err := tls.Listen("tcp", "127.0.0.1:0", w.node.OpsConfig())
	require.NoError(t, err)
	defer ops.Close() //nolint:errcheck // a test's
	go func() {
		for {
			c, err := ops.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("x")) // what follows a handshake brings the ticket
			_ = c.Close()
		}
	}()
	for name, addr := range map[string]string{"requests": w.addr, "operations": ops.Addr().String()} {
		cfg := &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, ServerName: "127.0.0.1", ClientSessionCache: tls.NewLRUClientSessionCache(8)}
		if name == "requests" {
			cfg.NextProtos = []string{"h2"}
		}
		for range 2 {
			c, err := tls.Dial("tcp", addr, cfg)
			require.NoError(t, err, name)
			_, err = c.Read(make([]byte, 1))
			require.NoError(t, err, name)
			require.NoError(t, c.Close()) // or the server waits for more
			require.False(t, c.ConnectionState().DidResume, name)
		}
	}
}

func TestWhoMayWatch(t *testing.T) {
	// Metrics name tenants, paths and members: they are for those who look after the cluster.
	w := newWorld(t)
	seen := func(l authority.Leaf) *tls.ConnectionState {
		l.File, l.Valid = strings.Join(append(l.Roles, l.Cluster), "-"), time.Hour
		files := w.issue(w.a, l)
		pair, err := tls.LoadX509KeyPair(files.TLSCert, files.TLSKey)
		require.NoError(t, err)
		return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{pair.Leaf}}
	}
	for _, role := range identity.RoleNames() {
		err := w.node.MayWatch(seen(authority.Leaf{Cluster: "c", Roles: []string{role}, Hosts: []string{"127.0.0.1"}}))
		if role == "client" || role == "coordinator" {
			require.ErrorIs(t, err, identity.ErrRefused, role)
		} else {
			require.NoError(t, err, role)
		}
	}
	require.ErrorIs(t, w.node.MayWatch(seen(authority.Leaf{Cluster: "d", Roles: []string{"monitor"}})), identity.ErrRefused)
	require.ErrorIs(t, w.node.MayWatch(seen(authority.Leaf{Cluster: "c", Hosts: []string{"127.0.0.1"}})), identity.ErrNoIdentity)
	for _, nobody := range []*tls.ConnectionState{nil, {}} {
		require.ErrorContains(t, w.node.MayWatch(nobody), "a certificate is needed")
	}
}

func TestConnectionsAreMadeToNodesOfTheClusterOnly(t *testing.T) {
	// An application's certificate must not serve as a node's, nor a node of another cluster take our data.
	for name, c := range map[string]struct {
		leaf authority.Leaf
		says string
	}{
		"client":          {authority.Leaf{Cluster: "c", Roles: []string{"client"}, Hosts: []string{"127.0.0.1"}}, "the server is no node"},
		"another cluster": {authority.Leaf{Cluster: "d", Roles: []string{"node"}, Hosts: []string{"127.0.0.1"}}, "the server is of the cluster d"},
		"another host":    {authority.Leaf{Cluster: "c", Roles: []string{"node"}, Hosts: []string{"127.0.0.2"}}, "127.0.0.1"},
		"no server":       {authority.Leaf{Cluster: "c", Roles: []string{"client"}}, "certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c.leaf.File, c.leaf.Valid = "server", time.Hour
			server := w.client(w.a, c.leaf)
			s := grpc.NewServer(server.ServerOptions(table)...)
			healthv1.RegisterHealthServer(s, health.NewServer())
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			w.addr = l.Addr().String()
			done := make(chan error, 1)
			go func() { done <- s.Serve(l) }()
			defer func() { s.Stop(); require.NoError(t, <-done) }()
			err = w.check(w.node.DialOption())
			require.Equal(t, codes.Unavailable, status.Code(err))
			require.ErrorContains(t, err, c.says)
		})
	}
}

func TestAuthorityOfClientsIsNotThatOfServers(t *testing.T) {
	a, err := authority.Open(t.TempDir())
	require.NoError(t, err)
	files, err := a.Issue(authority.Leaf{Cluster: "c", Roles: []string{"client"}, Valid: time.Hour})
	require.NoError(t, err)
	again, err := authority.Open(filepath.Dir(files.TLSCA))
	require.NoError(t, err, "the authority is kept")
	_, err = again.Issue(authority.Leaf{Cluster: "c", Roles: []string{"queen"}, Valid: time.Hour})
	require.ErrorIs(t, err, identity.ErrNoIdentity)
	info, err := os.Stat(files.TLSKey)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}

func TestURIs(t *testing.T) {
	// What can be read in two ways gives no right.
	parse := func(uris ...string) (identity.Identity, error) {
		c := &x509.Certificate{}
		for _, s := range uris {
			u, err := url.Parse(s)
			require.NoError(t, err)
			c.URIs = append(c.URIs, u)
		}
		return identity.FromCertificate(c)
	}
	id, err := parse("spiffe://x/y", "pairdb://c/client/shop", "pairdb://c/monitor")
	require.NoError(t, err)
	require.Equal(t, identity.Identity{Cluster: "c", Roles: identity.Client | identity.Monitor, Name: "shop"}, id)
	require.Equal(t, "c/client+monitor/shop", id.String())
	for _, bad := range [][]string{
		nil, {"spiffe://c/client"}, {"pairdb://c"}, {"pairdb://c/"}, {"pairdb://c/queen"}, {"pairdb:///client"}, {"pairdb://c/client/"},
		{"pairdb://c/client/a/b"}, {"pairdb://c/client?x"}, {"pairdb://c/client#x"}, {"pairdb://u@c/client"}, {"pairdb://c:1/client"},
		{"pairdb://c/client", "pairdb://d/client"}, {"pairdb://c/client/a%2Fb"}, {"pairdb:c/client"}, {"pairdb://c//client"},
		{"pairdb://" + strings.Repeat("c", 101) + "/client"},
		{"a://x", "a://x", "a://x", "a://x", "a://x", "a://x", "a://x", "a://x", "pairdb://c/client"},
	} {
		_, err := parse(bad...)
		require.ErrorIs(t, err, identity.ErrNoIdentity, "%q", bad)
	}
}

func TestAllFilesOrNone(t *testing.T) {
	// A node that was meant to encrypt and has a typing error must not serve in the clear.
	for bits := range 8 {
		var f identity.Files
		for i, into := range []*string{&f.TLSCert, &f.TLSKey, &f.TLSCA} {
			if bits&(1<<i) != 0 {
				*into = "x"
			}
		}
		var p service.Problems
		f.CheckTLS(&p)
		if bits == 0 || bits == 7 {
			require.NoError(t, p.Err())
		} else {
			require.ErrorContains(t, p.Err(), "set all three, or none", "%03b", bits)
		}
	}
}

func TestFilesThatCanNotBeUsedAreNamed(t *testing.T) {
	w := newWorld(t)
	good := w.issue(w.a, nodeLeaf)
	other := w.issue(w.a, authority.Leaf{Cluster: "c", Roles: []string{"client"}, Valid: time.Hour})
	empty := filepath.Join(t.TempDir(), "empty")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	large := filepath.Join(t.TempDir(), "large")
	require.NoError(t, os.WriteFile(large, make([]byte, 1<<20+1), 0o600))
	for says, change := range map[string]func(f *identity.Files){
		"PAIRDB_TLS_CERT: open":                      func(f *identity.Files) { f.TLSCert = filepath.Join(w.dir, "missing") },
		"PAIRDB_TLS_KEY: open":                       func(f *identity.Files) { f.TLSKey = filepath.Join(w.dir, "missing") },
		"PAIRDB_TLS_CA: open":                        func(f *identity.Files) { f.TLSCA = filepath.Join(w.dir, "missing") },
		"PAIRDB_TLS_CA has no certificate":           func(f *identity.Files) { f.TLSCA = empty },
		"is an empty file":                           func(f *identity.Files) { f.TLSKey = empty },
		"are not a certificate and its key":          func(f *identity.Files) { f.TLSKey = other.TLSKey },
		fmt.Sprintf("has more than %d bytes", 1<<20): func(f *identity.Files) { f.TLSCA = large },
	} {
		f := good
		change(&f)
		_, err := identity.Open(f, slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, says)
	}
}

func TestLoopback(t *testing.T) {
	for addr, want := range map[string]bool{
		"127.0.0.1:8080": true, "localhost:1": true, "[::1]:1": true, ":8080": false, "0.0.0.0:1": false, "10.0.0.1:1": false, "x": false, "example.org:1": false,
	} {
		require.Equal(t, want, identity.IsLoopback(addr), addr)
	}
}

// rotating is a node whose files are in a directory as Kubernetes mounts it: what is named is a link into
// ..data, which is a link to a directory that is swapped.
type rotating struct {
	*world
	mount string
	n     int
	files identity.Files
}

func newRotating(t *testing.T) *rotating {
	t.Helper()
	w := newWorld(t)
	r := &rotating{world: w, mount: t.TempDir()}
	at := func(name string) string { return filepath.Join(r.mount, name) }
	r.files = identity.Files{TLSCert: at("tls.crt"), TLSKey: at("tls.key"), TLSCA: at("ca.crt")}
	for _, name := range []string{"tls.crt", "tls.key", "ca.crt"} {
		require.NoError(t, os.Symlink(filepath.Join("..data", name), at(name)))
	}
	return r
}

// swap puts files into the mount in one step, as the kubelet does. ca is what is in ca.crt.
func (r *rotating) swap(f identity.Files, ca []byte) {
	r.t.Helper()
	r.n++
	dir := filepath.Join(r.mount, fmt.Sprintf("..%d", r.n))
	require.NoError(r.t, os.Mkdir(dir, 0o700))
	write := func(name string, b []byte) {
		require.NoError(r.t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	cert, err := os.ReadFile(f.TLSCert)
	require.NoError(r.t, err)
	key, err := os.ReadFile(f.TLSKey)
	require.NoError(r.t, err)
	write("tls.crt", cert)
	write("tls.key", key)
	write("ca.crt", ca)
	link := filepath.Join(r.mount, "..data_tmp")
	require.NoError(r.t, os.Symlink(filepath.Base(dir), link))
	require.NoError(r.t, os.Rename(link, filepath.Join(r.mount, "..data")))
}

func (r *rotating) ca(all ...*authority.Authority) []byte {
	r.t.Helper()
	var out []byte
	for _, a := range all {
		b, err := os.ReadFile(a.CertPath())
		require.NoError(r.t, err)
		out = append(out, b...)
	}
	return out
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	require.Eventually(t, f, 20*time.Second, 5*time.Millisecond, what)
}

func TestCertificateAndAuthorityAreReplacedWithoutAFailedCall(t *testing.T) {
	// A certificate that needs a restart is one that is over some night. New authorities come first, then
	// certificates of them, then the old ones go.
	r := newRotating(t)
	second, err := authority.Open(t.TempDir())
	require.NoError(t, err)
	r.swap(r.issue(r.a, nodeLeaf), r.ca(r.a))
	node, err := identity.Open(r.files, slog.New(slog.NewTextHandler(r.log, nil)))
	require.NoError(t, err)
	node.PollEvery(5 * time.Millisecond)
	registry := prometheus.NewRegistry()
	registry.MustRegister(identity.NewCollector(node, nil))
	reloaded := func() float64 { return metric(t, registry, "pairdb_tls_certificate_reloads_total", "ok") }

	ctx, cancel := context.WithCancel(t.Context())
	s := grpc.NewServer(node.ServerOptions(table)...)
	healthv1.RegisterHealthServer(s, health.NewServer())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	r.addr = l.Addr().String()
	var all sync.WaitGroup
	all.Go(func() { node.Run(ctx) })
	all.Go(func() { _ = s.Serve(l) })
	defer all.Wait()
	defer s.Stop()
	defer cancel()

	// A client that trusts both, and makes a connection for each call, and one that keeps its own.
	leaf := r.issue(r.a, authority.Leaf{Cluster: "c", Roles: []string{"client"}, Valid: time.Hour})
	both := filepath.Join(t.TempDir(), "both.pem")
	require.NoError(t, os.WriteFile(both, r.ca(r.a, second), 0o600))
	leaf.TLSCA = both
	client, err := identity.Open(leaf, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	kept, err := grpc.NewClient(r.addr, client.DialOption())
	require.NoError(t, err)
	defer kept.Close() //nolint:errcheck // a test's
	var calls, failed atomic.Int64
	stop := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := r.check(client.DialOption()); err != nil {
				failed.Add(1)
				t.Log(err)
			}
			if _, err := healthv1.NewHealthClient(kept).Check(ctx, &healthv1.HealthCheckRequest{}); err != nil {
				failed.Add(1)
				t.Log(err)
			}
			calls.Add(2)
		}
	})
	after := func() { // the state after each step sees calls
		begun := calls.Load()
		eventually(t, "calls go on", func() bool { return calls.Load() > begun+20 })
	}
	after()
	r.swap(r.issue(r.a, nodeLeaf), r.ca(r.a, second))
	eventually(t, "the second authority is known", func() bool { return reloaded() == 1 })
	after()
	fresh := nodeLeaf
	fresh.Valid = 3 * time.Hour
	r.swap(r.issue(second, fresh), r.ca(r.a, second))
	eventually(t, "the certificate of the second authority is in use", func() bool { return reloaded() == 2 })
	require.Greater(t, time.Until(node.Expires()), 2*time.Hour)
	require.EqualValues(t, node.Expires().Unix(), metric(t, registry, "pairdb_tls_certificate_expiry_timestamp_seconds", ""))
	after()
	close(stop)
	load.Wait()
	require.Zero(t, failed.Load())

	r.swap(r.issue(second, fresh), r.ca(second))
	eventually(t, "the first authority is gone", func() bool { return reloaded() == 3 })
	require.Error(t, r.check(client.DialOption()), "a certificate of the authority that went is refused")
}

func TestBadFilesKeepTheCertificateBefore(t *testing.T) {
	// A wrong secret must not take a cluster down, nor go unnoticed.
	r := newRotating(t)
	other, err := authority.Open(t.TempDir())
	require.NoError(t, err)
	good := r.issue(r.a, nodeLeaf)
	r.swap(good, r.ca(r.a))
	node, err := identity.Open(r.files, slog.New(slog.NewTextHandler(r.log, nil)))
	require.NoError(t, err)
	registry := prometheus.NewRegistry()
	registry.MustRegister(identity.NewCollector(node, nil))
	failures := func() float64 { return metric(t, registry, "pairdb_tls_certificate_reloads_total", "failed") }
	expires := node.Expires()
	client := r.issue(r.a, authority.Leaf{File: "client", Cluster: "c", Roles: []string{"client"}, Valid: time.Hour})
	foreign := nodeLeaf
	foreign.File, foreign.Cluster = "foreign", "d"
	over := nodeLeaf
	over.File, over.Valid = "over", -time.Minute
	mixed := r.issue(r.a, authority.Leaf{File: "mixed", Cluster: "c", Roles: []string{"node"}, Hosts: []string{"127.0.0.1"}, Valid: time.Hour})
	mixed.TLSKey = client.TLSKey

	for i, bad := range []struct {
		files identity.Files
		ca    []byte
		says  string
	}{
		{good, []byte("nothing"), "PAIRDB_TLS_CA has no certificate"},
		{good, r.ca(other), "not valid with the authorities"},
		{mixed, r.ca(r.a), "not a certificate and its key"},
		{client, r.ca(r.a), "restart it to make it another"},
		{r.issue(r.a, foreign), r.ca(r.a), "restart it to make it another"},
		{r.issue(r.a, over), r.ca(r.a), "expired"},
	} {
		r.swap(bad.files, bad.ca)
		node.Poll()
		require.Equal(t, float64(i), failures(), "once may be the moment between two files")
		node.Poll()
		node.Poll()
		require.Equal(t, float64(i+1), failures(), "counted once")
		require.Contains(t, node.Problem(), bad.says)
		require.Equal(t, "certificate", node.Degraded()[0].Name)
		require.Equal(t, expires, node.Expires())
	}
	require.NoError(t, os.Remove(filepath.Join(r.mount, "..data")))
	node.Poll()
	node.Poll()
	require.Contains(t, node.Problem(), "no such file")
	require.Contains(t, r.log.String(), "new certificate can't be used, the one before stays")
	require.NotContains(t, r.log.String(), "PRIVATE KEY")

	r.swap(good, r.ca(r.a))
	node.Poll()
	require.Empty(t, node.Problem(), "the files in use are back")
	require.Empty(t, node.Degraded())
}

// metric returns the value of a series with one label.
func metric(t *testing.T, r *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := r.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (label == "" || m.GetLabel()[0].GetValue() == label) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no %s of %s", name, label)
	return 0
}

func TestStrangersThatConnectAndWaitKeepNobodyOut(t *testing.T) {
	// A flood of handshakes takes half of the places at most; who is connected stays so, and the places
	// come back.
	w := newWorld(t)
	w.node.LimitConnections(4)
	files := w.issue(w.a, authority.Leaf{Cluster: "c", Roles: []string{"client"}, Valid: time.Hour})
	client, err := identity.Open(files, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	kept, err := grpc.NewClient(w.addr, client.DialOption())
	require.NoError(t, err)
	defer kept.Close() //nolint:errcheck // a test's
	ask := func() error {
		_, err := healthv1.NewHealthClient(kept).Check(t.Context(), &healthv1.HealthCheckRequest{})
		return err
	}
	require.NoError(t, ask())
	var waiting []net.Conn
	for range 3 {
		c, err := net.Dial("tcp", w.addr)
		require.NoError(t, err)
		defer c.Close() //nolint:errcheck // a test's
		waiting = append(waiting, c)
	}
	eventually(t, "the third is turned away", func() bool {
		return strings.Contains(w.log.String(), "too many connections")
	})
	require.NoError(t, ask())
	require.ErrorContains(t, w.check(client.DialOption()), "Unavailable")
	for _, c := range waiting {
		require.NoError(t, c.Close())
	}
	eventually(t, "the places are free again", func() bool { return w.check(client.DialOption()) == nil })
	for range 8 { // each gives its place back
		require.NoError(t, w.check(client.DialOption()))
	}
}
