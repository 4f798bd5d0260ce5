package main

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"
)

// bar is a ratio that the service is held to: row a against row b at a depth.
type bar struct {
	what   string
	a, b   string
	depths []int
	least  float64
}

var bars = []bar{
	{"unary read / empty echo", "node Read", "echo Read", []int{1, 16, 64, 256}, 0.85},
	{"Pipeline read / empty stream echo", "node Pipeline read", "echo stream", []int{1, 16, 64, 256}, 0.80},
	{"BatchRead of 64 / empty batch echo", "node BatchRead", "echo BatchRead", []int{1, 16, 64, 256}, 0.60},
	{"durable unary write / empty echo", "node Write", "echo Write", []int{64}, 0.75},
	{"durable unary write / etcd Put", "node Write", "etcd Put", []int{64}, 3},
	{"durable Pipeline write / Redis SET always, a connection a request", "node Pipeline write", "redis SET", []int{64}, 1.5},
	{"durable Pipeline write / Redis SET always, pipelined", "node Pipeline write", "redis SET pipelined", []int{64}, 1.5},
}

// mergeBar is how much slower the 99th percentile of the node's reads may be beside a compaction.
const mergeBar = 1.5

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if len(v) == 0 {
		return 0
	}
	return v[len(v)/2]
}

// report returns the results in Markdown.
func (b *bench) report(name string) string {
	var s strings.Builder
	fmt.Fprintf(&s, "# gRPC service, size %s\n\n", name)
	fmt.Fprintf(&s, "%d processors, shared by client and server; values of %d bytes, keys of %d, %d keys; %d rounds of %s, interleaved; medians.\n",
		runtime.NumCPU(), valueBytes, keyBytes, b.size.keys, b.size.rounds, b.size.each)
	s.WriteString("Batches have 64 items; their rate is in items, their latency that of the batch. All writes are durable when answered.\n")
	s.WriteString("CPU is that of client and server together, per operation; calibration is the time of a fixed loop just before.\n\n")
	s.WriteString("| server and request | in flight | per second | p50 | p99 | CPU | calibration |\n|---|---|---|---|---|---|---|\n")
	for _, r := range b.rows {
		for _, depth := range b.size.depths {
			b.reportCell(&s, cell{r.name, depth})
		}
	}
	s.WriteString("\n| bar | in flight | ratio | wanted | |\n|---|---|---|---|---|\n")
	for _, x := range bars {
		for _, depth := range x.depths {
			ratios := b.ratios(cell{x.a, depth}, cell{x.b, depth})
			if len(ratios) == 0 {
				continue
			}
			fmt.Fprintf(&s, "| %s | %d | %.2f | ≥ %.2f | %s |\n", x.what, depth, median(ratios), x.least, verdict(median(ratios) >= x.least))
		}
	}
	b.reportMerges(&s)
	return s.String()
}

func verdict(ok bool) string {
	if ok {
		return "met"
	}
	return "**missed**"
}

// ratios returns a/b of each round.
func (b *bench) ratios(x, y cell) (out []float64) {
	for i := range min(len(b.results[x]), len(b.results[y])) {
		out = append(out, b.results[x][i].rate/b.results[y][i].rate)
	}
	return out
}

func (b *bench) reportCell(s *strings.Builder, c cell) {
	var rates, cpus, calibrations []float64
	h := &histogram{}
	for _, x := range b.results[c] {
		rates = append(rates, x.rate)
		cpus = append(cpus, x.cpu.Seconds())
		calibrations = append(calibrations, x.calibration.Seconds())
		h.merge(x.latency)
	}
	fmt.Fprintf(s, "| %s | %d | %.0f | %s | %s | %s | %.1f ms |\n", c.row, c.depth, median(rates),
		micros(h.quantile(0.5)), micros(h.quantile(0.99)), micros(time.Duration(median(cpus)*1e9)), 1e3*median(calibrations))
}

func (b *bench) reportMerges(s *strings.Builder) {
	if len(b.merges) == 0 {
		return
	}
	fmt.Fprintf(s, "\nReads of values of %d bytes, %d in flight, uniform over the same keys, with and without a merge of all %d MB beside them:\n\n",
		mergeValueBytes, mergeDepth, b.size.mergeMB)
	s.WriteString("| reads of | merge | per second with | without | p50 with | without | p99 with | without | p99 with / without | wanted | |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, m := range b.merges {
		ratio, wanted, met := m.ratio(), "", ""
		if m.bar > 0 {
			wanted, met = fmt.Sprintf("≤ %.1f", m.bar), verdict(ratio <= m.bar)
		}
		fmt.Fprintf(s, "| %s | %.1f s | %.0f | %.0f | %s | %s | %s | %s | %.2f | %s | %s |\n", m.name, m.took.Seconds(), m.busyRate, m.quietRate,
			micros(m.busy.quantile(0.5)), micros(m.quiet.quantile(0.5)), micros(m.busy.quantile(0.99)), micros(m.quiet.quantile(0.99)), ratio, wanted, met)
	}
	s.WriteString("\nThe node is asked over gRPC while its compactor merges in another process; Pebble is called, and merges, in the client's process: only the two ratios compare.\n")
}

func micros(d time.Duration) string {
	if d >= 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.1f µs", float64(d)/1e3)
}
