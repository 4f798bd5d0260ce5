package suite

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// Commands of this binary that are its own children.
const (
	ServeCommand = "serve"
	KillCommand  = "fill-for-kill"
)

// process is a child that runs one engine.
type process struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	replies *json.Decoder
	encode  *json.Encoder
}

// child returns a command of this binary that ends with its parent's end of the pipe.
func child(ctx context.Context, command, engine, dir string, size Size) (*exec.Cmd, io.WriteCloser, io.Reader, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, nil, err
	}
	cmd := exec.CommandContext(ctx, self, command, "--engine", engine, "--dir", dir, "--size", size.Name,
		"--keys", fmt.Sprint(size.Keys))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, nil, err
	}
	return cmd, in, out, cmd.Start()
}

func startProcess(ctx context.Context, engine, dir string, size Size) (*process, error) {
	cmd, in, out, err := child(ctx, ServeCommand, engine, dir, size)
	if err != nil {
		return nil, err
	}
	return &process{cmd: cmd, in: in, replies: json.NewDecoder(bufio.NewReader(out)), encode: json.NewEncoder(in)}, nil
}

// run has the child run a row.
func (p *process) run(q request) ([]Measurement, error) {
	if err := p.encode.Encode(q); err != nil {
		return nil, err
	}
	var r reply
	if err := p.replies.Decode(&r); err != nil {
		return nil, fmt.Errorf("%s: the engine's process has ended: %w", q.Row, err)
	}
	if r.Error != "" {
		return nil, errors.New(r.Error)
	}
	return r.Measurements, nil
}

// close has the child close its engine and waits for it.
func (p *process) close() error {
	return errors.Join(p.in.Close(), p.cmd.Wait())
}

// killFilled starts a child that fills dir, and kills it with SIGKILL when it has.
func killFilled(ctx context.Context, engine, dir string, size Size) error {
	cmd, in, out, err := child(ctx, KillCommand, engine, dir, size)
	if err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err == nil && !strings.HasPrefix(line, "filled ") {
		err = fmt.Errorf("unexpected answer %q", line)
	}
	err = errors.Join(err, cmd.Process.Kill(), in.Close())
	_ = cmd.Wait() // killed: that is its error
	return err
}
