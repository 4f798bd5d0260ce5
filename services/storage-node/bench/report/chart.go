package report

import (
	"fmt"
	"image/color"
	"io"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/pairdb/pairdb/services/storage-node/bench/engines"
	"github.com/pairdb/pairdb/services/storage-node/bench/suite"
)

// colours of the engines, from Okabe and Ito's palette, which most colour-blind people can tell apart.
var colours = map[string]color.Color{
	engines.Ours:     color.RGBA{0xd5, 0x5e, 0x00, 0xff},
	engines.Baseline: color.RGBA{0x00, 0x72, 0xb2, 0xff},
	"badger":         color.RGBA{0xe6, 0x9f, 0x00, 0xff},
	"bbolt":          color.RGBA{0x99, 0x99, 0x99, 0xff},
	"goleveldb":      color.RGBA{0x56, 0xb4, 0xe9, 0xff},
	"rocksdb":        color.RGBA{0x00, 0x9e, 0x73, 0xff},
}

// Chart writes the ratios of the rates as dots on a logarithmic scale, one line per row, as SVG:
// what is right of 1 is faster than the baseline.
func Chart(w io.Writer, r suite.Result) error {
	p := plot.New()
	p.Title.Text = fmt.Sprintf("Throughput relative to %s (more is better)", engines.Baseline)
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, ratioTicks{}
	p.X.Min, p.X.Max = 0.5, 2

	var labels []string
	var rows []line
	for _, l := range lines(r) {
		if base, ok := l.mean(r, engines.Baseline); !l.lower && ok && base > 0 {
			rows = append(rows, l)
			labels = append(labels, l.label)
		}
	}
	if len(rows) == 0 {
		return nil
	}
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Color = color.Gray{0xe8}, color.Gray{0xd0}
	p.Add(grid)
	for _, e := range r.Engines {
		var points plotter.XYs
		for i, l := range rows {
			base, _ := l.mean(r, engines.Baseline)
			if v, ok := l.mean(r, e); ok && v > 0 {
				points = append(points, plotter.XY{X: v / base, Y: float64(len(rows) - 1 - i)})
			}
		}
		if len(points) == 0 {
			continue
		}
		dots, err := plotter.NewScatter(points)
		if err != nil {
			return err
		}
		dots.Color, dots.Radius, dots.Shape = colours[e], vg.Points(3.5), draw.CircleGlyph{}
		p.Add(dots)
		p.Legend.Add(e, dots)
	}
	reversed := make([]string, len(labels))
	for i, l := range labels {
		reversed[len(labels)-1-i] = l
	}
	p.NominalY(reversed...)
	p.X.Min, p.X.Max = math.Pow(2, math.Floor(math.Log2(p.X.Min))), math.Pow(2, math.Ceil(math.Log2(p.X.Max)))
	p.X.Max *= 2 // the legend's place
	p.Legend.Top = true
	return svg(w, p, 9*vg.Inch, vg.Length(len(rows))*vg.Points(17)+1.4*vg.Inch)
}

func svg(w io.Writer, p *plot.Plot, width, height vg.Length) error {
	c := vgsvg.New(width, height)
	p.Draw(draw.New(c))
	_, err := c.WriteTo(w)
	return err
}

// ratioTicks are powers of two.
type ratioTicks struct{}

// Ticks implements plot.Ticker.
func (ratioTicks) Ticks(low, high float64) (ticks []plot.Tick) {
	for e := math.Ceil(math.Log2(low) - 1e-9); math.Pow(2, e) <= high*1.0001; e++ {
		v := math.Pow(2, e)
		ticks = append(ticks, plot.Tick{Value: v, Label: fmt.Sprintf("%.3g", v)})
	}
	return ticks
}
