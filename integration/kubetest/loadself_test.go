package kubetest

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/localpod"
)

// Danger: a check that never fails. A write that is lost, one that came back, and a sibling that vanished are told, and
// nothing is when nothing is wrong. A pod on this machine is enough for that.
func TestTheLoadNoticesWhatIsLost(t *testing.T) {
	pods, _ := podtest.Start(t, localpod.Options{NoCompactor: true})
	pod := pods.All()[0]
	l := newLoad(func(ctx context.Context, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", pod.Addr)
	}, 50, pod.Name)
	t.Cleanup(l.close)
	l.begin(t)
	podtest.Eventually(t, 30*time.Second, "some of everything is written", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.writes > 20*writers
	})
	l.end(t)
	l.holds(t, 5*time.Second)

	c := podtest.Client(t, pod.Addr, client.Options{Tenant: tenant})
	spoil := func(which func(truth) bool, how func(key string) error) {
		for i, w := range l.truths {
			if w.clock == nil || !which(w) {
				continue
			}
			require.NoError(t, how(key(i)))
			bad := l.wrong(t.Context())
			require.Len(t, bad, 1)
			require.Contains(t, bad[0], key(i))
			l.truths[i] = truth{} // known from here on
			return
		}
		t.Fatal("the load has no such key")
	}
	spoil(func(w truth) bool { return len(w.values) == 1 }, func(key string) error {
		_, err := c.Delete(t.Context(), key)
		return err
	})
	spoil(func(w truth) bool { return len(w.values) == 0 }, func(key string) error {
		_, err := c.Put(t.Context(), key, []byte("back"))
		return err
	})
	spoil(func(w truth) bool { return len(w.values) == 2 }, func(key string) error {
		_, err := c.Put(t.Context(), key, []byte("one of two"))
		return err
	})
	l.truths[0] = truth{clock: map[string]uint64{"writer-0": 1 << 40}, values: []string{"never written"}}
	require.Len(t, l.wrong(t.Context()), 1)
}
