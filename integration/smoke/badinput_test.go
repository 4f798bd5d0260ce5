// Package smoke runs the built binaries as a person would, and looks at what they say. It never looks
// into the data directory, but to damage it.
package smoke

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/localpod"
)

// run runs a binary to its end and returns its exit code and its output.
func run(t *testing.T, stdin string, env []string, binary string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(podtest.Binaries(t), binary), args...)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PAIRDB_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	require.NoError(t, ctx.Err(), "%s does not end: %s", binary, errs.String())
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// nodeEnv is the configuration of a storage-node that is expected to refuse to start.
func nodeEnv(t *testing.T, dataDir string) []string {
	t.Helper()
	sock, err := os.MkdirTemp("", "sock")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(sock)) })
	return []string{
		"PAIRDB_NODE_ID=node-0", "PAIRDB_DATA_DIR=" + dataDir, "PAIRDB_SOCKET=" + filepath.Join(sock, "n.sock"),
		"PAIRDB_GRPC_ADDR=127.0.0.1:0", "PAIRDB_OPS_ADDR=127.0.0.1:0", "PAIRDB_LOG_FORMAT=text",
	}
}

// stoppedPod starts a pod, stores some records, makes tables of them and stops it.
func stoppedPod(t *testing.T) *localpod.Pod {
	t.Helper()
	pods, _ := podtest.Start(t, localpod.Options{})
	pod := pods.All()[0]
	ctl(t, pod, 0, "put", "greeting", "hello")
	ctl(t, pod, 0, "flush")
	pods.Stop()
	return pod
}

// ctl runs pairctl against a pod and checks its exit code.
func ctl(t *testing.T, pod *localpod.Pod, wantCode int, args ...string) (stdout, stderr string) {
	t.Helper()
	return ctlIn(t, pod, "", wantCode, args...)
}

func ctlIn(t *testing.T, pod *localpod.Pod, stdin string, wantCode int, args ...string) (stdout, stderr string) {
	t.Helper()
	code, stdout, stderr := run(t, stdin, []string{"PAIRDB_ADDR=" + pod.Addr}, "pairctl", args...)
	require.Equal(t, wantCode, code, "pairctl %v\n%s%s", args, stdout, stderr)
	return stdout, stderr
}

func TestNodeRefusesWhatItCannotServeAndSaysWhatToDo(t *testing.T) {
	// A node that starts on the wrong directory, or with a key that nobody reads, answers wrongly later.
	pod := stoppedPod(t)
	for _, c := range []struct {
		name     string
		spoil    func(t *testing.T, dir string)
		env      []string
		code     int
		wantText []string
	}{
		{
			name: "unknown key", env: []string{"PAIRDB_MEMTABEL_BYTES=1MiB"}, code: 2,
			wantText: []string{"PAIRDB_MEMTABEL_BYTES", "nearest", "PAIRDB_MEMTABLE_BYTES"},
		},
		{name: "value out of range", env: []string{"PAIRDB_MEMTABLE_BYTES=0"}, code: 2, wantText: []string{"PAIRDB_MEMTABLE_BYTES"}},
		{name: "another node's directory", env: []string{"PAIRDB_NODE_ID=node-7"}, code: 3, wantText: []string{"belongs to node \"node-0\"", "PAIRDB_NODE_ID"}},
		{
			name: "newer format", code: 4, wantText: []string{"FORMAT"},
			spoil: func(t *testing.T, dir string) {
				require.NoError(t, os.WriteFile(filepath.Join(dir, "FORMAT"), []byte("pairdb data directory, format 99\n"), 0o660))
			},
		},
		{
			name: "damaged manifest", code: 4, wantText: []string{"MANIFEST", "offset"},
			spoil: func(t *testing.T, dir string) { podtest.Flip(t, podtest.File(t, dir, "manifest/MANIFEST-*"), 40) },
		},
		{
			name: "no directory to write", code: 5, wantText: []string{"file-in-the-way"},
			spoil: nil,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			copyTree(t, pod.DataDir, dir)
			if c.spoil != nil {
				c.spoil(t, dir)
			}
			if c.name == "no directory to write" {
				dir = filepath.Join(t.TempDir(), "file-in-the-way")
				require.NoError(t, os.WriteFile(dir, []byte("x"), 0o600))
			}
			code, _, stderr := run(t, "", append(nodeEnv(t, dir), c.env...), "storage-node")
			require.Equal(t, c.code, code, stderr)
			for _, want := range c.wantText {
				require.Contains(t, stderr, want)
			}
		})
	}
}

func TestDamagedOrMissingTableIsNeverAnAbsentKey(t *testing.T) {
	// The rest of the node goes on; the range of the table answers with an error that names the file.
	for name, spoil := range map[string]func(t *testing.T, table string){
		"missing": func(t *testing.T, table string) { require.NoError(t, os.Remove(table)) },
		"damaged": func(t *testing.T, table string) { podtest.Flip(t, table, 40) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "pod")
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
			copyTree(t, stoppedPod(t).DataDir, filepath.Join(dir, "node-0", "data"))
			table := podtest.File(t, dir, "node-0/data/sst/*.sst")
			spoil(t, table)
			pods, _ := podtest.Start(t, localpod.Options{Dir: dir})
			_, stderr := ctl(t, pods.All()[0], 1, "get", "greeting")
			require.Contains(t, stderr, filepath.Base(table))
			ctl(t, pods.All()[0], 0, "put", "zebra", "other ranges go on")
			status, _ := ctl(t, pods.All()[0], 0, "status")
			require.Contains(t, status, "quarantined")
		})
	}
}

func TestLockedDirectoryIsRefused(t *testing.T) {
	// Two nodes on one directory would destroy it.
	pods, _ := podtest.Start(t, localpod.Options{})
	code, _, stderr := run(t, "", nodeEnv(t, pods.All()[0].DataDir), "storage-node")
	require.Equal(t, 3, code, stderr)
	require.Contains(t, stderr, "another process")
}

func TestBadInputOfPairctl(t *testing.T) {
	pods, _ := podtest.Start(t, localpod.Options{})
	pod := pods.All()[0]
	long := strings.Repeat("k", 1025)
	for _, c := range []struct {
		name, stdin string
		args        []string
		code        int
		want        string
	}{
		{name: "key too long", args: []string{"put", long, "v"}, code: 4, want: "1024"},
		{name: "empty key", args: []string{"put", "", "v"}, code: 4, want: "key"},
		{name: "control character", args: []string{"get", "a\x01b"}, code: 4, want: "key"},
		{name: "tenant with colon", args: []string{"--tenant", "a:b", "get", "k"}, code: 4, want: "tenant"},
		{name: "reserved tenant", args: []string{"--tenant", "_system", "put", "k", "v"}, code: 4, want: "_"},
		{name: "absent key", args: []string{"get", "nobody"}, code: 3, want: "not found"},
		{name: "wrong arguments", args: []string{"put", "k"}, code: 2, want: "KEY VALUE"},
		{name: "unknown command", args: []string{"gett"}, code: 2, want: "gett"},
		{name: "no such file", args: []string{"import", "/does/not/exist"}, code: 4, want: "/does/not/exist"},
		{name: "no tab", args: []string{"import", "-"}, stdin: "a\tb\nbroken\n", code: 4, want: "line 2"},
		{name: "cut line", args: []string{"import", "-"}, stdin: "a\tb\nc\td", code: 4, want: "line 2"},
		{name: "double key", args: []string{"import", "-"}, stdin: "a\tb\nc\td\na\te\n", code: 4, want: "line 3"},
		{name: "not UTF-8", args: []string{"import", "-"}, stdin: "a\tb\nc\t\xff\n", code: 4, want: "line 2"},
		{name: "refused by the node", args: []string{"import", "-"}, stdin: "a\tb\n" + long + "\tv\n", code: 4, want: "line 2"},
		{name: "snapshot name", args: []string{"snapshot", "create", "../x"}, code: 4, want: "name"},
		{name: "restore from nothing", args: []string{"snapshot", "restore", "/does/not/exist", "/tmp/never"}, code: 4, want: "not a snapshot"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, stderr := ctlIn(t, pod, c.stdin, c.code, c.args...)
			require.Contains(t, stderr, c.want)
		})
	}
	code, _, stderr := run(t, "", []string{"PAIRDB_ADDR=127.0.0.1:1"}, "pairctl", "get", "k")
	require.Equal(t, 6, code, stderr)
	require.Contains(t, stderr, "hint")
}

func TestSkippedLinesAreNamedAndTheRestIsStored(t *testing.T) {
	pods, _ := podtest.Start(t, localpod.Options{})
	pod := pods.All()[0]
	stdout, stderr := ctlIn(t, pod, "a\t1\nbroken\nb\t2\na\t3\n", 0, "import", "--on-error", "skip", "-")
	require.Contains(t, stdout, "stored 2 records")
	require.Contains(t, stderr, "line 2")
	require.Contains(t, stderr, "line 4")
	stdout, _ = ctl(t, pod, 0, "scan")
	require.Equal(t, "a\t1\nb\t2\n", stdout)
}

func TestSnapshotIsRestoredIntoAnotherPod(t *testing.T) {
	// A backup that nobody has restored is none.
	pods, _ := podtest.Start(t, localpod.Options{})
	pod := pods.All()[0]
	ctl(t, pod, 0, "put", "before", "1")
	ctl(t, pod, 0, "snapshot", "create", "first")
	ctl(t, pod, 0, "put", "after", "2")
	out, _ := ctl(t, pod, 0, "snapshot", "list")
	require.Contains(t, out, "first")

	dir, err := os.MkdirTemp("", "pod")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	target := filepath.Join(dir, "node-0", "data")
	ctl(t, pod, 0, "snapshot", "restore", filepath.Join(pod.DataDir, "snapshots", "first"), target)
	ctl(t, pod, 0, "snapshot", "delete", "first")
	restored, _ := podtest.Start(t, localpod.Options{Dir: dir})
	got, _ := ctl(t, restored.All()[0], 0, "get", "before")
	require.Equal(t, "1\n", got)
	ctl(t, restored.All()[0], 3, "get", "after")
	_, stderr := ctl(t, pod, 4, "snapshot", "restore", pod.DataDir, target)
	require.Contains(t, stderr, "not empty")
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o770))
	require.NoError(t, os.CopyFS(to, os.DirFS(from)))
}
