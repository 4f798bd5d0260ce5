package service_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/service"
)

var quiet = slog.New(slog.DiscardHandler)

// trail records events in order.
type trail struct {
	mu     sync.Mutex
	events []string
}

func (t *trail) add(e string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events = append(t.events, e)
}

// stage is a stage that runs until it is stopped.
func (t *trail) stage(name string) service.Stage {
	stop := make(chan struct{})
	return service.Stage{
		Name: name,
		Run:  func() error { <-stop; t.add(name + " ended"); return nil },
		Stop: func(context.Context) error { t.add("stop " + name); close(stop); return nil },
	}
}

// The engine must not be closed while the listener before it still accepts.
func TestStagesStopOneAfterAnotherInOrder(t *testing.T) {
	var tr trail
	g := service.NewGroup(quiet)
	for _, name := range []string{"readiness", "grpc", "engine"} {
		g.Add(tr.stage(name))
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.NoError(t, g.Run(ctx))
	require.Equal(t, []string{"stop readiness", "readiness ended", "stop grpc", "grpc ended", "stop engine", "engine ended"}, tr.events)
}

// A failure of one stage must stop the others in the same order, and be what the process reports.
func TestFailureOfAStageStopsTheOthersAndIsReturned(t *testing.T) {
	var tr trail
	boom := errors.New("boom")
	g := service.NewGroup(quiet)
	g.Add(tr.stage("first"))
	g.Add(service.Stage{Name: "bad", Run: func() error { return boom }})
	g.Add(tr.stage("last"))
	err := g.Run(context.Background())
	require.ErrorIs(t, err, boom)
	require.ErrorContains(t, err, "bad: boom")
	require.Equal(t, []string{"stop first", "first ended", "stop last", "last ended"}, tr.events)
}

// A stage that hangs must not keep the engine behind it from being closed, nor the process alive.
func TestStageThatHangsIsLeftBehindAtItsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tr trail
		release := make(chan struct{})
		defer close(release)
		g := service.NewGroup(quiet)
		g.Add(service.Stage{
			Name: "stuck", Limit: 3 * time.Second,
			Run:  func() error { <-release; return nil },
			Stop: func(ctx context.Context) error { <-ctx.Done(); return nil },
		})
		g.Add(tr.stage("engine"))
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		start := time.Now()
		err := g.Run(ctx)
		require.ErrorContains(t, err, "stop stuck: not done within 3s")
		require.Equal(t, 3*time.Second, time.Since(start))
		require.Equal(t, []string{"stop engine", "engine ended"}, tr.events)
	})
}

// A stop that fails (a flush, a sync) must be reported: the exit code depends on it.
func TestErrorOfAStopIsReturned(t *testing.T) {
	g := service.NewGroup(quiet)
	g.Add(service.Stage{Name: "engine", Stop: func(context.Context) error { return io.ErrShortWrite }})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, g.Run(ctx), io.ErrShortWrite)
}

func get(t *testing.T, url string) (int, map[string]any, string) {
	t.Helper()
	resp, err := http.Get(url) //nolint:noctx // a test server of this process
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	var decoded map[string]any
	_ = json.Unmarshal(body, &decoded)
	return resp.StatusCode, decoded, string(body)
}

// Probes act on the status code: a process that recovers is alive and not ready.
func TestOpsServerAnswersByState(t *testing.T) {
	progress := 0.25
	var notReady, notLive, notStarted, degraded []service.Reason
	ops, err := service.OpenOps(service.OpsOptions{
		Addr: "127.0.0.1:0", Registry: service.NewRegistry("demo"), Log: quiet,
		NotReady: func() []service.Reason { return notReady },
		NotLive:  func() []service.Reason { return notLive },
		Degraded: func() []service.Reason { return degraded },

		NotStarted: func() []service.Reason { return notStarted },
	})
	require.NoError(t, err)
	base := "http://" + ops.Addr()
	g := service.NewGroup(quiet)
	g.Add(ops.Stage())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()

	for _, c := range []struct {
		name                        string
		notReady, notLive, degraded []service.Reason
		ready, live                 int
	}{
		{name: "serving", ready: 200, live: 200},
		{name: "recovering", notReady: []service.Reason{{Name: "recovering", Detail: "segment 3 of 12", Progress: &progress}}, ready: 503, live: 200},
		{name: "degraded", degraded: []service.Reason{{Name: "compaction"}}, ready: 200, live: 200},
		{name: "dead", notReady: []service.Reason{{Name: "poisoned"}}, notLive: []service.Reason{{Name: "poisoned"}}, ready: 503, live: 503},
	} {
		notReady, notLive, degraded = c.notReady, c.notLive, c.degraded
		for path, want := range map[string]int{"/ready": c.ready, "/health/ready": c.ready, "/health": c.live, "/health/live": c.live} {
			code, body, text := get(t, base+path)
			require.Equal(t, want, code, "%s %s: %s", c.name, path, text)
			if c.name == "recovering" && want == 503 {
				require.Equal(t, map[string]any{"reason": "recovering", "detail": "segment 3 of 12", "progress": 0.25}, body["reasons"].([]any)[0])
			}
		}
	}
	code, _, _ := get(t, base+"/health/startup")
	require.Equal(t, 200, code)
	notStarted = []service.Reason{{Name: "recovering"}}
	code, _, text := get(t, base+"/health/startup")
	require.Equal(t, 503, code)
	require.Contains(t, text, "not started")
	code, _, text = get(t, base+"/metrics")
	require.Equal(t, 200, code)
	require.Contains(t, text, `pairdb_build_info{binary="demo"`)
	require.Contains(t, text, "go_goroutines")
	code, _, _ = get(t, base+"/debug/pprof/")
	require.Equal(t, 404, code)

	http.DefaultClient.CloseIdleConnections()
	cancel()
	require.NoError(t, <-done)
	_, err = service.OpenOps(service.OpsOptions{Addr: "127.0.0.1:99999999", Log: quiet})
	require.Error(t, err)
}

// A probe has no certificate and must get its answer. What reasons say of disks, paths and members, metrics and profiles
// are for those who may watch.
func TestStrangersLearnWhetherAllIsWellAndNoMore(t *testing.T) {
	server, pool := certificate(t)
	mine, _ := certificate(t) // whose, does not matter here
	var asked int
	ops, err := service.OpenOps(service.OpsOptions{
		Addr: "127.0.0.1:0", Registry: service.NewRegistry("demo"), Log: quiet, Pprof: true,
		NotReady: func() []service.Reason { return []service.Reason{{Name: "recovering", Detail: "/data/secret"}} },
		Degraded: func() []service.Reason { return []service.Reason{{Name: "disk", Detail: "/data/secret"}} },
		TLS:      &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13},
		MayWatch: func(s *tls.ConnectionState) error {
			asked++
			if len(s.PeerCertificates) == 0 {
				return errors.New("nobody")
			}
			return nil
		},
	})
	require.NoError(t, err)
	g := service.NewGroup(quiet)
	g.Add(ops.Stage())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	ask := func(path string, certificates ...tls.Certificate) (int, string) {
		h := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: certificates}}, Timeout: 10 * time.Second}
		resp, err := h.Get("https://" + ops.Addr() + path) //nolint:noctx // a test server of this process
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(body)
	}
	for path, want := range map[string]int{"/health": 200, "/health/live": 200, "/ready": 503, "/health/ready": 503, "/health/startup": 200} {
		code, text := ask(path)
		require.Equal(t, want, code, path)
		require.Contains(t, text, "disk", path)
		require.NotContains(t, text, "secret", path)
		code, text = ask(path, mine)
		require.Equal(t, want, code, path)
		require.Contains(t, text, "secret", path)
	}
	require.Zero(t, asked)
	for _, path := range []string{"/metrics", "/debug/pprof/", "/debug/pprof/symbol", "/debug/pprof/profile", "/debug/pprof/trace"} {
		code, text := ask(path)
		require.Equal(t, http.StatusForbidden, code, path)
		require.Equal(t, "nobody\n", text, path)
	}
	code, text := ask("/metrics", mine)
	require.Equal(t, http.StatusOK, code)
	require.Contains(t, text, "go_goroutines")
	cancel()
	require.NoError(t, <-done)
}

// certificate makes one of 127.0.0.1 that signs itself, and the pool that it is checked with.
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}
