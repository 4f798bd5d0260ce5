package monitoring

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/monitoring/dashboards"
)

var update = flag.Bool("update", false, "write the dashboards anew")

func TestDashboardsAreCurrent(t *testing.T) {
	// Grafana shows the files, people edit the program: they must not drift apart.
	written, err := filepath.Glob(filepath.Join(deploy, "dashboards", "*.json"))
	require.NoError(t, err)
	all := dashboards.All()
	for _, d := range all {
		want, err := d.JSON()
		require.NoError(t, err)
		name := filepath.Join(deploy, "dashboards", d.Name+".json")
		if *update {
			require.NoError(t, os.WriteFile(name, want, 0o644))
		}
		got, err := os.ReadFile(name)
		require.NoError(t, err)
		require.Equal(t, string(want), string(got), "%s: run make docs", name)
	}
	if !*update {
		require.Len(t, written, len(all), "files that no dashboard makes")
	}
}

// panel is one of a dashboard's, as a test sees it.
type panel struct {
	where  string
	exprs  []string
	legend []string
}

// panels returns all panels of all dashboards, with the range of Grafana's rates filled in.
func panels(t *testing.T) []panel {
	t.Helper()
	var all []panel
	for _, d := range dashboards.All() {
		for _, r := range d.Rows {
			for _, p := range r.Panels {
				x := panel{where: fmt.Sprintf("%s / %s / %s", d.Name, r.Title, p.Title)}
				for _, query := range p.Queries {
					x.exprs = append(x.exprs, strings.ReplaceAll(query.Expr, "$__rate_interval", "5m"))
					x.legend = append(x.legend, query.Legend)
				}
				all = append(all, x)
			}
		}
	}
	require.Greater(t, len(all), 60)
	return all
}

// units are those of Grafana that the dashboards use.
var units = map[string]bool{
	"s": true, "bytes": true, "Bps": true, "ops": true, "reqps": true, "short": true, "bool": true, "percent": true, "percentunit": true,
}

func TestEachPanelExplainsItself(t *testing.T) {
	// A number without a unit, or a curve of which nobody knows what is normal, misleads at the worst
	// moment.
	for _, d := range dashboards.All() {
		require.NotEmpty(t, d.Description)
		for _, r := range d.Rows {
			titles, width := map[string]bool{}, 0
			for _, p := range r.Panels {
				require.False(t, titles[p.Title], "%s / %s: %s is there twice", d.Name, r.Title, p.Title)
				titles[p.Title] = true
				require.True(t, units[p.Unit], "%s: unit %q", p.Title, p.Unit)
				require.Regexp(t, `^[A-Z0-9].*\.$`, p.Description, "%s: a sentence", p.Title)
				require.Positive(t, p.Width)
				width += p.Width
				require.NotEmpty(t, p.Queries, p.Title)
				for _, query := range p.Queries {
					require.NotEmpty(t, query.Legend, p.Title)
				}
			}
			require.Zero(t, width%24, "%s / %s: the panels leave a gap", d.Name, r.Title)
		}
	}
}

func TestEachQueryKeepsToTheChosenNodes(t *testing.T) {
	// A panel that shows another node than the one that was chosen sends the reader to the wrong machine.
	for _, p := range panels(t) {
		for _, expr := range p.exprs {
			require.Equal(t, len(metrics(t, expr)), strings.Count(expr, `node_id=~"$node_id"`), "%s: %s", p.where, expr)
		}
	}
}

// model is what a test looks at of Grafana's JSON.
type model struct {
	UID           string `json:"uid"`
	Title         string `json:"title"`
	SchemaVersion int    `json:"schemaVersion"`
	Templating    struct {
		List []struct {
			Name string `json:"name"`
			Type string `json:"type"`
		} `json:"list"`
	} `json:"templating"`
	Panels []struct {
		ID          int    `json:"id"`
		Type        string `json:"type"`
		Title       string `json:"title"`
		Description string `json:"description"`
		GridPos     struct{ H, W, X, Y int }
		Datasource  struct{ UID string }
		FieldConfig struct {
			Defaults struct {
				Unit       string
				Thresholds struct{ Steps []any }
			}
		}
		Targets []struct{ Expr, RefID string }
	} `json:"panels"`
}

func TestDashboardsAreWhatGrafanaExpects(t *testing.T) {
	// Grafana shows a panel without its data source, or on top of another one, without a complaint.
	uids := map[string]bool{}
	for _, d := range dashboards.All() {
		text, err := os.ReadFile(filepath.Join(deploy, "dashboards", d.Name+".json"))
		require.NoError(t, err)
		var m model
		require.NoError(t, json.Unmarshal(text, &m))
		require.False(t, uids[m.UID] || m.UID == "")
		uids[m.UID] = true
		require.Equal(t, d.Title, m.Title)
		require.GreaterOrEqual(t, m.SchemaVersion, 36)
		require.Len(t, m.Templating.List, 2)
		require.Equal(t, "datasource", m.Templating.List[0].Name)
		require.Equal(t, "node_id", m.Templating.List[1].Name)
		taken, ids, rows := map[[2]int]string{}, map[int]bool{}, 0
		for _, p := range m.Panels {
			require.False(t, ids[p.ID], "%s: id %d twice", d.Name, p.ID)
			ids[p.ID] = true
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					require.Less(t, x, 24, p.Title)
					require.Empty(t, taken[[2]int{x, y}], "%s lies on %s", p.Title, taken[[2]int{x, y}])
					taken[[2]int{x, y}] = p.Title
				}
			}
			if p.Type == "row" {
				rows++
				continue
			}
			require.Contains(t, []string{"stat", "timeseries"}, p.Type)
			require.Equal(t, "${datasource}", p.Datasource.UID, p.Title)
			require.NotEmpty(t, p.Description, p.Title)
			require.NotEmpty(t, p.FieldConfig.Defaults.Unit, p.Title)
			require.NotEmpty(t, p.FieldConfig.Defaults.Thresholds.Steps, p.Title)
			require.NotEmpty(t, p.Targets, p.Title)
			refs := map[string]bool{}
			for _, target := range p.Targets {
				require.NotEmpty(t, target.Expr)
				require.False(t, refs[target.RefID], "%s: query %s twice", p.Title, target.RefID)
				refs[target.RefID] = true
			}
		}
		require.Equal(t, len(d.Rows), rows)
	}
}
