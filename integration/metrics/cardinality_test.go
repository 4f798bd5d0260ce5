package metrics

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/localpod"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

// countSeries counts the lines of an endpoint that are numbers.
func countSeries(t *testing.T, addr string) int {
	t.Helper()
	text, err := podtest.Page(t.Context(), addr)
	require.NoError(t, err)
	n := 0
	for line := range bytes.Lines(text) {
		if len(bytes.TrimSpace(line)) > 0 && line[0] != '#' {
			n++
		}
	}
	return n
}

func TestCallersCannotMakeSeries(t *testing.T) {
	// Each series costs the monitoring a few KiB for hours: whoever can make them with a name of his own
	// can end it.
	const (
		strangers, known, named = 5000, 60, 20
		unknownMethods          = 1000
		// A node that was just started has about this many, four fifths of them buckets; and each named
		// tenant has nine.
		bound = 2500
	)
	pods, _ := podtest.Start(t, localpod.Options{NoCompactor: true, Env: []string{fmt.Sprint("PAIRDB_TENANT_METRICS=", named)}})
	pod := pods.All()[0]
	conn, err := grpc.NewClient(pod.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	storage, admin := storagev1.NewStorageServiceClient(conn), adminv1.NewAdminServiceClient(conn)
	before := countSeries(t, pod.OpsAddr)

	for i := range known {
		_, err := admin.CreateTenant(t.Context(), &adminv1.CreateTenantRequest{Name: fmt.Sprint("known-", i)})
		require.NoError(t, err)
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := next.Add(1); i <= strangers; i = next.Add(1) {
				r := &storagev1.ReadRequest{Tenant: fmt.Sprint("stranger-", i), Key: fmt.Sprint(rand.Uint64())}
				if i%50 == 0 {
					r.Tenant = fmt.Sprint("known-", i/50%known)
				}
				if _, err := storage.Read(t.Context(), r); err != nil {
					t.Errorf("read: %v", err)
				}
				if i > unknownMethods {
					continue
				}
				err := conn.Invoke(t.Context(), fmt.Sprintf("/made.up.v%d/Method%d", i, i), &emptypb.Empty{}, &emptypb.Empty{})
				if status.Code(err) != codes.Unimplemented {
					t.Errorf("unknown method: %v", err)
				}
			}
		})
	}
	wg.Wait()
	after := countSeries(t, pod.OpsAddr)
	t.Logf("series: %d before, %d after %d tenants and %d made-up methods", before, after, strangers+known, unknownMethods)
	require.LessOrEqual(t, after, bound)
	const perTenant = 9
	require.LessOrEqual(t, after-before, named*perTenant+20, "the named tenants, and codes that methods ended with for the first time")
	h := newHistory(pod)
	h.look(t.Context())
	require.Len(t, h.of("pairdb_tenant_requests_total", ""), named+1)
	require.InDelta(t, unknownMethods, h.of("pairdb_grpc_requests_total", "method=other,code=Unimplemented")[0].value, 0)
}
