// Package metrics scrapes the endpoints of a pod of the built binaries, before, while and after everything
// that a pod does is done to it. It never imports a service.
package metrics

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/localpod"
)

// endpoints are where a pod shows metrics: every field of it that ends in OpsAddr, so that a new sidecar
// is not forgotten here.
func endpoints(pod *localpod.Pod) []string {
	var out []string
	v := reflect.ValueOf(pod).Elem()
	for i := range v.NumField() {
		if f := v.Type().Field(i); strings.HasSuffix(f.Name, "OpsAddr") && v.Field(i).String() != "" {
			out = append(out, v.Field(i).String())
		}
	}
	return out
}

// series is one number: of a histogram it is how many values it has.
type series struct {
	name   string
	labels map[string]string
	value  float64
}

func seriesOf(f *dto.MetricFamily) []series {
	var out []series
	for _, m := range f.GetMetric() {
		s := series{name: f.GetName(), labels: map[string]string{}}
		for _, l := range m.GetLabel() {
			s.labels[l.GetName()] = l.GetValue()
		}
		switch f.GetType() {
		case dto.MetricType_HISTOGRAM:
			s.value = float64(m.GetHistogram().GetSampleCount())
		case dto.MetricType_SUMMARY:
			s.value = float64(m.GetSummary().GetSampleCount())
		case dto.MetricType_COUNTER:
			s.value = m.GetCounter().GetValue()
		case dto.MetricType_GAUGE:
			s.value = m.GetGauge().GetValue()
		default:
			s.value = m.GetUntyped().GetValue()
		}
		out = append(out, s)
	}
	return out
}

// past is what one series was over all scrapes.
type past struct {
	series
	rose     bool
	min, max float64
}

// history is what the series of a pod were over all scrapes. It is safe for concurrent use.
type history struct {
	endpoints []string

	mu      sync.Mutex
	started map[string]float64 // of the process behind an endpoint
	past    map[string]*past
}

func newHistory(pod *localpod.Pod) *history {
	return &history{endpoints: endpoints(pod), started: map[string]float64{}, past: map[string]*past{}}
}

// look scrapes every endpoint once. A process that is down is left out.
func (h *history) look(ctx context.Context) {
	for _, addr := range h.endpoints {
		families, err := podtest.Families(ctx, addr)
		if err != nil {
			continue
		}
		h.add(addr, families)
	}
}

func (h *history) add(addr string, families map[string]*dto.MetricFamily) {
	h.mu.Lock()
	defer h.mu.Unlock()
	fresh := false
	if f := families["process_start_time_seconds"]; f != nil {
		begun := f.GetMetric()[0].GetGauge().GetValue()
		fresh = h.started[addr] != begun
		h.started[addr] = begun
	}
	for _, f := range families {
		for _, s := range seriesOf(f) {
			id := fmt.Sprint(addr, s.name, s.labels) // maps print in the order of their keys
			p := h.past[id]
			if p == nil {
				h.past[id] = &past{series: s, min: s.value, max: s.value, rose: !fresh && s.value > 0}
				continue
			}
			p.rose = p.rose || !fresh && s.value > p.value
			p.value, p.min, p.max = s.value, min(p.min, s.value), max(p.max, s.value)
		}
	}
}

// follow looks again and again until the function that it returns is called.
func (h *history) follow(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			h.look(ctx)
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() { cancel(); <-done }
}

// of returns the past of the series of a name whose labels are, among others, these: "a=b,c=d".
func (h *history) of(name, labels string) []past {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []past
	for _, p := range h.past {
		if p.name == name && matches(p.labels, labels) {
			out = append(out, *p)
		}
	}
	return out
}

func matches(have map[string]string, want string) bool {
	for pair := range strings.SplitSeq(want, ",") {
		if name, value, ok := strings.Cut(pair, "="); ok && have[name] != value {
			return false
		}
	}
	return true
}

// names returns the names of our metrics.
func (h *history) names() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := map[string]bool{}
	for _, p := range h.past {
		if strings.HasPrefix(p.name, "pairdb_") {
			all[p.name] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// documented is a row of docs/METRICS.md.
type documented struct {
	process, name string
	historic      bool
}

var (
	pageSection = regexp.MustCompile(`^<!-- begin (\S+) -->$`)
	pageRow     = regexp.MustCompile("^\\| `(pairdb_[a-z0-9_]+)` \\| [^|]* \\| [^|]* \\| [^|]* \\| ([^|]*) \\|")
)

// page returns the rows of docs/METRICS.md.
func page(t *testing.T) []documented {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "METRICS.md"))
	require.NoError(t, err)
	var out []documented
	process := ""
	for line := range strings.SplitSeq(string(text), "\n") {
		if m := pageSection.FindStringSubmatch(line); m != nil {
			process = m[1]
		}
		if m := pageRow.FindStringSubmatch(line); m != nil {
			out = append(out, documented{process, m[1], strings.TrimSpace(m[2]) != ""})
		}
	}
	require.NotEmpty(t, out)
	return out
}

// testNames are the tests of libs and services.
var testNames = sync.OnceValues(func() (map[string]bool, error) {
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	all := map[string]bool{}
	for _, dir := range []string{"libs", "services", "integration/events"} {
		err := filepath.WalkDir(filepath.Join("..", "..", dir), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, m := range declared.FindAllSubmatch(text, -1) {
				all[string(m[1])] = true
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
})

func testExists(t *testing.T, name string) bool {
	t.Helper()
	all, err := testNames()
	require.NoError(t, err)
	return all[name]
}
