package security

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/localpod"
)

// BenchmarkTLS measures what certificates cost: single reads, one at a time and eight at a time, and a
// pipeline of writes of 100 bytes, each plain and secure. Writes are not synced: the disk would hide it.
func BenchmarkTLS(b *testing.B) {
	for _, secure := range []bool{false, true} {
		name := map[bool]string{false: "plain", true: "mTLS"}[secure]
		pods, _ := podtest.Start(b, localpod.Options{Secure: secure, NoHealthAgent: true, NoMigrator: true, NoCompactor: true, Env: []string{"PAIRDB_SYNC=never"}})
		var o client.Options
		if files := pods.Files("client"); files.Enabled() {
			var err error
			o.TLS, err = client.TLSFromFiles(files.TLSCert, files.TLSKey, files.TLSCA)
			require.NoError(b, err)
		}
		c := podtest.Client(b, pods.All()[0].Addr, o)
		ctx := context.Background()
		value := make([]byte, 100)
		_, err := c.Put(ctx, "k", value)
		require.NoError(b, err)
		b.Run("read/"+name, func(b *testing.B) {
			for b.Loop() {
				_, err := c.Get(ctx, "k")
				require.NoError(b, err)
			}
		})
		b.Run("reads8/"+name, func(b *testing.B) {
			b.SetParallelism(4)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := c.Get(ctx, "k"); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
		b.Run("pipeline/"+name, func(b *testing.B) { pipelined(b, c, value) })
		pods.Stop()
	}
}

func key(i int) string { return fmt.Sprintf("k%07d", i) }

// pipelined writes b.N values over one stream, a thousand begun at a time.
func pipelined(b *testing.B, c *client.Client, value []byte) {
	ctx := context.Background()
	p, err := c.Pipeline(ctx)
	require.NoError(b, err)
	begun := make([]*client.Future[client.Result], 0, 1000)
	wait := func() {
		for _, f := range begun {
			_, err := f.Wait(ctx)
			require.NoError(b, err)
		}
		begun = begun[:0]
	}
	b.ResetTimer()
	for i := range b.N {
		begun = append(begun, p.Put(key(i), value))
		if len(begun) == cap(begun) {
			wait()
		}
	}
	wait()
	b.StopTimer()
	require.NoError(b, p.Close())
}
