package security

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/localpod"
)

// tool runs pairctl in a directory, with an environment beside that of the test.
func tool(t *testing.T, dir string, env []string, args ...string) (out string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(podtest.Binaries(t), "pairctl"), args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	b, _ := cmd.CombinedOutput() // the code says it
	return string(b), cmd.ProcessState.ExitCode()
}

// A client reaches what its token names, and nothing else, by the tools that make it; a coordinator needs none, and a
// key that was taken away counts no more.
func TestTokenOpensItsTenantsOnly(t *testing.T) {
	dir := t.TempDir()
	keygen := func(name string) string {
		t.Helper()
		out, code := tool(t, dir, nil, "token", "keygen", "--dir", name)
		require.Zero(t, code, out)
		return filepath.Join(dir, name, "token.pub")
	}
	first := keygen("first")
	info, err := os.Stat(filepath.Join(dir, "first", "token.key"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	out, code := tool(t, dir, nil, "token", "keygen", "--dir", "first")
	require.NotZero(t, code, "a key is not replaced")
	require.Contains(t, out, "exists")

	keys := filepath.Join(dir, "keys.pem")
	install := func(paths ...string) {
		t.Helper()
		var all []byte
		for _, p := range paths {
			b, err := os.ReadFile(p)
			require.NoError(t, err)
			all = append(all, b...)
		}
		require.NoError(t, os.WriteFile(keys+".new", all, 0o600))
		require.NoError(t, os.Rename(keys+".new", keys))
	}
	install(first)
	pods, log := podtest.Start(t, localpod.Options{Secure: true, NoHealthAgent: true, NoMigrator: true, NoCompactor: true, Env: []string{"PAIRDB_TOKEN_KEYS=" + keys}})
	pod := pods.All()[0]
	files := pods.Files("client")
	env := append(environment(files), "PAIRDB_ADDR="+pod.Addr)
	issue := func(args ...string) string {
		t.Helper()
		out, code := tool(t, dir, nil, append([]string{"token", "issue"}, args...)...)
		require.Zero(t, code, out)
		path := filepath.Join(t.TempDir(), "token")
		require.NoError(t, os.WriteFile(path, []byte(out), 0o600))
		return path
	}
	both := issue("--key", "first/token.key", "--subject", "shop", "--tenants", "shop,cart", "--verbs", "read,write")
	reads := issue("--key", "first/token.key", "--subject", "report", "--tenants", "*")
	run := func(token string, args ...string) (string, int) {
		return tool(t, dir, append(env, "PAIRDB_TOKEN_FILE="+token), args...)
	}
	out, code = run("", "--tenant", "shop", "put", "k", "v")
	require.Equal(t, 1, code, out)
	require.Contains(t, out, "PAIRDB_TOKEN_FILE")
	out, code = run(both, "--tenant", "shop", "put", "k", "v")
	require.Zero(t, code, out)
	out, code = run(both, "--tenant", "other", "get", "k")
	require.Equal(t, 1, code, out)
	require.Contains(t, out, `no access to the tenant "other"`)
	out, code = run(reads, "--tenant", "shop", "get", "k")
	require.Zero(t, code, out)
	out, code = run(reads, "--tenant", "shop", "put", "k", "w")
	require.Equal(t, 1, code, out)
	require.Contains(t, out, "report may read, and not write")
	out, code = tool(t, dir, []string{"PAIRDB_ADDR=" + pod.Addr, "PAIRDB_TOKEN_FILE=" + both}, "get", "k")
	require.Equal(t, 2, code, out)
	require.Contains(t, out, "not sent in the clear")

	// The Go client, in every form: calls, batches, a pipeline, a watch.
	open := func(role, token, tenant string) *client.Client {
		t.Helper()
		f := pods.Files(role)
		o := noRepeats
		o.Tenant = tenant
		if token != "" {
			o.Token = client.TokenFromFile(token)
		}
		o.TLS, err = client.TLSFromFiles(f.TLSCert, f.TLSKey, f.TLSCA)
		require.NoError(t, err)
		return podtest.Client(t, pod.Addr, o)
	}
	shop := open("client", both, "shop")
	v, err := shop.Get(t.Context(), "k")
	require.NoError(t, err)
	require.Equal(t, "v", string(v.Bytes), "what was refused changed nothing")
	_, err = open("client", both, "other").Put(t.Context(), "k", []byte("x"))
	require.Equal(t, "TOKEN_NOT_GRANTED", client.Reason(err), "%v", err)
	require.False(t, client.MaybeApplied(err))
	_, err = open("client", "", "shop").Put(t.Context(), "k", []byte("x"))
	require.Equal(t, codes.Unauthenticated, client.Code(err), "%v", err)
	_, err = open("coordinator", "", "shop").Get(t.Context(), "k")
	require.NoError(t, err, "coordinators work for all tenants")

	// Another key: first both count, then only the new one.
	second := keygen("second")
	newer := issue("--key", "second/token.key", "--subject", "shop", "--tenants", "shop")
	require.Equal(t, "TOKEN_INVALID", client.Reason(get(t, open("client", newer, "shop"))))
	install(first, second)
	podtest.Eventually(t, 30*time.Second, "the new key counts", func() bool { return get(t, open("client", newer, "shop")) == nil })
	require.NoError(t, get(t, shop))
	install(second)
	podtest.Eventually(t, 30*time.Second, "the old key counts no more", func() bool { return client.Reason(get(t, shop)) == "TOKEN_INVALID" })
	require.NoError(t, get(t, open("client", newer, "shop")))

	require.NoError(t, os.WriteFile(keys, []byte("nonsense"), 0o600))
	podtest.Eventually(t, 30*time.Second, "a file that is none is told", func() bool {
		out, _ := tool(t, dir, append(environment(pods.Files("operator")), "PAIRDB_ADDR="+pod.Addr), "status")
		return strings.Contains(out, "PAIRDB_TOKEN_KEYS")
	})
	require.NoError(t, get(t, open("client", newer, "shop")), "and the key before stays")
	require.Contains(t, log.String(), "audit=refused")
	text, err := os.ReadFile(both)
	require.NoError(t, err)
	require.NotContains(t, log.String(), strings.Split(string(text), ".")[2], "no token is in the log")
	noSecrets(t, pods, log.String())
}

func TestNodeWithTokensAndWithoutCertificatesDoesNotStart(t *testing.T) {
	code, out := start(t, nil, "PAIRDB_TOKEN_KEYS=/nowhere")
	require.Equal(t, 2, code, out)
	require.Contains(t, out, "PAIRDB_TOKEN_KEYS")
	require.Contains(t, out, "in the clear")
}
