package node

import (
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

// served are the services whose methods have numbers of their own.
var served = []grpc.ServiceDesc{
	storagev1.StorageService_ServiceDesc, storagenodev1.StorageNodeService_ServiceDesc, adminv1.AdminService_ServiceDesc,
	compactionv1.CompactionService_ServiceDesc, migrationv1.MigrationService_ServiceDesc, replicav1.ReplicaService_ServiceDesc,
	nodev1.NodeService_ServiceDesc, healthv1.Health_ServiceDesc,
}

// otherCalls is the label of all methods that are not served: what callers make up must not become
// series.
const otherCalls = "other"

// callCounts counts calls by method and code. The methods are fixed at the start: counting is a look
// into a map and an addition. A method has the series of OK from the start, and one more for each other
// code that it ended with.
type callCounts struct {
	desc    *prometheus.Desc
	methods map[string]*methodCounts // by full name; immutable
	other   methodCounts
}

type methodCounts struct {
	service, method string
	byCode          [codes.Unauthenticated + 1]atomic.Uint64
}

func newCallCounts(labels prometheus.Labels) *callCounts {
	c := &callCounts{
		desc: prometheus.NewDesc("pairdb_grpc_requests_total",
			"Calls that ended, by method and gRPC code; errors that travelled in an answer count with theirs. Methods that are not served are \"other\".",
			[]string{"service", "method", "code"}, labels),
		methods: map[string]*methodCounts{}, other: methodCounts{service: otherCalls, method: otherCalls},
	}
	add := func(service, method string) {
		c.methods["/"+service+"/"+method] = &methodCounts{service: service, method: method}
	}
	for _, s := range served {
		for _, m := range s.Methods {
			add(s.ServiceName, m.MethodName)
		}
		for _, m := range s.Streams {
			add(s.ServiceName, m.StreamName)
		}
	}
	return c
}

// count notes the end of a call.
func (c *callCounts) count(method string, code codes.Code) {
	m, ok := c.methods[method]
	if !ok {
		m = &c.other
	}
	if int(code) >= len(m.byCode) {
		code = codes.Unknown
	}
	m.byCode[code].Add(1)
}

// Describe implements prometheus.Collector.
func (c *callCounts) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

// Collect implements prometheus.Collector.
func (c *callCounts) Collect(ch chan<- prometheus.Metric) {
	c.other.collect(c.desc, ch)
	for _, m := range c.methods {
		m.collect(c.desc, ch)
	}
}

func (m *methodCounts) collect(desc *prometheus.Desc, ch chan<- prometheus.Metric) {
	for i := range m.byCode {
		if n := m.byCode[i].Load(); n > 0 || codes.Code(i) == codes.OK {
			ch <- prometheus.MustNewConstMetric(desc, counter, float64(n), m.service, m.method, codes.Code(i).String())
		}
	}
}

// reasonCounts counts errors by reason; the set is that of the server.
type reasonCounts struct {
	byReason map[string]prometheus.Counter // immutable
	other    prometheus.Counter
}

func newReasonCounts(labels prometheus.Labels, reasons []string) (reasonCounts, prometheus.Collector) {
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "pairdb_storage_request_errors_total", ConstLabels: labels,
		Help: "Calls, items of batches and operations of pipelines that ended with an error, by its reason: docs/ERRORS.md has them, and the names of gRPC codes stand for what has none.",
	}, []string{"reason"})
	c := reasonCounts{byReason: map[string]prometheus.Counter{}, other: vec.WithLabelValues(strings.ToUpper(otherCalls))}
	for _, r := range reasons {
		c.byReason[r] = vec.WithLabelValues(r)
	}
	return c, vec
}

func (c *reasonCounts) count(reasons ...string) {
	for _, r := range reasons {
		n, ok := c.byReason[r]
		if !ok {
			n = c.other
		}
		n.Inc()
	}
}
