package node

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// nativeFactor: a native bucket is at most a tenth wider than the one below it, so that a quantile is
// right to a few percent, whatever the classic buckets are. They stay for dashboards that read those.
const nativeFactor = 1.1

// histogram returns a histogram with classic and native buckets. The native ones are made as values come,
// at most maxNativeBuckets of them; when more are needed they become wider, or begin anew after an hour.
func histogram(name, help string, labels prometheus.Labels, buckets []float64) prometheus.Histogram {
	const maxNativeBuckets = 160 // from 50 µs to 10 s there are 128
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "pairdb_" + name, Help: help, ConstLabels: labels, Buckets: buckets,
		NativeHistogramBucketFactor: nativeFactor, NativeHistogramMaxBucketNumber: maxNativeBuckets,
		NativeHistogramMinResetDuration: time.Hour,
	})
}
