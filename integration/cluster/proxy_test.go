package cluster

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A proxy that lost, doubled or reordered bytes would make the node look wrong; one that delays nothing
// would make it look good.
func TestProxyDelaysAndChangesNothing(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	p, err := listen("127.0.0.1", l.Addr().String)
	require.NoError(t, err)
	defer p.Close()
	c, err := net.Dial("tcp", p.Addr())
	require.NoError(t, err)
	defer c.Close()
	echo := func(b []byte) time.Duration {
		begun := time.Now()
		_, err := c.Write(b)
		require.NoError(t, err)
		got := make([]byte, len(b))
		_, err = io.ReadFull(c, got)
		require.NoError(t, err)
		require.Equal(t, b, got)
		return time.Since(begun)
	}
	long := make([]byte, 1<<20)
	for i := range long {
		long[i] = byte(i * i >> 8)
	}
	echo(long)
	p.Delay(50 * time.Millisecond)
	require.GreaterOrEqual(t, echo([]byte("late")), 100*time.Millisecond)
	p.Delay(0)
	echo(long)
	p.Close()
	_, err = io.ReadFull(c, make([]byte, 1))
	require.Error(t, err, "its connections end with it")
}
