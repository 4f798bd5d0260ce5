package security

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/identity"
	"github.com/pairdb/pairdb/libs/localpod"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// attacker speaks HTTP/2 as it likes, with the certificate of a client.
type attacker struct {
	t      *testing.T
	conn   net.Conn
	framer *http2.Framer
	header bytes.Buffer
	hpack  *hpack.Encoder
}

func (a *attacker) fields(method string, more ...hpack.HeaderField) []byte {
	a.header.Reset()
	for _, f := range append([]hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "https"}, {Name: ":path", Value: method}, {Name: ":authority", Value: "x"},
		{Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
	}, more...) {
		require.NoError(a.t, a.hpack.WriteField(f))
	}
	return a.header.Bytes()
}

func attack(t *testing.T, addr string, files identity.Files) *attacker {
	t.Helper()
	cfg, err := client.TLSFromFiles(files.TLSCert, files.TLSKey, files.TLSCA)
	require.NoError(t, err)
	cfg.NextProtos = []string{"h2"}
	conn, err := tls.Dial("tcp", addr, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() }) // it may be gone
	require.NoError(t, conn.SetDeadline(time.Now().Add(40*time.Second)))
	a := &attacker{t: t, conn: conn, framer: http2.NewFramer(conn, conn)}
	a.hpack = hpack.NewEncoder(&a.header)
	a.hpack.SetMaxDynamicTableSize(0)
	_, err = io.WriteString(conn, http2.ClientPreface)
	require.NoError(t, err)
	require.NoError(t, a.framer.WriteSettings())
	return a
}

// until reads frames until f is content, or the connection ends.
func (a *attacker) until(what string, f func(http2.Frame) bool) {
	a.t.Helper()
	for {
		frame, err := a.framer.ReadFrame()
		require.NoError(a.t, err, what)
		if f(frame) {
			return
		}
	}
}

const healthWatch = "/grpc.health.v1.Health/Watch"

func TestHostilePeersAreCutOff(t *testing.T) {
	// Whoever holds connections, streams or memory of a node for nothing takes it from everybody else.
	pods, _ := podtest.Start(t, localpod.Options{Secure: true, NoHealthAgent: true, NoMigrator: true, NoCompactor: true})
	pod, files := pods.All()[0], pods.Files("client")
	good := as(t, pod.Addr, files)
	_, err := good.Put(t.Context(), "k", []byte("v"))
	require.NoError(t, err)

	t.Run("more streams than a connection may have", func(t *testing.T) {
		a := attack(t, pod.Addr, files)
		var all sync.WaitGroup
		all.Go(func() { // it writes while the server may be waiting for a reader
			for id := uint32(1); id < 2*1100; id += 2 {
				if a.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, BlockFragment: a.fields(healthWatch)}) != nil {
					return
				}
			}
		})
		defer all.Wait()
		a.until("the stream above the limit is refused", func(f http2.Frame) bool {
			r, ok := f.(*http2.RSTStreamFrame)
			return ok && r.ErrCode == http2.ErrCodeRefusedStream
		})
		a.conn.Close()
	})
	t.Run("pings", func(t *testing.T) {
		a := attack(t, pod.Addr, files)
		for range 64 {
			if a.framer.WritePing(false, [8]byte{1}) != nil {
				break // it is cut off already
			}
		}
		a.until("it is told to calm down", func(f http2.Frame) bool {
			g, ok := f.(*http2.GoAwayFrame)
			return ok && g.ErrCode == http2.ErrCodeEnhanceYourCalm
		})
	})
	t.Run("giant headers", func(t *testing.T) {
		a := attack(t, pod.Addr, files)
		block := a.fields(healthWatch, hpack.HeaderField{Name: "x-large", Value: strings.Repeat("x", 200<<10)})
		const part = 16 << 10
		require.NoError(t, a.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:part]}))
		for block = block[part:]; len(block) > 0; block = block[min(part, len(block)):] {
			if a.framer.WriteContinuation(1, len(block) <= part, block[:min(part, len(block))]) != nil {
				break
			}
		}
		for {
			frame, err := a.framer.ReadFrame()
			if err != nil {
				require.False(t, errors.Is(err, os.ErrDeadlineExceeded), "the connection or the stream is ended")
				return
			}
			_, answered := frame.(*http2.HeadersFrame)
			require.False(t, answered, "the call is not taken")
			if r, ok := frame.(*http2.RSTStreamFrame); ok {
				require.NotEqual(t, http2.ErrCodeNo, r.ErrCode)
				return
			}
		}
	})
	t.Run("slow ones", func(t *testing.T) {
		// All wait at the same time.
		var all sync.WaitGroup
		for name, c := range map[string]struct{ addr, says string }{
			"requests: nothing":             {pod.Addr, ""},
			"requests: half a record":       {pod.Addr, "\x16\x03\x01"},
			"operations: nothing":           {pod.OpsAddr, ""},
			"operations: half a record":     {pod.OpsAddr, "\x16\x03\x01"},
			"requests: no preface in TLS":   {pod.Addr, "tls"},
			"operations: half a header":     {pod.OpsAddr, "tls GET / HTTP/1.1\r\nHost: x\r\nX: "},
			"operations: a header too long": {pod.OpsAddr, "tls GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10)},
		} {
			all.Go(func() {
				var conn net.Conn
				var err error
				if text, secure := strings.CutPrefix(c.says, "tls"); secure {
					cfg, cfgErr := client.TLSFromFiles(files.TLSCert, files.TLSKey, files.TLSCA)
					if cfgErr != nil {
						t.Error(cfgErr)
						return
					}
					if c.addr == pod.Addr {
						cfg.NextProtos = []string{"h2"}
					}
					conn, err = tls.Dial("tcp", c.addr, cfg)
					c.says = strings.TrimPrefix(text, " ")
				} else {
					conn, err = net.Dial("tcp", c.addr)
				}
				if err != nil {
					t.Error(name, err)
					return
				}
				defer conn.Close()
				_, _ = io.WriteString(conn, c.says) // a long one may be cut off already
				_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
				if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%s: still connected after 30 s", name)
				}
			})
		}
		all.Wait()
	})
	require.NoError(t, get(t, good), "nobody else has noticed")
}

func TestWhatOperatorsDoIsInTheLog(t *testing.T) {
	// After an accident the question is who did it.
	pods, log := podtest.Start(t, localpod.Options{Secure: true, NoHealthAgent: true, NoMigrator: true, NoCompactor: true})
	pod := pods.All()[0]
	c := as(t, pod.Addr, pods.Files("operator"))
	_, err := c.Admin().CreateTenant(t.Context(), &adminv1.CreateTenantRequest{Name: "shop"})
	require.NoError(t, err)
	_, err = c.Admin().DropTenant(t.Context(), &adminv1.DropTenantRequest{Name: "nobody"})
	require.Error(t, err)
	_, err = c.Admin().Status(t.Context(), &adminv1.StatusRequest{})
	require.NoError(t, err)
	stream, err := c.Admin().Verify(t.Context(), &adminv1.VerifyRequest{})
	require.NoError(t, err)
	for err == nil {
		_, err = stream.Recv()
	}
	require.ErrorIs(t, err, io.EOF)
	for _, want := range []string{
		`audit=call method=/pairdb.admin.v1.AdminService/CreateTenant who=pairdb/operator from=127.0.0.1:`,
		`audit=call method=/pairdb.admin.v1.AdminService/DropTenant who=pairdb/operator`,
		`audit=call method=/pairdb.admin.v1.AdminService/Verify who=pairdb/operator`,
	} {
		podtest.Eventually(t, 30*time.Second, want, func() bool { return strings.Contains(log.String(), want) })
	}
	require.NotContains(t, log.String(), "audit=call method=/pairdb.admin.v1.AdminService/Status", "looking is not logged")
	require.Regexp(t, `AdminService/DropTenant who=pairdb/operator from=\S+ code=\w*NotFound|code=FailedPrecondition`, log.String())
}
