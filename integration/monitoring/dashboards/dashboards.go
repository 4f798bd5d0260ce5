// Package dashboards says what is on PairDB's Grafana dashboards, and writes them as Grafana's JSON. It
// never reads a metric: whether its queries answer is for the tests beside it to find out.
package dashboards

import "strings"

// Dashboard is a page. Its rows are in the order in which an incident asks.
type Dashboard struct {
	// Name is that of the file without its ending, and the end of Grafana's uid.
	Name, Title, Description string
	// Nodes says what the variable node_id selects: one, or any number of them.
	Nodes Selection
	Rows  []Row
}

// Selection is how many nodes a dashboard shows.
type Selection int

// A dashboard shows one node, or those that are chosen: all at first.
const (
	OneNode Selection = iota
	AnyNodes
)

// Row is a question and the panels that answer it.
type Row struct {
	Title  string
	Panels []Panel
}

// Kind is how a panel shows its values.
type Kind int

// Series are lines over time, Stat the newest values in large.
const (
	Series Kind = iota
	Stat
)

// Panel answers one question.
type Panel struct {
	Kind  Kind
	Title string
	// Description says what is normal, and what to think of if it is not.
	Description string
	// Unit is one of Grafana's: "s", "bytes", "percent", "percentunit", "ops", "short", "bool"…
	Unit string
	// Width of the 24 columns.
	Width int
	// Warn and Critical are where the color changes; both 0: it never does. The lower is worse if
	// Warn > Critical.
	Warn, Critical float64
	Queries        []Query
}

// Query is one of a panel's.
type Query struct {
	// Expr is PromQL with Grafana's variables.
	Expr string
	// Legend names each series by its labels.
	Legend string
}

// All returns the dashboards.
func All() []Dashboard { return []Dashboard{cluster(), pod(), compaction(), moves()} }

// nodeFilter is what every selector has: the nodes that the reader chose.
const nodeFilter = `node_id=~"$node_id"`

// q is a query. @ in a selector stands for the filter of nodes, [$] for the range of a rate.
func q(expr, legend string) Query {
	expr = strings.ReplaceAll(expr, "@", nodeFilter)
	return Query{Expr: strings.ReplaceAll(expr, "[$]", "[$__rate_interval]"), Legend: legend}
}

// quantiles are p50 and p99 of a histogram, given without its _bucket; by are labels that are kept.
func quantiles(histogram, selector, legend string, by ...string) []Query {
	labels := strings.Join(append(by, "le"), ", ")
	inner := "sum by (" + labels + ") (rate(" + histogram + "_bucket{" + selector + "}[$]))"
	return []Query{
		q("histogram_quantile(0.5, "+inner+")", strings.TrimSpace("p50 "+legend)),
		q("histogram_quantile(0.99, "+inner+")", strings.TrimSpace("p99 "+legend)),
	}
}

// number and series make panels without their limits.
func number(width int, title, description, unit string, queries ...Query) Panel {
	return Panel{Kind: Stat, Title: title, Description: description, Unit: unit, Width: width, Queries: queries}
}

func series(width int, title, description, unit string, queries ...Query) Panel {
	return Panel{Kind: Series, Title: title, Description: description, Unit: unit, Width: width, Queries: queries}
}

// limits returns the panel with colors.
func (p Panel) limits(warn, critical float64) Panel {
	p.Warn, p.Critical = warn, critical
	return p
}
