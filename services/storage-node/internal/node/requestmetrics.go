package node

import (
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
)

// requestMetrics count calls as they end. All children are made at the start: recording is a few
// atomic adds and no map.
type requestMetrics struct {
	write, read, repair, other requestKind
	// coordinated counts writes of existing coordinators by what they did. A dominated one is stale.
	coordinated [storagev1.Outcome_OUTCOME_SIBLING + 1]prometheus.Counter
	calls       *callCounts
	reasons     reasonCounts
	// readBatch and writeBatch are the sizes of batches, readPipelined and writePipelined operations of
	// pipelines.
	readBatch, writeBatch         prometheus.Observer
	readPipelined, writePipelined prometheus.Counter
	collectors                    []prometheus.Collector
}

// requestKind is the metrics of one kind of call.
type requestKind struct {
	success, rejected, failed prometheus.Counter
	duration                  prometheus.Observer
	bytes                     prometheus.Observer
	items                     prometheus.Counter
}

var (
	// From a cached read (50 µs with the wire) to a stalled disk.
	durationBuckets = prometheus.ExponentialBucketsRange(50e-6, 10, 20)
	// From a small value to the largest batch.
	sizeBuckets = prometheus.ExponentialBuckets(64, 4, 10)
)

func newRequestMetrics(labels prometheus.Labels) *requestMetrics {
	m := &requestMetrics{}
	m.write = m.kind(labels, "write", "Writes, deletes and batches of them")
	m.read = m.kind(labels, "read", "Reads, batches of them, and pages of keys")
	m.repair = m.kind(labels, "repair", "Repairs")
	m.other = m.kind(labels, "other", "Calls of operators and sidecars, and streams")
	coordinated := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "pairdb_coordinator_writes_total", ConstLabels: labels,
		Help: "Acknowledged writes and deletes of existing coordinators, by outcome: applied, duplicate, stale (dominated by what was there: nothing changed), sibling (kept beside a concurrent one).",
	}, []string{"outcome"})
	for outcome, name := range []string{"", "applied", "duplicate", "stale", "sibling"} {
		if name != "" {
			m.coordinated[outcome] = coordinated.WithLabelValues(name)
		}
	}
	m.calls = newCallCounts(labels)
	reasons, errorsTotal := newReasonCounts(labels, server.Reasons())
	m.reasons = reasons
	m.collectors = append(m.collectors, coordinated, m.calls, errorsTotal)
	m.addMany(labels)
	return m
}

// addMany makes the metrics of requests with many keys.
func (m *requestMetrics) addMany(labels prometheus.Labels) {
	batches := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "pairdb_storage_batch_items", ConstLabels: labels, Buckets: prometheus.ExponentialBuckets(1, 4, 6), // to 1,024
		Help: "Keys of a batch, by kind: read, write.",
	}, []string{"kind"})
	m.readBatch, m.writeBatch = batches.WithLabelValues("read"), batches.WithLabelValues("write")
	pipelined := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "pairdb_storage_pipeline_operations_total", ConstLabels: labels,
		Help: "Operations of pipelines that ended, well or not, by kind: read, write.",
	}, []string{"kind"})
	m.readPipelined, m.writePipelined = pipelined.WithLabelValues("read"), pipelined.WithLabelValues("write")
	m.collectors = append(m.collectors, batches, pipelined)
}

func (m *requestMetrics) kind(labels prometheus.Labels, name, what string) requestKind {
	prefix := "pairdb_storage_" + name + "_"
	total := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: prefix + "requests_total", ConstLabels: labels,
		Help: what + ", operations of pipelines one by one, by result: success, rejected (the caller's fault, or told to come back), error.",
	}, []string{"result"})
	duration := histogram("storage_"+name+"_requests_duration_seconds",
		what+": time from the decoded request to the answer; for writes of a pipeline until they are durable.", labels, durationBuckets)
	m.collectors = append(m.collectors, total, duration)
	k := requestKind{
		success: total.WithLabelValues("success"), rejected: total.WithLabelValues("rejected"),
		failed: total.WithLabelValues("error"), duration: duration,
	}
	if name == "write" || name == "read" {
		bytes := prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: prefix + "requests_bytes", ConstLabels: labels, Buckets: sizeBuckets,
			Help: what + ": bytes of values in a request or in a message of a pipeline.",
		})
		items := prometheus.NewCounter(prometheus.CounterOpts{
			Name: prefix + "items_total", ConstLabels: labels, Help: what + ": keys, each item of a batch counted.",
		})
		m.collectors = append(m.collectors, bytes, items)
		k.bytes, k.items = bytes, items
	}
	return k
}

// observe records a call that is over.
func (m *requestMetrics) observe(c server.Call) {
	m.calls.count(c.Method, c.Code)
	if c.Code != codes.OK {
		m.reasons.count(c.Reason)
	}
	k, bytes, items := m.classify(c)
	switch c.Code {
	case codes.OK:
		k.success.Inc()
	case codes.Internal, codes.DataLoss, codes.Unknown, codes.Unavailable, codes.DeadlineExceeded:
		k.failed.Inc()
	default:
		k.rejected.Inc()
	}
	switch r := c.Response.(type) {
	case *storagenodev1.WriteResponse:
		m.countOutcome(r.GetOutcome())
	case *storagenodev1.DeleteResponse:
		m.countOutcome(r.GetOutcome())
	case *storagev1.BatchWriteResponse:
		m.writeBatch.Observe(float64(items))
		for _, item := range r.GetResults() {
			if e := item.GetError(); e != nil {
				m.reasons.count(e.GetReason())
			}
		}
	case *server.Encoded:
		m.reasons.count(r.Reasons...)
		if _, ok := c.Request.(*storagev1.BatchReadRequest); ok {
			m.readBatch.Observe(float64(items))
		}
	}
	k.duration.Observe(c.Took.Seconds())
	if k.bytes != nil && c.Code == codes.OK {
		k.bytes.Observe(float64(bytes))
		k.items.Add(float64(items))
	}
}

// countOutcome counts a write of a coordinator; one that failed has no outcome.
func (m *requestMetrics) countOutcome(o storagev1.Outcome) {
	if o != storagev1.Outcome_OUTCOME_UNSPECIFIED {
		m.coordinated[o].Inc()
	}
}

// pipelined records the operations of a message of a pipeline: each counts as a request.
func (m *requestMetrics) pipelined(p server.Pipelined) {
	m.reasons.count(p.Reasons...)
	m.readPipelined.Add(float64(len(p.ReadTook)))
	m.read.add(p.Reads, p.RejectedReads, p.FailedReads, p.ReadBytes)
	for _, took := range p.ReadTook {
		m.read.duration.Observe(took.Seconds())
	}
	m.write.add(p.Writes, p.RejectedWrites, p.FailedWrites, p.WriteBytes)
	writes := p.Writes + p.RejectedWrites + p.FailedWrites
	m.writePipelined.Add(float64(writes))
	for range writes {
		m.write.duration.Observe(p.WriteTook.Seconds())
	}
}

func (k *requestKind) add(success, rejected, failed, bytes int) {
	if success > 0 {
		k.success.Add(float64(success))
		k.items.Add(float64(success))
		k.bytes.Observe(float64(bytes))
	}
	if rejected > 0 {
		k.rejected.Add(float64(rejected))
	}
	if failed > 0 {
		k.failed.Add(float64(failed))
	}
}

// classify returns the kind of a call, with the bytes of its values and its number of keys.
func (m *requestMetrics) classify(c server.Call) (k *requestKind, bytes, items int) {
	switch r := c.Request.(type) {
	case *storagev1.WriteRequest:
		return &m.write, len(r.GetValue()), 1
	case *storagev1.DeleteRequest:
		return &m.write, 0, 1
	case *storagev1.BatchWriteRequest:
		for _, op := range r.GetOps() {
			bytes += len(op.GetPut().GetValue())
		}
		return &m.write, bytes, len(r.GetOps())
	case *storagev1.ReadRequest:
		if resp, ok := c.Response.(*server.Encoded); ok {
			bytes = resp.ValueBytes
		}
		return &m.read, bytes, 1
	case *storagev1.BatchReadRequest:
		if resp, ok := c.Response.(*server.Encoded); ok {
			bytes = resp.ValueBytes
		}
		return &m.read, bytes, len(r.GetKeys())
	case *storagev1.GetKeyRangeRequest:
		if resp, ok := c.Response.(*storagev1.GetKeyRangeResponse); ok {
			items = len(resp.GetKeys())
		}
		return &m.read, 0, items
	case *storagev1.RepairRequest:
		return &m.repair, 0, 1
	}
	return m.classifyCoordinated(c)
}

// classifyCoordinated is classify for the calls of existing coordinators.
func (m *requestMetrics) classifyCoordinated(c server.Call) (k *requestKind, bytes, items int) {
	switch r := c.Request.(type) {
	case *storagenodev1.WriteRequest:
		return &m.write, len(r.GetValue()), 1
	case *storagenodev1.DeleteRequest:
		return &m.write, 0, 1
	case *storagenodev1.ReadRequest:
		if resp, ok := c.Response.(*storagenodev1.ReadResponse); ok {
			bytes = len(resp.GetValue())
		}
		return &m.read, bytes, 1
	case *storagenodev1.GetKeyRangeRequest:
		if resp, ok := c.Response.(*storagenodev1.GetKeyRangeResponse); ok {
			items = len(resp.GetKeys())
		}
		return &m.read, 0, items
	case *storagenodev1.RepairRequest:
		return &m.repair, 0, 1
	}
	return &m.other, 0, 0
}
