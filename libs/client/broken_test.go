package client_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/client"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

// cuttingProxy passes connections to a node on, and cuts each after some bytes from the node.
func cuttingProxy(t *testing.T, to string, atLeast, atMost int64) (addr string, cuts *atomic.Int64) {
	t.Helper()
	cuts = new(atomic.Int64)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var connections sync.WaitGroup
	connections.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return // closed: the test is over
			}
			connections.Go(func() {
				defer in.Close()
				out, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer out.Close()
				connections.Go(func() { _, _ = io.Copy(out, in) }) // ends with either side
				_, _ = io.CopyN(in, out, atLeast+rand.Int64N(atMost-atLeast))
				cuts.Add(1)
			})
		}
	})
	t.Cleanup(func() {
		require.NoError(t, l.Close())
		connections.Wait()
	})
	return l.Addr().String(), cuts
}

func TestNothingIsLostOrDoneTwiceOverAConnectionThatBreaks(t *testing.T) {
	// Cut anywhere: before the request arrived, after it was applied, in the middle of a stream.
	n := newMemoryNode()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := grpc.NewServer()
	storagev1.RegisterStorageServiceServer(s, n)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() {
		s.Stop()
		require.NoError(t, <-served)
	}()
	addr, cuts := cuttingProxy(t, l.Addr().String(), 200, 4000)
	newClient := func() *client.Client {
		c, err := client.New(addr, client.Options{RetryFor: 30 * time.Second, Timeout: 30 * time.Second})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, c.Close()) })
		return c
	}

	const writers, each = 3, 60
	begun := make(chan struct{})
	var writing sync.WaitGroup
	for w := range writers {
		c := newClient()
		writing.Go(func() {
			<-begun
			for i := range each {
				if _, err := c.Update(t.Context(), "count", func(v client.Value) ([]byte, error) { return append(v.Bytes, '|'), nil }); err != nil {
					t.Error(err)
				}
				r, err := c.Put(t.Context(), fmt.Sprint("once/", w, "/", i), nil, client.IfAbsent())
				if err != nil || r.Siblings != 1 {
					t.Error(r, err)
				}
			}
		})
	}

	// The watch sees each write of once/ exactly once, and the scan at the end each key.
	start, end := client.Prefix("once/")
	seen := map[string]int{}
	started := false
	for e, err := range newClient().Watch(t.Context(), start, end, 0) {
		require.NoError(t, err)
		if !started {
			close(begun)
			started = true
		}
		if e.Kind == client.Written {
			seen[e.Record.Key]++
		}
		if len(seen) == writers*each {
			break
		}
	}
	writing.Wait()
	for k, times := range seen {
		require.Equal(t, 1, times, k)
	}
	c := newClient()
	v, err := c.Get(t.Context(), "count")
	require.NoError(t, err)
	require.Len(t, v.Bytes, writers*each)
	listed := 0
	for r, err := range c.Scan(t.Context(), start, end) {
		require.NoError(t, err)
		require.Contains(t, seen, r.Key)
		listed++
	}
	for _, err := range c.Keys(t.Context(), start, end) {
		require.NoError(t, err)
		listed++
	}
	require.Equal(t, 2*writers*each, listed)
	require.Greater(t, cuts.Load(), int64(20))
	t.Logf("%d connections were cut", cuts.Load())
}
