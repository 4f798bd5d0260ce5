// Package monitoring checks what deploy/monitoring hands to Prometheus and Grafana: by itself, with
// promtool, and with a Prometheus that scrapes a local cluster. It never imports a service.
package monitoring

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metricsql"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// deploy is the directory that is tested.
var deploy = filepath.Join("..", "..", "deploy", "monitoring")

// rule is an alert or a recording.
type rule struct {
	Record, Alert, Expr string
	For                 string
	Labels, Annotations map[string]string
}

type ruleFile struct {
	Groups []struct {
		Name  string
		Rules []rule
	}
}

// alertTest is a case of promtool.
type alertTest struct {
	Name     string
	Interval string
	Input    []struct{ Series, Values string } `yaml:"input_series"`
	Alerts   []struct {
		At       string           `yaml:"eval_time"`
		Alert    string           `yaml:"alertname"`
		Expected []map[string]any `yaml:"exp_alerts"`
	} `yaml:"alert_rule_test"`
}

type testFile struct {
	Rules []string `yaml:"rule_files"`
	Every string   `yaml:"evaluation_interval"`
	Tests []alertTest
}

// load decodes all YAML files of a directory below deploy; fields that are not known are errors.
func load[T any](t *testing.T, dir string) map[string]T {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(deploy, dir, "*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, names)
	all := map[string]T{}
	for _, name := range names {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		d := yaml.NewDecoder(bytes.NewReader(text))
		d.KnownFields(true)
		var v T
		require.NoError(t, d.Decode(&v), name)
		all[filepath.Base(name)] = v
	}
	return all
}

// rules returns the alerts and the recordings of all files.
func rules(t *testing.T) (alerts, recordings []rule) {
	t.Helper()
	for _, f := range load[ruleFile](t, "alerts") {
		for _, g := range f.Groups {
			for _, r := range g.Rules {
				if r.Alert != "" {
					alerts = append(alerts, r)
				} else {
					recordings = append(recordings, r)
				}
			}
		}
	}
	return alerts, recordings
}

// metrics returns the names that a query reads. Whether a query is valid is for promtool and Prometheus
// to say; here it only has to be understood.
func metrics(t *testing.T, expr string) []string {
	t.Helper()
	parsed, err := metricsql.Parse(expr)
	require.NoError(t, err, expr)
	var names []string
	metricsql.VisitAll(parsed, func(e metricsql.Expr) {
		m, ok := e.(*metricsql.MetricExpr)
		if !ok {
			return
		}
		for _, filters := range m.LabelFilterss {
			named := false
			for _, f := range filters {
				if f.Label == "__name__" {
					require.False(t, f.IsRegexp || f.IsNegative, "%s: a metric without a name can't be looked up", expr)
					names, named = append(names, f.Value), true
				}
			}
			require.True(t, named, "%s: a selector without a metric reads everything", expr)
		}
	})
	require.NotEmpty(t, names, expr)
	return names
}

var (
	// A heading of a page, and a metric in the reference.
	heading    = regexp.MustCompile(`(?m)^#{1,6} (.+)$`)
	metricName = regexp.MustCompile("`(pairdb_[a-z0-9_]+)`")
	noAnchor   = regexp.MustCompile(`[^a-z0-9 -]`)
)

// anchors are the places of docs/MONITORING.md that a link can lead to, made as GitHub makes them.
func anchors(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(page(t, "MONITORING.md"), -1) {
		anchor := noAnchor.ReplaceAllString(strings.ToLower(m[1]), "")
		all[strings.ReplaceAll(anchor, " ", "-")] = true
	}
	return all
}

func page(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", name))
	require.NoError(t, err)
	return string(text)
}
