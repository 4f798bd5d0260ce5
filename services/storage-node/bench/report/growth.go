package report

import (
	"fmt"
	"io"
	"math"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"

	"github.com/pairdb/pairdb/services/storage-node/bench/engines"
	"github.com/pairdb/pairdb/services/storage-node/bench/suite"
)

// GrowthMarkdown writes microseconds per operation of PairDB's engine for each number of keys: the
// results of the same rows at growing sizes.
func GrowthMarkdown(w io.Writer, results []suite.Result) error {
	header := []string{"µs per operation, with so many keys"}
	for _, r := range results {
		header = append(header, fmt.Sprint(r.Size.Keys))
	}
	rows := [][]string{header}
	for _, l := range growing(results) {
		row := []string{l.label}
		for _, r := range results {
			v, ok := l.mean(r, engines.Ours)
			if !ok || v == 0 {
				row = append(row, "–")
				continue
			}
			row = append(row, number(1e6/v))
		}
		rows = append(rows, row)
	}
	var b strings.Builder
	table(&b, rows, 1)
	_, err := io.WriteString(w, b.String())
	return err
}

// GrowthChart draws the same on two logarithmic scales, as SVG: a flat line is cost that doesn't
// depend on how much there is.
func GrowthChart(w io.Writer, results []suite.Result) error {
	p := plot.New()
	p.Title.Text = "Cost per operation as the data grows"
	p.X.Label.Text, p.Y.Label.Text = "keys with values of 1 KiB", "µs per operation"
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.LogTicks{Prec: -1}, plot.LogTicks{Prec: -1}
	p.Add(plotter.NewGrid())
	low, high := math.Inf(1), 0.0
	for i, l := range growing(results) {
		var points plotter.XYs
		for _, r := range results {
			if v, ok := l.mean(r, engines.Ours); ok && v > 0 {
				points = append(points, plotter.XY{X: float64(r.Size.Keys), Y: 1e6 / v})
				low, high = min(low, 1e6/v), max(high, 1e6/v)
			}
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return err
		}
		line.Color, dots.Color, dots.Shape = plotutil.Color(i), plotutil.Color(i), plotutil.Shape(i)
		p.Add(line, dots)
		p.Legend.Add(l.label, line, dots)
	}
	p.Y.Min, p.Y.Max = math.Pow(10, math.Floor(math.Log10(low))), math.Pow(10, math.Ceil(math.Log10(high)))
	p.X.Max *= 10 // the legend's place
	p.Legend.Top = true
	return svg(w, p, 8*vg.Inch, 5*vg.Inch)
}

// growing returns the lines that are rates.
func growing(results []suite.Result) (out []line) {
	if len(results) == 0 {
		return nil
	}
	for _, l := range lines(results[0]) {
		if !l.lower {
			out = append(out, l)
		}
	}
	return out
}
