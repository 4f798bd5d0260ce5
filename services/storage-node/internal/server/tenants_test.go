package server

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

// createTenant makes "t" known, which the helpers of these tests use.
func (w *world) createTenant(q *adminv1.TenantQuota) *adminv1.Tenant {
	w.t.Helper()
	r, err := w.admin.CreateTenant(w.t.Context(), &adminv1.CreateTenantRequest{Name: "t", Quota: q})
	require.NoError(w.t, err)
	return r.GetTenant()
}

// everyCall makes each call of the storage service for tenant "t" once, and returns their errors.
func (w *world) everyCall() map[string]error {
	ctx := w.t.Context()
	out := map[string]error{}
	_, out["write"] = w.storage.Write(ctx, &storagev1.WriteRequest{Tenant: "t", Key: "k", Value: []byte("v")})
	_, out["delete"] = w.storage.Delete(ctx, &storagev1.DeleteRequest{Tenant: "t", Key: "k"})
	_, out["repair"] = w.storage.Repair(ctx, &storagev1.RepairRequest{Record: &datav1.Record{Tenant: "t", Key: "k", Siblings: []*datav1.Sibling{
		{Dot: &datav1.ClockEntry{NodeId: "x", Counter: 1}, Value: []byte("r"), Timestamp: 5}}}})
	_, out["batch write"] = w.storage.BatchWrite(ctx, &storagev1.BatchWriteRequest{Tenant: "t", Ops: []*storagev1.BatchOp{
		{Key: "k", Op: &storagev1.BatchOp_Put{Put: &storagev1.PutOp{Value: []byte("v")}}}}})
	_, out["read"] = w.storage.Read(ctx, &storagev1.ReadRequest{Tenant: "t", Key: "k"})
	_, out["batch read"] = w.storage.BatchRead(ctx, &storagev1.BatchReadRequest{Tenant: "t", Keys: []string{"k"}})
	_, out["key range"] = w.storage.GetKeyRange(ctx, &storagev1.GetKeyRangeRequest{Tenant: "t"})
	stream, err := w.storage.StreamKeys(ctx, &storagev1.StreamKeysRequest{Tenant: "t"})
	for err == nil {
		_, err = stream.Recv()
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	out["stream"] = err
	return out
}

// What an operator sets is what the list says, and what was dropped is gone.
func TestTenantsOverTheWire(t *testing.T) {
	w := start(t)
	ctx := t.Context()
	q := &adminv1.TenantQuota{OperationsPerSecond: 1000, BytesPerSecond: 2000, InFlight: 3, StoredBytes: 4000}
	created := w.createTenant(q)
	require.Equal(t, "t", created.GetName())
	require.EqualValues(t, 1, created.GetGeneration())
	require.Equal(t, adminv1.TenantState_TENANT_STATE_ACTIVE, created.GetState())
	require.Equal(t, adminv1.ConflictPolicy_CONFLICT_POLICY_KEEP_SIBLINGS, created.GetConflicts())
	require.Equal(t, q.String(), created.GetQuota().String())
	require.InDelta(t, time.Now().Unix(), created.GetCreatedAt(), 60)
	require.Equal(t, created.String(), w.createTenant(q).String(), "a repeat changes nothing")
	w.put("k", "v")

	updated, err := w.admin.UpdateTenant(ctx, &adminv1.UpdateTenantRequest{Name: "t", Conflicts: adminv1.ConflictPolicy_CONFLICT_POLICY_LAST_WRITER_WINS})
	require.NoError(t, err)
	require.Equal(t, q.String(), updated.GetTenant().GetQuota().String())
	require.Equal(t, adminv1.ConflictPolicy_CONFLICT_POLICY_LAST_WRITER_WINS, updated.GetTenant().GetConflicts())
	updated, err = w.admin.UpdateTenant(ctx, &adminv1.UpdateTenantRequest{Name: "t", Quota: &adminv1.TenantQuota{}})
	require.NoError(t, err)
	require.Equal(t, (&adminv1.TenantQuota{}).String(), updated.GetTenant().GetQuota().String())
	list, err := w.admin.ListTenants(ctx, &adminv1.ListTenantsRequest{})
	require.NoError(t, err)
	require.False(t, list.GetStrict())
	require.Equal(t, updated.GetTenant().String(), list.GetTenants()[0].String())

	dropped, err := w.admin.DropTenant(ctx, &adminv1.DropTenantRequest{Name: "t"})
	require.NoError(t, err)
	require.Equal(t, adminv1.TenantState_TENANT_STATE_DROPPED, dropped.GetTenant().GetState())
	for call, err := range w.everyCall() {
		require.Equal(t, refusal{code: codes.NotFound, reason: "TENANT_NOT_FOUND"}, refused(t, err), call)
	}
	list, err = w.admin.ListTenants(ctx, &adminv1.ListTenantsRequest{})
	require.NoError(t, err)
	require.Empty(t, list.GetTenants())
	list, err = w.admin.ListTenants(ctx, &adminv1.ListTenantsRequest{IncludeDropped: true})
	require.NoError(t, err)
	require.Len(t, list.GetTenants(), 1)
	require.EqualValues(t, 2, w.createTenant(nil).GetGeneration())
	for call, err := range w.everyCall() {
		require.NoError(t, err, call)
	}
}

// Each refusal of an operator's call has its reason, and changes nothing.
func TestBadCallsForTenantsAreRefused(t *testing.T) {
	w := start(t)
	ctx := t.Context()
	w.createTenant(nil)
	create := func(r *adminv1.CreateTenantRequest) error { _, err := w.admin.CreateTenant(ctx, r); return err }
	update := func(r *adminv1.UpdateTenantRequest) error { _, err := w.admin.UpdateTenant(ctx, r); return err }
	drop := func(name string) error {
		_, err := w.admin.DropTenant(ctx, &adminv1.DropTenantRequest{Name: name})
		return err
	}
	for i, c := range []struct {
		err    error
		code   codes.Code
		reason string
	}{
		{create(&adminv1.CreateTenantRequest{Name: "t", Quota: &adminv1.TenantQuota{InFlight: 1}}), codes.AlreadyExists, "TENANT_EXISTS"},
		{create(&adminv1.CreateTenantRequest{Name: ""}), codes.InvalidArgument, "INVALID_ARGUMENT_TENANT"},
		{create(&adminv1.CreateTenantRequest{Name: strings.Repeat("t", 257)}), codes.InvalidArgument, "INVALID_ARGUMENT_TENANT"},
		{create(&adminv1.CreateTenantRequest{Name: "_tenants"}), codes.InvalidArgument, "INVALID_ARGUMENT_TENANT"},
		{create(&adminv1.CreateTenantRequest{Name: "u", Quota: &adminv1.TenantQuota{StoredBytes: -1}}), codes.InvalidArgument, "INVALID_ARGUMENT_QUOTA"},
		{create(&adminv1.CreateTenantRequest{Name: "u", Conflicts: 9}), codes.InvalidArgument, "INVALID_ARGUMENT_CONFLICT_POLICY"},
		{update(&adminv1.UpdateTenantRequest{Name: "t"}), codes.InvalidArgument, "INVALID_ARGUMENT_UPDATE"},
		{update(&adminv1.UpdateTenantRequest{Name: "t", Conflicts: -1}), codes.InvalidArgument, "INVALID_ARGUMENT_CONFLICT_POLICY"},
		{update(&adminv1.UpdateTenantRequest{Name: "u", Quota: &adminv1.TenantQuota{}}), codes.NotFound, "TENANT_NOT_FOUND"},
		{drop("u"), codes.NotFound, "TENANT_NOT_FOUND"},
		{drop("a:b"), codes.InvalidArgument, "INVALID_ARGUMENT_TENANT"},
	} {
		require.Equal(t, refusal{code: c.code, reason: c.reason}, refused(t, c.err), "case %d", i)
	}
	list, err := w.admin.ListTenants(ctx, &adminv1.ListTenantsRequest{IncludeDropped: true})
	require.NoError(t, err)
	require.Len(t, list.GetTenants(), 1)

	w = start(t, func(w *world, _ *Options) { w.phase = StateRecovering })
	_, err = w.admin.ListTenants(ctx, &adminv1.ListTenantsRequest{})
	require.Equal(t, "RECOVERING", refused(t, err).reason)
	for _, err := range []error{create(&adminv1.CreateTenantRequest{Name: "t"}), update(&adminv1.UpdateTenantRequest{Name: "t"}), drop("t")} {
		require.Equal(t, "RECOVERING", refused(t, err).reason)
	}
}

// A strict node answers nobody that it does not know.
func TestStrictNodeRefusesUnknownTenants(t *testing.T) {
	w := start(t, func(w *world, _ *Options) { w.tenantOptions.Strict = true })
	for call, err := range w.everyCall() {
		require.Equal(t, refusal{code: codes.NotFound, reason: "TENANT_NOT_FOUND"}, refused(t, err), call)
	}
	s := pipe(t, t.Context(), w)
	send(t, s, putOp(1, "k", "v"), readOp(2, "k"))
	for _, r := range take(t, s, 2) {
		require.Equal(t, "TENANT_NOT_FOUND", r.GetError().GetReason())
	}
	w.createTenant(nil)
	for call, err := range w.everyCall() {
		require.NoError(t, err, call)
	}
	send(t, s, putOp(3, "k", "v"), readOp(4, "k"))
	for _, r := range take(t, s, 2) {
		require.Nil(t, r.GetError())
	}
	list, err := w.admin.ListTenants(t.Context(), &adminv1.ListTenantsRequest{})
	require.NoError(t, err)
	require.True(t, list.GetStrict())
}

// A client that is over its quota learns which, and when to come back; operations of a pipeline one
// by one.
func TestQuotaRefusalsSayWhichAndWhen(t *testing.T) {
	var elapsed atomic.Int64 // who waits moves the clock
	w := start(t, func(w *world, _ *Options) {
		w.tenantOptions.Now = func() time.Time { return time.Unix(1_700_000_000, elapsed.Load()) }
		w.tenantOptions.After = func(d time.Duration) <-chan time.Time {
			elapsed.Add(int64(d))
			fired := make(chan time.Time)
			close(fired)
			return fired
		}
	})
	w.createTenant(&adminv1.TenantQuota{OperationsPerSecond: 2})
	s := pipe(t, t.Context(), w)
	send(t, s, putOp(1, "k", "v"), readOp(2, "k"))
	for _, r := range take(t, s, 2) {
		require.Nil(t, r.GetError())
	}
	for call, err := range w.everyCall() {
		if call == "stream" {
			require.NoError(t, err) // the last call: it waits for its quota instead
			continue
		}
		require.Equal(t, refusal{codes.ResourceExhausted, "QUOTA_EXCEEDED", 500 * time.Millisecond}, refused(t, err), call)
		for _, d := range status.Convert(err).Details() {
			if info, ok := d.(*errdetails.ErrorInfo); ok {
				require.Equal(t, map[string]string{"retryable": "true", "quota": "operations_per_second", "limit": "2"}, info.GetMetadata())
			}
		}
	}
	send(t, s, putOp(3, "k", "v"), putOp(4, "l", "v"), readOp(5, "k"))
	for _, r := range take(t, s, 3) {
		require.Equal(t, "QUOTA_EXCEEDED", r.GetError().GetReason())
		require.Equal(t, int32(codes.ResourceExhausted), r.GetError().GetCode())
		require.Positive(t, r.GetError().GetRetryAfterMs())
	}
}

// A drop whose caller does not wait for it goes on being one.
func TestDropThatRunsOutOfTime(t *testing.T) {
	w := start(t)
	w.createTenant(nil)
	entered, leave := make(chan struct{}), make(chan struct{})
	w.engine.set(func(f *fakeEngine) {
		f.hook = func() {
			f.set(func(f *fakeEngine) { f.hook = nil })
			close(entered)
			<-leave
		}
	})
	read := make(chan error, 1)
	go func() {
		_, err := w.storage.Read(t.Context(), &storagev1.ReadRequest{Tenant: "t", Key: "k"})
		read <- err
	}()
	<-entered
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := w.admin.DropTenant(ctx, &adminv1.DropTenantRequest{Name: "t"})
	require.Equal(t, codes.DeadlineExceeded, status.Code(err))
	_, err = w.admin.CreateTenant(t.Context(), &adminv1.CreateTenantRequest{Name: "t"})
	require.Equal(t, refusal{codes.FailedPrecondition, "TENANT_DROPPING", time.Second}, refused(t, err))
	close(leave)
	require.NoError(t, <-read)
	_, err = w.admin.DropTenant(t.Context(), &adminv1.DropTenantRequest{Name: "t"})
	require.NoError(t, err)

	w.createTenant(nil)
	w.engine.set(func(f *fakeEngine) { f.fail = errors.New("broken") })
	_, err = w.admin.DropTenant(t.Context(), &adminv1.DropTenantRequest{Name: "t"})
	require.Equal(t, codes.Internal, refused(t, err).code)
}
