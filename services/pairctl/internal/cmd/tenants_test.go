package cmd

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// fakeAdmin remembers what it was asked.
type fakeAdmin struct {
	adminv1.UnimplementedAdminServiceServer
	list    *adminv1.ListTenantsResponse
	created *adminv1.CreateTenantRequest
	updated *adminv1.UpdateTenantRequest
	dropped []string
	err     error
}

func (f *fakeAdmin) CreateTenant(_ context.Context, r *adminv1.CreateTenantRequest) (*adminv1.CreateTenantResponse, error) {
	f.created = r
	return &adminv1.CreateTenantResponse{Tenant: &adminv1.Tenant{Name: r.GetName(), Generation: 1}}, f.err
}

func (f *fakeAdmin) UpdateTenant(_ context.Context, r *adminv1.UpdateTenantRequest) (*adminv1.UpdateTenantResponse, error) {
	f.updated = r
	return &adminv1.UpdateTenantResponse{Tenant: &adminv1.Tenant{Name: r.GetName(), Generation: 1}}, f.err
}

func (f *fakeAdmin) DropTenant(_ context.Context, r *adminv1.DropTenantRequest) (*adminv1.DropTenantResponse, error) {
	f.dropped = append(f.dropped, r.GetName())
	return &adminv1.DropTenantResponse{Tenant: &adminv1.Tenant{Name: r.GetName(), Generation: 1}}, f.err
}

func (f *fakeAdmin) ListTenants(_ context.Context, r *adminv1.ListTenantsRequest) (*adminv1.ListTenantsResponse, error) {
	out := &adminv1.ListTenantsResponse{Strict: f.list.GetStrict()}
	for _, t := range f.list.GetTenants() {
		if r.GetIncludeDropped() || t.GetState() != adminv1.TenantState_TENANT_STATE_DROPPED {
			out.Tenants = append(out.Tenants, t)
		}
	}
	return out, nil
}

// ctl runs pairctl against f and returns its exit code and streams.
func ctl(t *testing.T, f *fakeAdmin, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := grpc.NewServer()
	adminv1.RegisterAdminServiceServer(s, f)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() {
		s.Stop()
		<-served // stopped, maybe before it began
	}()
	var out, errs bytes.Buffer
	code = Run(t.Context(), append(args, "--addr", l.Addr().String()), Streams{In: strings.NewReader(""), Out: &out, Err: &errs})
	return code, out.String(), errs.String()
}

// A size with a unit that is read wrongly is a quota that nobody wanted.
func TestTenantsCreateSendsWhatWasSaid(t *testing.T) {
	f := &fakeAdmin{}
	code, out, _ := ctl(t, f, "tenants", "create", "shop", "--operations-per-second", "1000", "--bytes-per-second", "10MiB",
		"--in-flight", "20", "--stored-bytes", "3 GiB", "--conflicts", "last-writer-wins")
	require.Equal(t, exitOK, code)
	require.Equal(t, "created shop, generation 1\n", out)
	require.Equal(t, (&adminv1.CreateTenantRequest{
		Name:      "shop",
		Quota:     &adminv1.TenantQuota{OperationsPerSecond: 1000, BytesPerSecond: 10 << 20, InFlight: 20, StoredBytes: 3 << 30},
		Conflicts: adminv1.ConflictPolicy_CONFLICT_POLICY_LAST_WRITER_WINS,
	}).String(), f.created.String())

	code, out, _ = ctl(t, f, "tenants", "create", "my shop", "-o", "json")
	require.Equal(t, exitOK, code)
	require.Contains(t, out, `"my shop"`)
	require.Equal(t, (&adminv1.CreateTenantRequest{Name: "my shop", Quota: &adminv1.TenantQuota{}}).String(), f.created.String())
}

func TestTenantsUpdateChangesWhatWasGivenAlone(t *testing.T) {
	f := &fakeAdmin{list: &adminv1.ListTenantsResponse{Tenants: []*adminv1.Tenant{
		{Name: "other", Quota: &adminv1.TenantQuota{InFlight: 9}},
		{Name: "shop", Quota: &adminv1.TenantQuota{OperationsPerSecond: 1, BytesPerSecond: 2, InFlight: 3, StoredBytes: 4}},
	}}}
	code, out, _ := ctl(t, f, "tenants", "update", "shop", "--bytes-per-second", "1KiB", "--in-flight", "0")
	require.Equal(t, exitOK, code)
	require.Equal(t, "updated shop, generation 1\n", out)
	require.Equal(t, (&adminv1.UpdateTenantRequest{
		Name: "shop", Quota: &adminv1.TenantQuota{OperationsPerSecond: 1, BytesPerSecond: 1024, StoredBytes: 4},
	}).String(), f.updated.String())
	code, _, _ = ctl(t, f, "tenants", "update", "shop", "--conflicts", "keep-siblings")
	require.Equal(t, exitOK, code)
	require.Equal(t, adminv1.ConflictPolicy_CONFLICT_POLICY_KEEP_SIBLINGS, f.updated.GetConflicts())
	require.EqualValues(t, 3, f.updated.GetQuota().GetInFlight())
}

// One mistyped word must not remove the data of a tenant.
func TestTenantsDropWantsTheNameTwice(t *testing.T) {
	f := &fakeAdmin{}
	for _, args := range [][]string{
		{"tenants", "drop", "shop"}, {"tenants", "drop", "shop", "--yes", "shop2"}, {"tenants", "drop", "--yes", "shop"},
		{"tenants", "drop"}, {"tenants", "drop", "shop", "--yes"},
	} {
		code, _, _ := ctl(t, f, args...)
		require.Equal(t, exitUsage, code, args)
		require.Empty(t, f.dropped)
	}
	_, _, stderr := ctl(t, f, "tenants", "drop", "shop")
	require.Contains(t, stderr, "confirm with --yes shop")
	code, out, _ := ctl(t, f, "tenants", "drop", "shop", "--yes", "shop")
	require.Equal(t, exitOK, code)
	require.Equal(t, "dropped shop, generation 1\n", out)
	require.Equal(t, []string{"shop"}, f.dropped)
}

func TestTenantsListShowsLimitsAndUse(t *testing.T) {
	f := &fakeAdmin{list: &adminv1.ListTenantsResponse{Strict: true, Tenants: []*adminv1.Tenant{
		{Name: "free \u202e", Generation: 1, State: adminv1.TenantState_TENANT_STATE_ACTIVE, Conflicts: adminv1.ConflictPolicy_CONFLICT_POLICY_LAST_WRITER_WINS, CreatedAt: 1_700_000_000},
		{Name: "gone", Generation: 3, State: adminv1.TenantState_TENANT_STATE_DROPPED, Conflicts: adminv1.ConflictPolicy_CONFLICT_POLICY_KEEP_SIBLINGS},
		{Name: "shop", Generation: 2, State: adminv1.TenantState_TENANT_STATE_ACTIVE, Conflicts: adminv1.ConflictPolicy_CONFLICT_POLICY_KEEP_SIBLINGS, StoredBytes: 1 << 20, InFlight: 2,
			Quota: &adminv1.TenantQuota{OperationsPerSecond: 1000, BytesPerSecond: 10 << 20, InFlight: 20, StoredBytes: 3 << 30}, CreatedAt: 1_700_000_000},
	}}}
	code, out, _ := ctl(t, f, "tenants", "list")
	require.Equal(t, exitOK, code)
	require.Equal(t, `tenant         state   generation  conflicts         operations/s  bytes/s  in flight  stored        created
"free \u202e"  active  1           last-writer-wins  -             -        0 of -     0B of -       2023-11-14T22:13:20Z
shop           active  2           keep-siblings     1000          10MiB    2 of 20    1MiB of 3GiB  2023-11-14T22:13:20Z
all others are refused (PAIRDB_TENANTS=strict)
`, out)
	_, out, _ = ctl(t, f, "tenants", "list", "--dropped")
	require.Contains(t, out, "gone")
	_, out, _ = ctl(t, f, "tenants", "list", "-o", "json")
	require.Contains(t, out, `"strict":true`)
}

func TestTenantsHelpAndErrorsSayWhatToDo(t *testing.T) {
	f := &fakeAdmin{}
	for _, args := range [][]string{{"tenants"}, {"tenants", "--help"}} {
		code, out, _ := ctl(t, f, args...)
		require.Equal(t, exitOK, code)
		for _, name := range []string{"list", "create", "update", "drop"} {
			require.Contains(t, out, "\n  "+name)
		}
	}
	for _, args := range [][]string{
		{"tenants", "rename"}, {"tenants", "create"}, {"tenants", "create", "a", "b"}, {"tenants", "create", "a", "--conflicts", "unspecified"},
		{"tenants", "create", "a", "--bytes-per-second", "10MB"}, {"tenants", "create", "a", "--bytes-per-second", "-1"},
		{"tenants", "create", "a", "--in-flight", "many"}, {"tenants", "create", "a", "--in-flight", "4294967296"},
		{"tenants", "update", "a"}, {"tenants", "update", "a", "--conflicts", "?"}, {"tenants", "list", "a"},
	} {
		code, _, stderr := ctl(t, f, args...)
		require.Equal(t, exitUsage, code, "%v: %s", args, stderr)
		require.NotEmpty(t, stderr)
		require.Nil(t, f.created)
		require.Nil(t, f.updated)
	}
	for code, want := range map[codes.Code]int{codes.NotFound: exitNotFound, codes.InvalidArgument: exitInvalid, codes.AlreadyExists: exitFailed} {
		f.err = status.Error(code, "because")
		got, _, stderr := ctl(t, f, "tenants", "create", "a")
		require.Equal(t, want, got)
		require.Contains(t, stderr, "because")
	}
}
