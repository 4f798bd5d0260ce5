// Package security attacks a pod whose TCP ports ask for certificates, as somebody who reaches them from
// another machine. It never looks into a process: what is refused, and what a log says, is all it sees.
package security

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/identity"
	"github.com/pairdb/pairdb/libs/identity/authority"
	"github.com/pairdb/pairdb/libs/localpod"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// noRepeats has a client say at once what it was told.
var noRepeats = client.Options{RetryFor: -1, Timeout: 10 * time.Second}

// as returns a client of a pod with a certificate; without files it speaks plaintext.
func as(t *testing.T, addr string, files identity.Files) *client.Client {
	t.Helper()
	o := noRepeats
	if files.Enabled() {
		var err error
		o.TLS, err = client.TLSFromFiles(files.TLSCert, files.TLSKey, files.TLSCA)
		require.NoError(t, err)
	}
	return podtest.Client(t, addr, o)
}

// issue makes a certificate of an authority.
func issue(t *testing.T, a *authority.Authority, l authority.Leaf) identity.Files {
	t.Helper()
	if l.Valid == 0 {
		l.Valid = time.Hour
	}
	files, err := a.Issue(l)
	require.NoError(t, err)
	return files
}

func get(t *testing.T, c *client.Client) error {
	t.Helper()
	_, err := c.Get(t.Context(), "k")
	return err
}

func TestWhoHasNoGoodCertificateIsRefused(t *testing.T) {
	// Whoever reaches the port is somebody until it is shown who.
	pods, log := podtest.Start(t, localpod.Options{Secure: true})
	pod, ours := pods.All()[0], pods.Authority()
	good := as(t, pod.Addr, pods.Files("client"))
	_, err := good.Put(t.Context(), "k", []byte("v"))
	require.NoError(t, err)
	require.NoError(t, get(t, good))

	theirs, err := authority.Open(t.TempDir())
	require.NoError(t, err)
	trusting := func(f identity.Files) identity.Files { // they trust the node, which does not trust them
		f.TLSCA = pods.Files("client").TLSCA
		return f
	}
	for name, c := range map[string]struct {
		files identity.Files
		code  codes.Code
	}{
		"plaintext":       {identity.Files{}, codes.Unavailable},
		"wrong authority": {trusting(issue(t, theirs, authority.Leaf{Cluster: "pairdb", Roles: []string{"client"}})), codes.Unavailable},
		"over":            {issue(t, ours, authority.Leaf{File: "over", Cluster: "pairdb", Roles: []string{"client"}, Valid: -time.Minute}), codes.Unavailable},
		"wrong cluster":   {issue(t, ours, authority.Leaf{File: "other", Cluster: "other", Roles: []string{"client"}}), codes.PermissionDenied},
		"wrong role":      {pods.Files("monitor"), codes.PermissionDenied},
		"node reads data": {pods.Files("node-0"), codes.PermissionDenied},
		"no role":         {issue(t, ours, authority.Leaf{File: "none", Hosts: []string{"127.0.0.1"}}), codes.Unauthenticated}, // that of a server which is not ours
	} {
		err := get(t, as(t, pod.Addr, c.files))
		require.Equal(t, c.code, client.Code(err), "%s: %v", name, err)
	}
	_, err = good.Admin().Flush(t.Context(), &adminv1.FlushRequest{})
	require.Equal(t, codes.PermissionDenied, status.Code(err), "a client is no operator")
	_, err = as(t, pod.Addr, pods.Files("operator")).Admin().Flush(t.Context(), &adminv1.FlushRequest{})
	require.NoError(t, err)

	cfg, err := client.TLSFromFiles(pods.Files("client").TLSCert, pods.Files("client").TLSKey, pods.Files("client").TLSCA)
	require.NoError(t, err)
	cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	old := noRepeats
	old.TLS = cfg
	require.ErrorContains(t, get(t, podtest.Client(t, pod.Addr, old)), "protocol version")

	// The refusals are in the log with who it was; what it must not have is not.
	text := log.String()
	for _, want := range []string{"audit=handshake", "audit=refused", "method=/pairdb.storage.v1.StorageService/Read", "from=127.0.0.1:"} {
		require.Contains(t, text, want)
	}
	noSecrets(t, pods, text)
}

// noSecrets fails if a key of the pods is in a text.
func noSecrets(t *testing.T, pods *localpod.Pods, text string) {
	t.Helper()
	require.NotContains(t, text, "PRIVATE KEY")
	names, err := filepath.Glob(filepath.Join(pods.TLSDir(), "*"))
	require.NoError(t, err)
	looked := 0
	for _, name := range names {
		if ext := filepath.Ext(name); ext != ".key" && ext != ".keys" && ext != ".nk" {
			continue
		}
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		for line := range strings.Lines(string(b)) {
			if line = strings.TrimSpace(line); len(line) > 16 && !strings.HasPrefix(line, "-----") {
				looked++
				require.NotContains(t, text, line, "a line of %s", filepath.Base(name))
			}
		}
	}
	require.Greater(t, looked, 20)
}

func TestOperationsPortsTellStrangersOnlyWhetherAllIsWell(t *testing.T) {
	// The kubelet has no certificate and must get its answer; metrics name tenants, paths and members.
	pods, _ := podtest.Start(t, localpod.Options{Secure: true, Env: []string{"PAIRDB_OPS_PPROF=true"}})
	pod := pods.All()[0]
	ca, err := os.ReadFile(pods.Files("client").TLSCA)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(ca))
	ask := func(addr, path string, files identity.Files) (int, string) {
		cfg := &tls.Config{RootCAs: pool}
		if files.Enabled() {
			pair, err := tls.LoadX509KeyPair(files.TLSCert, files.TLSKey)
			require.NoError(t, err)
			cfg.Certificates = []tls.Certificate{pair}
		}
		h := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}, Timeout: 10 * time.Second}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, pod.OpsURL(addr)+path, nil)
		require.NoError(t, err)
		resp, err := h.Do(r)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(body)
	}
	for _, addr := range []string{pod.OpsAddr, pod.CompactorOpsAddr, pod.MigratorOpsAddr, pod.HealthOpsAddr} {
		require.Equal(t, "https://"+addr, pod.OpsURL(addr))
		podtest.Eventually(t, 20*time.Second, "it listens", func() bool {
			c, err := net.Dial("tcp", addr)
			return err == nil && c.Close() == nil
		})
		for _, path := range []string{"/health", "/health/live"} {
			code, body := ask(addr, path, identity.Files{})
			require.Equal(t, http.StatusOK, code, "%s", body)
			require.NotContains(t, body, "detail")
		}
		for _, path := range []string{"/metrics", "/debug/pprof/", "/debug/pprof/symbol"} {
			code, body := ask(addr, path, identity.Files{})
			require.Equal(t, http.StatusForbidden, code)
			require.Contains(t, body, "a certificate is needed")
			code, _ = ask(addr, path, pods.Files("client"))
			require.Equal(t, http.StatusForbidden, code)
			code, _ = ask(addr, path, pods.Files("monitor"))
			require.Equal(t, http.StatusOK, code)
		}
		_, body := ask(addr, "/metrics", pods.Files("monitor"))
		require.Regexp(t, `pairdb_tls_certificate_expiry_timestamp_seconds(\{.*\})? 1\.\d+e\+09`, body)

		// In the clear, and with an old version, it answers nothing.
		resp, err := http.Get("http://" + addr + "/health") //nolint:noctx // it fails at once
		if err == nil {
			resp.Body.Close()
			require.Equal(t, http.StatusBadRequest, resp.StatusCode)
		}
		_, err = tls.Dial("tcp", addr, &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", MaxVersion: tls.VersionTLS12})
		require.ErrorContains(t, err, "protocol version")
	}
}

func TestSecurePodsAreACluster(t *testing.T) {
	// Nodes have to be let in where they need to be: a node that joins gets its data over TLS, gossip and
	// NATS are encrypted, and what somebody else may not read is sent all the same.
	pods, log := podtest.Start(t, localpod.Options{Secure: true, Nodes: 2, Env: []string{
		"PAIRDB_REPLICATION_FACTOR=3", fmt.Sprintf("PAIRDB_SOCKET_UIDS=%d=node+compaction+migration+replica+admin", os.Getuid()),
	}})
	first := as(t, pods.All()[0].Addr, pods.Files("client"))
	const keys = 300
	for i := range keys {
		_, err := first.Put(t.Context(), fmt.Sprintf("k%d", i), []byte("v"))
		require.NoError(t, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	third, err := pods.Add(ctx)
	require.NoError(t, err)
	read := as(t, third.Addr, pods.Files("client"))
	podtest.Eventually(t, 90*time.Second, "the node that joined has all keys", func() bool {
		for i := range keys {
			v, err := read.Get(t.Context(), fmt.Sprintf("k%d", i))
			if err != nil || !v.Found {
				return false
			}
		}
		return true
	})
	require.NotContains(t, log.String(), "audit=refused", "what nodes ask each other for they may")
	require.NotContains(t, log.String(), "may not call", "nor do sidecars need more than their services")
	require.Contains(t, log.String(), "encrypted=true")

	// The operator's tool over the same ports, and over NATS.
	admin := pods.Files("admin")
	tool := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), filepath.Join(podtest.Binaries(t), "pairctl"), args...)
		cmd.Env = append(os.Environ(),
			"PAIRDB_ADDR="+pods.All()[0].Addr, "PAIRDB_TLS_CERT="+admin.TLSCert, "PAIRDB_TLS_KEY="+admin.TLSKey, "PAIRDB_TLS_CA="+admin.TLSCA,
			"PAIRDB_NATS_URL="+pods.NATSURL(), "PAIRDB_NATS_CA="+admin.TLSCA, "PAIRDB_NATS_CREDENTIALS="+pods.NATSOperator())
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(out)
	}
	require.Contains(t, tool("get", "k1"), "v")
	podtest.Eventually(t, 30*time.Second, "all three answer", func() bool { return strings.Count(tool("status", "--cluster"), "serving") == 3 })
	require.Contains(t, tool("events", "--since", "1h"), "node.ready")
	noSecrets(t, pods, log.String())
}

func TestNewCertificatesCountWithoutAFailedRequest(t *testing.T) {
	// A rotation that costs requests is one that is put off until the certificate is over.
	pods, log := podtest.Start(t, localpod.Options{Secure: true, NoHealthAgent: true, NoMigrator: true, NoCompactor: true})
	pod := pods.All()[0]
	files := pods.Files("client")
	kept := as(t, pod.Addr, files)
	var made, failed atomic.Int64
	stop := make(chan struct{})
	var load sync.WaitGroup
	call := func(c *client.Client) {
		made.Add(1)
		if _, err := c.Put(context.Background(), "k", []byte("v"), client.AtLeastOnce()); err != nil {
			failed.Add(1)
			t.Log(err)
		}
	}
	for range 2 {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				call(kept)
				// And a connection of its own, whose handshake may be at any moment of the change.
				cfg, err := client.TLSFromFiles(files.TLSCert, files.TLSKey, files.TLSCA)
				if err != nil {
					failed.Add(1)
					continue
				}
				o := noRepeats
				o.TLS = cfg
				c, err := client.New(pod.Addr, o)
				if err != nil {
					failed.Add(1)
					continue
				}
				call(c)
				_ = c.Close() // nothing is in flight
			}
		})
	}
	for round := 1; round <= 3; round++ {
		issue(t, pods.Authority(), authority.Leaf{File: "node-0", Cluster: "pairdb", Roles: []string{"node"}, Name: "node-0", Hosts: []string{"127.0.0.1"}, Valid: time.Duration(round) * time.Hour})
		podtest.Eventually(t, 20*time.Second, "the new certificate is in use", func() bool {
			return strings.Count(log.String(), "new certificate in use") == round
		})
		begun := made.Load()
		podtest.Eventually(t, 20*time.Second, "calls go on", func() bool { return made.Load() > begun+20 })
	}
	// One that can't be used: the node goes on with the one before, and says so.
	require.NoError(t, os.WriteFile(pods.Files("node-0").TLSCert, []byte("not a certificate"), 0o600))
	operator := as(t, pod.Addr, pods.Files("operator"))
	podtest.Eventually(t, 20*time.Second, "the node says that it is degraded", func() bool {
		s, err := operator.Admin().Status(t.Context(), &adminv1.StatusRequest{})
		return err == nil && strings.Contains(strings.Join(s.GetDegraded(), " "), "certificate: PAIRDB_TLS_CERT")
	})
	begun := made.Load()
	podtest.Eventually(t, 20*time.Second, "calls go on", func() bool { return made.Load() > begun+20 })
	close(stop)
	load.Wait()
	require.Zero(t, failed.Load(), "of %d", made.Load())
}

// start runs a storage node that is expected to end by itself, and returns its exit code and output.
func start(t *testing.T, args []string, env ...string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	dir := t.TempDir()
	cmd := exec.CommandContext(ctx, filepath.Join(podtest.Binaries(t), "storage-node"), args...)
	cmd.Env = append([]string{
		"PAIRDB_DATA_DIR=" + filepath.Join(dir, "data"), "PAIRDB_SOCKET=" + filepath.Join(dir, "s"), "PAIRDB_NODE_ID=n", "PAIRDB_LOG_FORMAT=text",
		"PAIRDB_GRPC_ADDR=127.0.0.1:0", "PAIRDB_OPS_ADDR=127.0.0.1:0",
	}, env...)
	out, _ := cmd.CombinedOutput() // the exit code says it
	require.NotNil(t, cmd.ProcessState)
	return cmd.ProcessState.ExitCode(), string(out)
}

func environment(f identity.Files) []string {
	return []string{"PAIRDB_TLS_CERT=" + f.TLSCert, "PAIRDB_TLS_KEY=" + f.TLSKey, "PAIRDB_TLS_CA=" + f.TLSCA}
}

func TestNodeDoesNotStartWithACertificateThatIsNotItsOwn(t *testing.T) {
	// A node that starts all the same is found out by its clients, one after another.
	a, err := authority.Open(t.TempDir())
	require.NoError(t, err)
	host := []string{"127.0.0.1"}
	good := issue(t, a, authority.Leaf{Cluster: "pairdb", Roles: []string{"node"}, Hosts: host})
	for says, env := range map[string][]string{
		"set all three, or none":      {"PAIRDB_TLS_CERT=" + good.TLSCert},
		"PAIRDB_CLUSTER_ID is pairdb": environment(issue(t, a, authority.Leaf{File: "other", Cluster: "other", Roles: []string{"node"}, Hosts: host})),
		"needs one of a node":         environment(issue(t, a, authority.Leaf{Cluster: "pairdb", Roles: []string{"client"}})),
		"expired":                     environment(issue(t, a, authority.Leaf{File: "over", Cluster: "pairdb", Roles: []string{"node"}, Hosts: host, Valid: -time.Minute})),
		"no such file":                environment(a.Files("missing")),
	} {
		code, out := start(t, nil, env...)
		require.Equal(t, 2, code, "%s", out)
		require.Contains(t, out, says)
	}
	code, out := start(t, []string{"--print-config"}, environment(good)...)
	require.Zero(t, code)
	require.Contains(t, out, "PAIRDB_TLS_KEY="+good.TLSKey, "the name of the file")
	require.NotContains(t, out, "PRIVATE KEY")
}

func TestPlainNodeThatIsOpenToOthersSaysSo(t *testing.T) {
	// Whoever forgets the certificates must not find out from somebody else.
	for addr, open := range map[string]bool{"127.0.0.1:0": false, "0.0.0.0:0": true} {
		pods, log := podtest.Start(t, localpod.Options{NoHealthAgent: true, NoMigrator: true, NoCompactor: true})
		pod := pods.All()[0]
		if open {
			pod.Node.Stop()
			pod.Node.SetEnv("PAIRDB_GRPC_ADDR=" + strings.Replace(pod.Addr, "127.0.0.1", "0.0.0.0", 1))
			require.NoError(t, pod.Node.Start())
		}
		c := as(t, pod.Addr, identity.Files{})
		var s *adminv1.StatusResponse
		podtest.Eventually(t, 20*time.Second, "it answers", func() bool {
			var err error
			s, err = c.Admin().Status(t.Context(), &adminv1.StatusRequest{}, grpc.WaitForReady(true))
			return err == nil
		})
		require.Equal(t, open, strings.Contains(strings.Join(s.GetDegraded(), " "), "plaintext:"), addr)
		require.Equal(t, open, strings.Contains(log.String(), "everybody who reaches it may call everything"), addr)
	}
}
