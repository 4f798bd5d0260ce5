package service_test

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/service"
)

// Danger: a probe that is content with anything keeps a pod in service that answers nobody; one that says
// only "failed" sends a person to the logs of four containers.
func TestProbeSaysWhyAPodIsNotReady(t *testing.T) {
	var notReady []service.Reason
	ops, err := service.OpenOps(service.OpsOptions{
		Addr: "127.0.0.1:0", Registry: service.NewRegistry("demo"), Log: quiet,
		NotReady: func() []service.Reason { return notReady },
		Degraded: func() []service.Reason {
			return []service.Reason{{Name: "events", Detail: "2 events wait"}, {Name: "clock"}}
		},
	})
	require.NoError(t, err)
	g := service.NewGroup(quiet)
	g.Add(ops.Stage())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	probe := func(args ...string) (int, string, string) {
		var stdout, stderr bytes.Buffer
		p := &service.Program{Name: "demo", Commands: []service.Command{service.ProbeCommand()}, Stdout: &stdout, Stderr: &stderr}
		return p.Main(context.Background(), append([]string{"probe"}, args...)), stdout.String(), stderr.String()
	}
	url := "http://" + ops.Addr() + "/ready"
	code, stdout, _ := probe(url)
	require.Equal(t, service.ExitOK, code)
	require.Equal(t, "ready, degraded: events (2 events wait), clock\n", stdout)

	notReady = []service.Reason{{Name: "duplicate-id", Detail: "n1 was elsewhere before"}, {Name: "seeds"}}
	code, stdout, stderr := probe(url)
	require.Equal(t, service.ExitRuntime, code)
	require.Empty(t, stdout)
	require.Equal(t, "demo: not ready: duplicate-id (n1 was elsewhere before), seeds\n", stderr)

	cancel()
	require.NoError(t, <-done)
	code, _, stderr = probe(url)
	require.Equal(t, service.ExitUnreachable, code, stderr)

	for _, args := range [][]string{{}, {url, url}, {"127.0.0.1:1/ready"}, {"file:///ready"}, {"http://%"}, {"https://10.0.0.1:1/ready"}, {"https://localhost:1/ready"}} {
		code, _, stderr = probe(args...)
		require.Equal(t, service.ExitUsage, code, stderr)
	}
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("hello")) })) //nolint:errcheck // the test sees it
	defer other.Close()
	code, _, stderr = probe(other.URL)
	require.Equal(t, service.ExitRuntime, code)
	require.Contains(t, stderr, "not as an operations server does")

	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte(`{"status":"ready"}`)) //nolint:errcheck // the test sees it
	}))
	defer secure.Close()
	code, stdout, stderr = probe(secure.URL)
	require.Equal(t, service.ExitOK, code, stderr)
	require.Equal(t, "ready\n", stdout)
}
