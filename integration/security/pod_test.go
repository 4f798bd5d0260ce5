package security

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/localpod"
)

// rows are what docs/SECURITY.md gives to each sidecar on the socket.
func rows(t *testing.T) map[string]string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "SECURITY.md"))
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(page), "PAIRDB_SOCKET_UIDS=1001=all,")
	require.True(t, ok)
	line, _, _ := strings.Cut(rest, "\n")
	out := map[string]string{}
	for i, entry := range strings.Split(line, ",") {
		_, services, ok := strings.Cut(entry, "=")
		require.True(t, ok)
		out[[]string{"compactor", "migrator", "health-agent"}[i]] = services
	}
	require.Len(t, out, 3)
	return out
}

func TestSidecarsNeedNoMoreThanTheirRow(t *testing.T) {
	// A row that lacks something breaks the pod of whoever copies it; one that has too much is not noticed.
	const denied = "may not call"
	for sidecar, c := range map[string]struct {
		options localpod.Options
		works   string // in the log
		less    string // its row with a service less, which it misses
	}{
		"compactor":    {localpod.Options{NoMigrator: true, NoHealthAgent: true}, `msg="node found"`, "node"},
		"migrator":     {localpod.Options{NoCompactor: true, NoHealthAgent: true}, `msg="node found"`, "node+replica+admin"},
		"health-agent": {localpod.Options{NoCompactor: true, NoMigrator: true}, `msg="gossip runs"`, "admin"},
	} {
		row := rows(t)[sidecar]
		for services, enough := range map[string]bool{row: true, c.less: false} {
			o := c.options
			o.Env = []string{fmt.Sprintf("PAIRDB_SOCKET_UIDS=%d=%s", os.Getuid(), services)}
			pods, log := podtest.Start(t, o)
			if enough {
				podtest.Eventually(t, 20*time.Second, sidecar+" works", func() bool { return strings.Contains(log.String(), c.works) })
				require.NotContains(t, log.String(), denied, "%s with %s", sidecar, services)
			} else {
				podtest.Eventually(t, 20*time.Second, sidecar+" is refused", func() bool { return strings.Contains(log.String(), denied) })
			}
			pods.Stop()
		}
	}
}

func TestUserOfAPodSpeaksForItselfOnly(t *testing.T) {
	// Whoever takes over one pod must not command the others through NATS, nor speak for them.
	pods, _ := podtest.Start(t, localpod.Options{Secure: true, NoCompactor: true, NoMigrator: true})
	ca := pods.Files("client").TLSCA
	_, err := nats.Connect(pods.NATSURL(), nats.RootCAs(ca))
	require.Error(t, err, "without a user")
	user := func(seed string) (*nats.Conn, chan error) {
		key, err := nats.NkeyOptionFromSeed(seed)
		require.NoError(t, err)
		refused := make(chan error, 16)
		nc, err := nats.Connect(pods.NATSURL(), nats.RootCAs(ca), key, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
		require.NoError(t, err)
		t.Cleanup(nc.Close)
		return nc, refused
	}
	stolen, refused := user(filepath.Join(pods.TLSDir(), "nats-node-1.nk"))
	denied := func(what string) {
		t.Helper()
		select {
		case err := <-refused:
			require.ErrorIs(t, err, nats.ErrPermissionViolation, what)
		case <-time.After(10 * time.Second):
			require.Fail(t, "it is not refused", what)
		}
	}
	for _, subject := range []string{event.Subject("pairdb", "node-0", "node.ready"), event.CommandSubject("pairdb", "node-0", "flush")} {
		require.NoError(t, stolen.Publish(subject, []byte("{}")))
		denied(subject)
	}
	_, err = stolen.SubscribeSync(event.CommandSubject("pairdb", "node-0", "flush"))
	require.NoError(t, err)
	denied("nor listen")

	operator, _ := user(pods.NATSOperator())
	podtest.Eventually(t, 20*time.Second, "the operator is answered", func() bool {
		m, err := operator.Request(event.CommandSubject("pairdb", "node-0", "status"), []byte(`{"request_id":"1"}`), time.Second)
		return err == nil && strings.Contains(string(m.Data), `"ok":true`)
	})
}
