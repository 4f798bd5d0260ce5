package dashboards

import (
	"encoding/json"
	"fmt"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

// Heights of panels, in Grafana's rows.
const (
	seriesHeight = 8
	statHeight   = 4
)

// JSON returns the dashboard as a file that Grafana imports.
func (d Dashboard) JSON() ([]byte, error) {
	//lint:ignore SA1019 every Grafana imports the first schema; the second needs a new one
	b := dashboard.NewDashboardBuilder(d.Title).
		Uid("pairdb-"+d.Name).
		Description(d.Description).
		Tags([]string{"pairdb"}).
		Time("now-3h", "now").
		Timezone(common.TimeZoneBrowser).
		Refresh("30s").
		Tooltip(dashboard.DashboardCursorSyncCrosshair).
		WithVariable(dashboard.NewDatasourceVariableBuilder("datasource").Label("Data source").Type("prometheus")).
		WithVariable(d.Nodes.variable())
	id := uint32(0)
	next := func() uint32 { id++; return id }
	for _, r := range d.Rows {
		b.WithRow(dashboard.NewRowBuilder(r.Title).Id(next()))
		for _, p := range r.Panels {
			b.WithPanel(p.builder(next()))
		}
	}
	built, err := b.Build()
	if err != nil {
		return nil, fmt.Errorf("dashboard %s: %w", d.Name, err)
	}
	out, err := json.MarshalIndent(built, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("dashboard %s: %w", d.Name, err)
	}
	return append(out, '\n'), nil
}

// source is the Prometheus that the reader chose.
func source() common.DataSourceRef {
	return common.DataSourceRef{Type: cog.ToPtr("prometheus"), Uid: cog.ToPtr("${datasource}")}
}

// variable is the choice of nodes: those that have been scraped in the time that is shown.
func (s Selection) variable() *dashboard.QueryVariableBuilder {
	v := dashboard.NewQueryVariableBuilder("node_id").
		Label("Node").
		Description("PAIRDB_NODE_ID").
		Query(dashboard.StringOrMap{String: cog.ToPtr(`label_values(up{job="storage-node"}, node_id)`)}).
		Datasource(source()).
		Refresh(dashboard.VariableRefreshOnTimeRangeChanged).
		Sort(dashboard.VariableSortAlphabeticalAsc)
	if s == AnyNodes {
		v.Multi(true).IncludeAll(true).AllValue(".+")
	}
	return v
}

func (p Panel) builder(id uint32) cog.Builder[dashboard.Panel] {
	if p.Kind == Stat {
		return p.stat(id)
	}
	return p.series(id)
}

func (p Panel) stat(id uint32) *stat.PanelBuilder {
	b := stat.NewPanelBuilder().Id(id).
		Title(p.Title).Description(p.Description).Unit(p.Unit).Datasource(source()).
		Span(uint32(p.Width)).Height(statHeight).
		Thresholds(p.thresholds()).
		ColorMode(common.BigValueColorModeValue).
		GraphMode(common.BigValueGraphModeNone).
		Orientation(common.VizOrientationAuto).
		ReduceOptions(common.NewReduceDataOptionsBuilder().Calcs([]string{"lastNotNull"}))
	for i, query := range p.Queries {
		b.WithTarget(query.builder(i))
	}
	return b
}

func (p Panel) series(id uint32) *timeseries.PanelBuilder {
	b := timeseries.NewPanelBuilder().Id(id).
		Title(p.Title).Description(p.Description).Unit(p.Unit).Datasource(source()).
		Min(0).
		Span(uint32(p.Width)).Height(seriesHeight).
		LineWidth(1).FillOpacity(10).
		ShowPoints(common.VisibilityModeNever).
		Legend(common.NewVizLegendOptionsBuilder().DisplayMode(common.LegendDisplayModeList).Placement(common.LegendPlacementBottom).ShowLegend(true)).
		Tooltip(common.NewVizTooltipOptionsBuilder().Mode(common.TooltipDisplayModeMulti).Sort(common.SortOrderDescending)).
		Thresholds(p.thresholds())
	if p.limited() {
		b.ThresholdsStyle(common.NewGraphThresholdsStyleConfigBuilder().Mode(common.GraphThresholdsStyleModeLine))
	}
	for i, query := range p.Queries {
		b.WithTarget(query.builder(i))
	}
	return b
}

func (p Panel) limited() bool { return p.Warn != 0 || p.Critical != 0 }

// thresholds are the colors: from green to red, or the other way round where little is bad.
func (p Panel) thresholds() *dashboard.ThresholdsConfigBuilder {
	step := func(from float64, color string) dashboard.Threshold {
		return dashboard.Threshold{Value: &from, Color: color}
	}
	steps := []dashboard.Threshold{{Color: "green"}}
	switch {
	case !p.limited():
	case p.Warn > p.Critical:
		steps = []dashboard.Threshold{{Color: "red"}, step(p.Critical, "yellow"), step(p.Warn, "green")}
	case p.Warn == p.Critical:
		steps = append(steps, step(p.Critical, "red"))
	default:
		steps = append(steps, step(p.Warn, "yellow"), step(p.Critical, "red"))
	}
	return dashboard.NewThresholdsConfigBuilder().Mode(dashboard.ThresholdsModeAbsolute).Steps(steps)
}

// builder is the query as the i-th of its panel.
func (query Query) builder(i int) *prometheus.DataqueryBuilder {
	return prometheus.NewDataqueryBuilder().
		RefId(string(rune('A' + i))).
		Expr(query.Expr).
		LegendFormat(query.Legend).
		Range()
}
