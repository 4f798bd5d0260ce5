package server

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/identity"
	"github.com/pairdb/pairdb/libs/identity/authority"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// tcpServer returns a server with all that the TCP port of a node serves. Nothing behind it is open.
func tcpServer(more ...grpc.ServerOption) *grpc.Server {
	s := New(Node{State: func() (State, string) { return StateRecovering, "" }, Health: func() (bool, []string) { return false, nil },
		Vitals: func() Vitals { return Vitals{} }, Sidecars: &Sidecars{}, Level: &slog.LevelVar{}})
	g := s.GRPC(Options{Log: slog.New(slog.DiscardHandler), Timeout: time.Second, MaxInFlight: 64, Reflection: true}, health.NewServer(), more...)
	s.RegisterStorage(g)
	s.RegisterContract(g)
	s.RegisterReplica(g)
	adminv1.RegisterAdminServiceServer(g, s.Admin())
	return g
}

// served are the full names of all methods on the TCP port, and whether they are streams.
func served(g *grpc.Server) map[string]bool {
	out := map[string]bool{}
	for service, info := range g.GetServiceInfo() {
		for _, m := range info.Methods {
			out["/"+service+"/"+m.Name] = m.IsClientStream || m.IsServerStream
		}
	}
	return out
}

// A method that somebody adds and forgets here would be open to nobody; a row without a method is one
// whose method got another name, and with it other callers.
func TestEveryMethodOnTheTCPPortHasItsRoles(t *testing.T) {
	g := tcpServer()
	defer g.Stop()
	require.ElementsMatch(t, slices.Collect(maps.Keys(served(g))), slices.Collect(maps.Keys(Roles)))
	for method, roles := range Roles {
		require.NotZero(t, roles, "%s: nobody may call it", method)
	}
}

// A table that is right and not asked protects nothing. So each decision is tried over a connection with
// a certificate of the role, for every method and every role.
func TestEveryMethodIsRefusedToEveryRoleThatMayNotCallIt(t *testing.T) {
	a, err := authority.Open(t.TempDir())
	require.NoError(t, err)
	open := func(l authority.Leaf) *identity.Source {
		l.File, l.Valid = fmt.Sprintf("%s-%s", l.Cluster, strings.Join(l.Roles, "-")), time.Hour
		files, err := a.Issue(l)
		require.NoError(t, err)
		s, err := identity.Open(files, slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		return s
	}
	hosts := []string{"127.0.0.1"}
	own := open(authority.Leaf{Cluster: "c", Roles: []string{"node"}, Hosts: hosts})
	g := tcpServer(own.ServerOptions(Roles)...)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	defer func() { g.Stop(); require.NoError(t, <-done) }()

	methods := served(g)
	methods["/pairdb.storage.v1.StorageService/MadeUp"] = false
	allowed, refused := 0, 0
	for _, role := range identity.RoleNames() {
		mine, err := identity.ParseRole(role)
		require.NoError(t, err)
		conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(open(authority.Leaf{Cluster: "c", Roles: []string{role}, Hosts: hosts}).Transport()))
		require.NoError(t, err)
		for method, streams := range methods {
			code := ask(t, conn, method, streams)
			roles, known := Roles[method]
			switch {
			case !known:
				require.Equal(t, codes.Unimplemented, code, method)
			case roles&mine == 0:
				refused++
				require.Equal(t, codes.PermissionDenied, code, "%s by %s", method, role)
			default:
				allowed++
				require.NotContains(t, []codes.Code{codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented}, code, "%s by %s", method, role)
			}
		}
		require.NoError(t, conn.Close())
	}
	require.Greater(t, allowed, 60)
	require.Greater(t, refused, 150)
}

// ask makes an empty call and returns how it ended, within a second.
func ask(t *testing.T, conn *grpc.ClientConn, method string, streams bool) codes.Code {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if !streams {
		var in, out adminv1.FlushRequest // empty, as every request may be on the wire
		return status.Code(conn.Invoke(ctx, method, &in, &out))
	}
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	require.NoError(t, err)
	_ = s.SendMsg(&adminv1.FlushRequest{}) // what the server says counts
	require.NoError(t, s.CloseSend())
	err = s.RecvMsg(&adminv1.FlushRequest{})
	if err == nil || err == io.EOF {
		return codes.OK
	}
	return status.Code(err)
}

const rolesPage = "../../../../docs/ROLES.md"

const rolesHead = `# Roles

Generated from the table in [roles.go](../services/storage-node/internal/server/roles.go) by ` + "`make docs`" + `.

Who may call which method on the TCP port of a storage node, when it has a certificate: [SECURITY.md](SECURITY.md)
says how to give one to whom. What has no row is refused to everybody.

`

// Operators give certificates out by this page.
func TestRolesPageIsTheTable(t *testing.T) {
	var b strings.Builder
	b.WriteString(rolesHead + "| method | " + strings.Join(identity.RoleNames(), " | ") + " |\n|---" + strings.Repeat("|---", len(identity.RoleNames())) + "|\n")
	for _, method := range slices.Sorted(maps.Keys(Roles)) {
		fmt.Fprintf(&b, "| `%s` |", strings.TrimPrefix(method, "/"))
		for i := range identity.RoleNames() {
			mark := "–"
			if Roles[method]&(1<<i) != 0 {
				mark = "yes"
			}
			fmt.Fprintf(&b, " %s |", mark)
		}
		b.WriteByte('\n')
	}
	if *update {
		require.NoError(t, os.WriteFile(rolesPage, []byte(b.String()), 0o644))
	}
	page, err := os.ReadFile(rolesPage)
	require.NoError(t, err)
	require.Equal(t, b.String(), string(page), "run `make docs`")
}
