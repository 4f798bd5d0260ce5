// Package bare runs the processes of one pod as they are: nobody starts them again, there is no NATS, and
// another program may stand between (strace). Everything is reached over the pod's socket. It is for
// campaigns that kill at a chosen moment, and for machines without a network.
package bare

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/pairdb/pairdb/libs/client"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// Pod is where processes run. The zero value of Env and Log is nothing.
type Pod struct {
	// Binaries is the directory of storage-node and compactor; Dir keeps the socket and, as data, the
	// node's volume.
	Binaries, Dir string
	// Env is added to the environment, as KEY=value.
	Env []string
	// Log receives what the processes print.
	Log io.Writer
}

// small makes segments, memtables and tables that are full all the time.
var small = []string{"PAIRDB_LOG_SEGMENT_BYTES=64KiB", "PAIRDB_MEMTABLE_BYTES=1MiB", "PAIRDB_TABLE_BYTES=1MiB", "PAIRDB_DISK_RESERVE_BYTES=0"}

// Data is the volume of the node.
func (p Pod) Data() string { return filepath.Join(p.Dir, "data") }

func (p Pod) socket() string { return filepath.Join(p.Dir, "s") }

// Process is a process that was started; Ended is closed when it is gone.
type Process struct {
	Ended <-chan struct{}
	cmd   *exec.Cmd
}

// Node starts the storage-node, as an argument of the program under if there is one. What a node before it
// left as a socket is removed, so that Serving finds the new one.
func (p Pod) Node(under ...string) (*Process, error) {
	if err := os.MkdirAll(p.Data(), 0o770); err != nil {
		return nil, err
	}
	if err := os.Remove(p.socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return p.start("storage-node", under)
}

// Compactor starts the compactor, likewise.
func (p Pod) Compactor(under ...string) (*Process, error) { return p.start("compactor", under) }

func (p Pod) start(binary string, under []string) (*Process, error) {
	args := append(slices.Clone(under), filepath.Join(p.Binaries, binary))
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = slices.Concat(os.Environ(), small, []string{
		"PAIRDB_NODE_ID=n", "PAIRDB_JOIN=at-once", "PAIRDB_LOG_FORMAT=text", "PAIRDB_DATA_DIR=" + p.Data(), "PAIRDB_SOCKET=" + p.socket(),
		"PAIRDB_GRPC_ADDR=127.0.0.1:0", "PAIRDB_OPS_ADDR=127.0.0.1:0", "PAIRDB_COMPACTOR_OPS_ADDR=127.0.0.1:0",
	}, p.Env)
	cmd.Stdout, cmd.Stderr = p.Log, p.Log
	// A group of its own: a tracer and what it traces end together.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", binary, err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // its state says more
	}()
	return &Process{Ended: ended, cmd: cmd}, nil
}

// Signal sends a signal to the process and its tracer; a process that is gone gets none.
func (p *Process) Signal(s syscall.Signal) {
	select {
	case <-p.Ended:
	default:
		_ = syscall.Kill(-p.cmd.Process.Pid, s) // it may end just now
	}
}

// Kill ends the process at once and waits for it.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.Ended
}

// ExitCode is -1 after a signal. The process must have ended.
func (p *Process) ExitCode() int { return p.cmd.ProcessState.ExitCode() }

// ErrEnded says that a process ended before what was waited for.
var ErrEnded = errors.New("the process ended")

// Serving waits until the node serves and returns a client that repeats nothing. It is ErrEnded if the
// node ends first.
func (p Pod) Serving(ctx context.Context, node *Process) (*client.Client, error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ready := false; !ready; {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the node does not serve: %w", ctx.Err())
		case <-node.Ended:
			return nil, ErrEnded
		case <-tick.C:
			ready = p.answers(ctx)
		}
	}
	return client.New("unix:"+p.socket(), client.Options{RetryFor: -1, Timeout: 20 * time.Second})
}

// answers asks over a connection of its own: one that failed would wait before it tries again.
func (p Pod) answers(ctx context.Context) bool {
	if _, err := os.Stat(p.socket()); err != nil {
		return false
	}
	c, err := client.New("unix:"+p.socket(), client.Options{RetryFor: -1, Timeout: time.Second})
	if err != nil {
		return false
	}
	defer func() { _ = c.Close() }() // nothing is under way
	s, err := c.Admin().Status(ctx, &adminv1.StatusRequest{})
	return err == nil && s.GetState() == "serving"
}

// Verify runs the node's own check of the volume, which no node uses now; the error has what it found.
func (p Pod) Verify(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, filepath.Join(p.Binaries, "storage-node"), "check", p.Data()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("storage-node check: %w\n%s", err, out)
	}
	return nil
}
