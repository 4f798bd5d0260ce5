package cluster

import (
	"errors"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// socket returns a UDP socket in a namespace. A socket stays where it was made.
func socket(t *testing.T, namespace, host string) net.PacketConn {
	t.Helper()
	type made struct {
		net.PacketConn
		error
	}
	got := make(chan made)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine, and is in no other's way
		f, err := os.Open("/run/netns/" + namespace)
		if err == nil {
			defer f.Close()
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			got <- made{nil, err}
			return
		}
		c, err := net.ListenPacket("udp", net.JoinHostPort(host, "9999"))
		got <- made{c, err}
	}()
	m := <-got
	require.NoError(t, m.error)
	t.Cleanup(func() { require.NoError(t, m.PacketConn.Close()) })
	return m.PacketConn
}

// A partition that lets something through, or that does not end, makes every verdict on partitions worthless.
func TestCutsAreOneWayAndEnd(t *testing.T) {
	n, err := newNetwork()
	if errors.Is(err, ErrNotHere) {
		require.NotEqual(t, "true", os.Getenv("CI"), "CI must run where this is allowed: %v", err)
		t.Skip(err)
	}
	require.NoError(t, err)
	defer n.close()
	a, b := socket(t, n.inner[0], n.host(0)), socket(t, n.inner[1], n.host(1))
	sent := byte(0)
	arrives := func(from, to net.PacketConn) bool {
		t.Helper()
		sent++
		_, err := from.WriteTo([]byte{sent}, to.LocalAddr())
		require.NoError(t, err)
		require.NoError(t, to.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
		got := make([]byte, 1)
		_, _, err = to.ReadFrom(got)
		return err == nil && got[0] == sent
	}
	require.True(t, arrives(a, b))
	require.True(t, arrives(b, a))
	require.NoError(t, n.cut("node-0", "node-1"))
	require.False(t, arrives(a, b))
	require.True(t, arrives(b, a), "the other way is open")
	require.NoError(t, n.cut("node-1", "node-0"))
	require.False(t, arrives(b, a))
	require.NoError(t, n.mend())
	require.True(t, arrives(a, b))
	require.True(t, arrives(b, a))
}
