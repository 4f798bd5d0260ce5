package monitoring

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// runbooks is where an alert's annotation leads.
const runbooks = "https://github.com/pairdb/pairdb/blob/main/docs/MONITORING.md#"

// severities, and what each means, stand in docs/MONITORING.md.
var severities = []string{"critical", "warning", "info"}

func TestEachAlertSaysWhatItIsAndWhatToDo(t *testing.T) {
	// An alert without a first step costs the minutes that it was made to save.
	alerts, _ := rules(t)
	require.GreaterOrEqual(t, len(alerts), 35)
	places, text := anchors(t), page(t, "MONITORING.md")
	seen := map[string]bool{}
	for _, a := range alerts {
		require.False(t, seen[a.Alert], "%s is there twice", a.Alert)
		seen[a.Alert] = true
		require.Regexp(t, `^PairDB[A-Z][A-Za-z0-9]+$`, a.Alert)
		require.Contains(t, severities, a.Labels["severity"], a.Alert)
		require.Len(t, a.Labels, 1, "%s: routes know severity only", a.Alert)
		require.Len(t, a.Annotations, 3, a.Alert)
		require.Contains(t, a.Annotations["summary"], "{{ $labels.node_id }}", "%s: whose?", a.Alert)
		require.Regexp(t, `(^|\. )(Look at|Make room) .*\.$`, a.Annotations["description"], "%s: what comes first?", a.Alert)
		anchor := strings.ToLower(a.Alert)
		require.Equal(t, runbooks+anchor, a.Annotations["runbook_url"])
		require.True(t, places[anchor], "docs/MONITORING.md has no section %s", a.Alert)
		require.Contains(t, text, fmt.Sprintf("| [%s](#%s) | %s |", a.Alert, anchor, a.Labels["severity"]), "the table of alerts")
	}
	for place := range places {
		if strings.HasPrefix(place, "pairdb") {
			require.True(t, slices.ContainsFunc(alerts, func(a rule) bool { return strings.ToLower(a.Alert) == place }),
				"docs/MONITORING.md has a section for the alert %s, which is not there", place)
		}
	}
}

func TestEachRunbookSaysTheSameFourThings(t *testing.T) {
	// Who is called at night reads from top to bottom and must not miss a step.
	alerts, _ := rules(t)
	text := page(t, "MONITORING.md")
	for _, a := range alerts {
		_, section, ok := strings.Cut(text, "\n### "+a.Alert+"\n")
		require.True(t, ok, a.Alert)
		section, _, _ = strings.Cut(section, "\n#")
		for _, part := range []string{"**Meaning.**", "**Impact.**", "**First look.**", "**Remedy.**"} {
			require.Equal(t, 1, strings.Count(section, part), "%s: %s", a.Alert, part)
		}
		look, _, _ := strings.Cut(section, "**Remedy.**")
		_, look, _ = strings.Cut(look, "**First look.**")
		require.Contains(t, look, "`", "%s: a command or a query to type", a.Alert)
	}
}

func TestEachAlertHasACaseThatFiresItAndOneThatDoesNot(t *testing.T) {
	// A typo in an expression makes an alert that never fires, and nobody notices until it had to.
	alerts, _ := rules(t)
	fires, silent := map[string]bool{}, map[string]bool{}
	for name, f := range load[testFile](t, "tests") {
		require.Contains(t, f.Rules, "../alerts/"+name)
		for _, c := range f.Tests {
			require.NotEmpty(t, c.Name)
			expected := false
			for _, a := range c.Alerts {
				require.True(t, strings.HasPrefix(c.Name, a.Alert+" "), "%s tests %s", c.Name, a.Alert)
				expected = expected || len(a.Expected) > 0
			}
			which, verb := silent, " is silent: "
			if expected {
				which, verb = fires, " fires: "
			}
			require.NotEmpty(t, c.Alerts, c.Name)
			require.True(t, strings.HasPrefix(c.Name, c.Alerts[0].Alert+verb), "%s: the name says the opposite", c.Name)
			which[c.Alerts[0].Alert] = true
		}
	}
	for _, a := range alerts {
		require.True(t, fires[a.Alert], "no case fires %s", a.Alert)
		require.True(t, silent[a.Alert], "no case leaves %s silent", a.Alert)
	}
	require.Len(t, fires, len(alerts), "cases of alerts that are not there")
}

// foreign are metrics of Prometheus, its client library and its alerts.
var foreign = []string{
	"up", "ALERTS", "process_start_time_seconds", "process_cpu_seconds_total", "process_resident_memory_bytes",
}

// query is one in a page, for its reader to type.
var query = regexp.MustCompile("`([^`]*pairdb_[^`]*)`")

// suffixes of what a histogram is made of.
var suffixes = regexp.MustCompile(`_(bucket|sum|count)$`)

// known returns the names that rules and dashboards may use: those of the reference and of recordings.
func known(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for _, m := range metricName.FindAllStringSubmatch(page(t, "METRICS.md"), -1) {
		all[m[1]] = true
	}
	_, recordings := rules(t)
	for _, r := range recordings {
		all[r.Record] = true
	}
	for _, name := range foreign {
		all[name] = true
	}
	return all
}

func TestRulesAndDashboardsUseMetricsThatAreThere(t *testing.T) {
	// A metric that was renamed leaves alerts behind that are silent for ever, and empty panels.
	names := known(t)
	unknown := map[string]string{} // by name: who uses it
	check := func(where, expr string) {
		for _, name := range metrics(t, expr) {
			if !names[name] && !names[suffixes.ReplaceAllString(name, "")] {
				unknown[name] = where
			}
		}
	}
	alerts, recordings := rules(t)
	for _, r := range slices.Concat(alerts, recordings) {
		check(r.Alert+r.Record, r.Expr)
	}
	for _, p := range panels(t) {
		for _, expr := range p.exprs {
			check(p.where, expr)
		}
	}
	for _, m := range query.FindAllStringSubmatch(page(t, "MONITORING.md"), -1) {
		check("docs/MONITORING.md", m[1])
	}
	require.Empty(t, unknown, "metrics that are not in docs/METRICS.md")
}

func TestEachRecordingIsUsed(t *testing.T) {
	// What nobody reads is computed every 15 seconds for nothing.
	alerts, recordings := rules(t)
	for _, r := range recordings {
		require.Regexp(t, `^[a-z_]+:pairdb_[a-z_]+:[a-z0-9_]+$`, r.Record, "labels:metric:operation")
		require.True(t, slices.ContainsFunc(slices.Concat(alerts, recordings), func(other rule) bool {
			return strings.Contains(other.Expr, r.Record)
		}) || strings.Contains(page(t, "MONITORING.md"), r.Record), "nothing uses %s", r.Record)
	}
}

func TestPromtoolFindsNoFault(t *testing.T) {
	// The rules as Prometheus reads them, and each alert at both sides of its limit.
	promtool := debian(t, "promtool")
	alerts, err := filepath.Glob(filepath.Join(deploy, "alerts", "*.yaml"))
	require.NoError(t, err)
	tests, err := filepath.Glob(filepath.Join(deploy, "tests", "*.yaml"))
	require.NoError(t, err)
	for _, args := range [][]string{
		append([]string{"check", "rules"}, alerts...),
		append([]string{"test", "rules"}, tests...),
		{"check", "config", "--syntax-only", filepath.Join(deploy, "prometheus.yaml")},
		{"check", "config", "--syntax-only", withoutDiscovery(t)},
	} {
		out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput()
		require.NoError(t, err, "promtool %s: %s", strings.Join(args[:2], " "), out)
	}
}

// debian finds a program of Debian's package prometheus. Without it there is nothing to test with: where
// everything has to be tested that is a failure.
func debian(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing: apt-get install prometheus", program)
	}
	if err != nil {
		t.Skipf("not tested, %s is missing: apt-get install prometheus", program)
	}
	return path
}

// withoutDiscovery returns a copy of the configuration for Kubernetes without how pods are found: Debian's
// programs are built without that.
func withoutDiscovery(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(deploy, "prometheus-kubernetes.yaml"))
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(text), "    kubernetes_sd_configs:\n")
	require.True(t, ok)
	_, after, ok := strings.Cut(rest, "    relabel_configs:\n")
	require.True(t, ok)
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(filepath.Join(dir, "alerts"), os.DirFS(filepath.Join(deploy, "alerts"))))
	file := filepath.Join(dir, "prometheus.yaml")
	require.NoError(t, os.WriteFile(file, []byte(before+"    relabel_configs:\n"+after), 0o600))
	return file
}
