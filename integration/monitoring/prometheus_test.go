package monitoring

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/localpod"
)

// server is a Prometheus with our rules that scrapes local pods every second.
type server struct {
	t   *testing.T
	url string
}

// in is the server for a test within the test.
func (s *server) in(t *testing.T) *server { return &server{t, s.url} }

// startPrometheus starts one and waits until it answers; it is stopped when the test ends.
func startPrometheus(t *testing.T, pods *localpod.Pods) *server {
	t.Helper()
	program := debian(t, "prometheus")
	dir := t.TempDir()
	configure(t, dir, pods)
	addr := freePort(t)
	var log bytes.Buffer
	cmd := exec.Command(program, "--config.file="+filepath.Join(dir, "prometheus.yaml"), "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+addr, "--log.level=warn")
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended: then its log says why
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("Prometheus:\n%s", log.String())
		}
	})
	s := &server{t, "http://" + addr}
	podtest.Eventually(t, 30*time.Second, "Prometheus is ready", func() bool {
		resp, err := http.Get(s.url + "/-/ready")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return s
}

// configure writes our configuration, faster, with our rules and the pods as targets.
func configure(t *testing.T, dir string, pods *localpod.Pods) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(deploy, "prometheus.yaml"))
	require.NoError(t, err)
	var config map[string]any
	require.NoError(t, yaml.Unmarshal(text, &config))
	config["global"] = map[string]string{"scrape_interval": "1s", "evaluation_interval": "1s"}
	text, err = yaml.Marshal(config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "prometheus.yaml"), text, 0o644))
	require.NoError(t, os.CopyFS(filepath.Join(dir, "alerts"), os.DirFS(filepath.Join(deploy, "alerts"))))
	targets, err := json.Marshal(pods.ScrapeTargets())
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "targets"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "targets", "pods.json"), targets, 0o644))
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

// get decodes the data of an answer of the API into v. An answer that is an error fails the test.
func (s *server) get(path string, args url.Values, v any) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path+"?"+args.Encode(), nil)
	require.NoError(s.t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(s.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(s.t, err)
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	require.NoError(s.t, json.Unmarshal(body, &answer), "%s", body)
	require.Equal(s.t, "success", answer.Status, "%s %v: %s", path, args, answer.Error)
	require.NoError(s.t, json.Unmarshal(answer.Data, v), "%s", answer.Data)
}

// sample is a series of the answer to a query, with its newest value.
type sample struct {
	labels map[string]string
	value  float64
}

// query returns what an instant query answers now.
func (s *server) query(expr string) []sample {
	s.t.Helper()
	var data struct {
		Result []struct {
			Metric map[string]string
			Value  [2]any
		}
	}
	s.get("/api/v1/query", url.Values{"query": {expr}}, &data)
	all := make([]sample, len(data.Result))
	for i, r := range data.Result {
		text, ok := r.Value[1].(string)
		require.True(s.t, ok, "%s: %v", expr, r.Value)
		v, err := strconv.ParseFloat(text, 64)
		require.NoError(s.t, err)
		all[i] = sample{r.Metric, v}
	}
	return all
}

// answers reports whether a query has a series with a number.
func (s *server) answers(expr string) bool {
	s.t.Helper()
	for _, x := range s.query(expr) {
		if !math.IsNaN(x.value) {
			return true
		}
	}
	return false
}

// alert is one that is pending or fires.
type alert struct {
	Labels map[string]string
	State  string
}

func (a alert) String() string { return fmt.Sprint(a.State, " ", a.Labels) }

func (s *server) alerts() []alert {
	s.t.Helper()
	var data struct{ Alerts []alert }
	s.get("/api/v1/alerts", nil, &data)
	return data.Alerts
}

// becomes waits until an alert with these labels, among others, is pending: in a few minutes it would fire.
func (s *server) becomes(want alert) {
	s.t.Helper()
	podtest.Eventually(s.t, settled, fmt.Sprint(want.Labels, " is pending"), func() bool {
		return slices.ContainsFunc(s.alerts(), func(got alert) bool {
			for label, value := range want.Labels {
				if got.Labels[label] != value {
					return false
				}
			}
			return true
		})
	})
}

// ruleHealth returns the last error of each rule that is not well, and how many rules there are.
func (s *server) ruleHealth() (total int, bad map[string]string) {
	s.t.Helper()
	var data struct {
		Groups []struct {
			Rules []struct{ Name, Health, LastError string }
		}
	}
	s.get("/api/v1/rules", nil, &data)
	bad = map[string]string{}
	for _, g := range data.Groups {
		for _, r := range g.Rules {
			total++
			if r.Health != "ok" {
				bad[r.Name] = r.Health + " " + r.LastError
			}
		}
	}
	return total, bad
}

// series returns the labels of every series of a selector.
func (s *server) series(selector string) []map[string]string {
	s.t.Helper()
	var data []map[string]string
	s.get("/api/v1/series", url.Values{"match[]": {selector}}, &data)
	return data
}
