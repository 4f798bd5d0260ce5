package servicetest

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/sidecar"
)

// Pod gives a test an environment that is empty but for a directory of its own and the path of a socket in it,
// and returns both.
func Pod(t *testing.T) (dir, socket string) {
	t.Helper()
	ClearEnvironment(t)
	dir, err := os.MkdirTemp("", "pod") // a path of a socket is short
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	socket = filepath.Join(dir, "node.sock")
	t.Setenv("PAIRDB_DATA_DIR", dir)
	t.Setenv("PAIRDB_SOCKET", socket)
	return dir, socket
}

// ServeNode serves on a socket what register adds, as a storage-node does, until the test ends.
func ServeNode(t *testing.T, socket string, access sidecar.Access, register func(grpc.ServiceRegistrar)) {
	t.Helper()
	l, err := sidecar.Listen(socket)
	require.NoError(t, err)
	s := grpc.NewServer(sidecar.ServerOptions(access)...)
	register(s)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		require.NoError(t, <-served)
	})
}

// output is a buffer that a program and a test share.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

// String returns what was written.
func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// Running is a program that runs in the process of a test.
type Running struct {
	t    *testing.T
	out  *output
	url  string
	stop context.CancelFunc
	code chan int
}

// opsAddr is in the line that each program with an operations server logs when it begins.
var opsAddr = regexp.MustCompile(`"ops":"([^"]+)"`)

// Start runs a program and waits until its operations server listens. End it.
func Start(t *testing.T, p *service.Program) *Running {
	t.Helper()
	r := &Running{t: t, out: &output{}, code: make(chan int, 1)}
	p.Umask, p.Stdout, p.Stderr = 0, r.out, r.out // the umask is the whole process's
	ctx, cancel := context.WithCancel(t.Context())
	r.stop = cancel
	go func() { r.code <- p.Main(ctx, nil) }()
	require.Eventually(t, func() bool { return opsAddr.MatchString(r.out.String()) }, 10*time.Second, time.Millisecond, "%v", r.out)
	r.url = "http://" + opsAddr.FindStringSubmatch(r.out.String())[1]
	return r
}

// Get returns what the operations server answers to a path.
func (r *Running) Get(path string) (status int, body string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, r.url+path, nil)
	require.NoError(r.t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(r.t, err)
	b, err := io.ReadAll(resp.Body)
	require.NoError(r.t, err)
	require.NoError(r.t, resp.Body.Close())
	return resp.StatusCode, string(b)
}

// Eventually waits until the answer to a path is as wanted.
func (r *Running) Eventually(path string, wanted func(status int, body string) bool) {
	r.t.Helper()
	require.Eventually(r.t, func() bool { return wanted(r.Get(path)) }, 30*time.Second, 10*time.Millisecond, "%v", r.out)
}

// End stops the program as SIGTERM does and requires that it ends well.
func (r *Running) End() {
	r.t.Helper()
	r.stop()
	require.Equal(r.t, service.ExitOK, <-r.code, "%v", r.out)
}

// Ends runs a program that ends by itself, and requires its exit code and that it says something.
func Ends(t *testing.T, p *service.Program, args []string, code int, says string) {
	t.Helper()
	out := &output{}
	p.Umask, p.Stdout, p.Stderr = 0, out, out
	require.Equal(t, code, p.Main(t.Context(), args), "%v", out)
	require.Contains(t, out.String(), says, "%v", args)
}

// WrongPlace is a value of the configuration that a program can't work with, and how it ends then.
type WrongPlace struct {
	Key, Value, Says string
	Code             int
}

// WrongPlaces requires that each of the values ends the program in the environment that set makes. What is
// wrong in the same way for every program of a pod is among them: a socket that is a file, and a taken address
// under opsKey.
func WrongPlaces(t *testing.T, program func() *service.Program, set func(*testing.T), opsKey string, more ...WrongPlace) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close() //nolint:errcheck // a test's
	for _, w := range append(more,
		WrongPlace{"PAIRDB_SOCKET", file, "not a socket", service.ExitUnreachable},
		WrongPlace{opsKey, taken.Addr().String(), "address already in use", service.ExitRuntime},
	) {
		t.Run(w.Key, func(t *testing.T) {
			set(t)
			t.Setenv(w.Key, w.Value)
			Ends(t, program(), nil, w.Code, w.Says)
		})
	}
}

// CommandLine requires what a program prints for arguments.
func CommandLine(t *testing.T, program func() *service.Program, prints map[string]string) {
	ClearEnvironment(t)
	for arg, want := range prints {
		Ends(t, program(), []string{arg}, service.ExitOK, want)
	}
}
