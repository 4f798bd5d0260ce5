// Command guest is what a machine does whose power is cut: it runs a node and a compactor on the file system
// in DIR, writes to them, and notes each acknowledgement in the folder OUT, which survives. After the cut it
// compares what the file system has kept with the notes. It is static: the machine has nothing else.
//
//	guest write BINARIES [KEY=VALUE…]
//	guest check BINARIES
//
// KEY=VALUE changes the configuration of the node.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pairdb/pairdb/integration/bare"
	"github.com/pairdb/pairdb/integration/journal"
	"github.com/pairdb/pairdb/libs/client"
)

const (
	writers = 4
	// opsAddr is where the node counts; nobody else is on this machine.
	opsAddr = "127.0.0.1:9091"
	// checkLimit is for a machine that is emulated, on another that is busy.
	checkLimit = 90 * time.Second
	// goOn steps of each writer follow on a file system that has survived: flushes and merges of old and new.
	goOn = 40
)

// Lines of the notes, one for each step of a writer.
const (
	acknowledged = "acknowledged"
	failed       = "failed" // it may have happened
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) < 3 {
		return errors.New("guest write|check BINARIES expected")
	}
	g := guest{out: os.Getenv("OUT"), pod: bare.Pod{
		Binaries: os.Args[2], Dir: os.Getenv("DIR"), Log: os.Stderr,
		Env: append([]string{"PAIRDB_COMPACTION_LOCAL=auto", "PAIRDB_OPS_ADDR=" + opsAddr}, os.Args[3:]...),
	}}
	switch os.Args[1] {
	case "write":
		return g.write()
	case "check":
		return g.check()
	}
	return fmt.Errorf("%q: write or check expected", os.Args[1])
}

type guest struct {
	out string
	pod bare.Pod
}

func name(w int) string { return fmt.Sprintf("w%d", w) }

// write goes on until the machine is off.
func (g guest) write() error {
	ctx := context.Background()
	node, c, err := g.start(ctx)
	if err != nil {
		return err
	}
	defer node.Kill()
	compactor, err := g.pod.Compactor()
	if err != nil {
		return err
	}
	defer compactor.Kill()
	var all errgroup.Group
	for w := range writers {
		all.Go(func() error { return g.writer(ctx, c, w) })
	}
	all.Go(func() error { return g.count(ctx) })
	return all.Wait()
}

func (g guest) start(ctx context.Context) (*bare.Process, *client.Client, error) {
	node, err := g.pod.Node()
	if err != nil {
		return nil, nil, err
	}
	c, err := g.pod.Serving(ctx, node)
	if err != nil {
		node.Kill()
		return nil, nil, err
	}
	return node, c, nil
}

// writer does its steps and notes each before the next. The first one does the upkeep.
func (g guest) writer(ctx context.Context, c *client.Client, w int) error {
	notes, err := os.OpenFile(g.notes(w), os.O_WRONLY|os.O_CREATE|os.O_APPEND|os.O_SYNC, 0o600)
	if err != nil {
		return err
	}
	defer notes.Close()
	for n := 0; ; n++ {
		line := acknowledged
		stepErr := journal.Write(ctx, c, name(w), n)
		if stepErr != nil {
			line = failed
		}
		if _, err := fmt.Fprintln(notes, line); err != nil {
			return err
		}
		if stepErr != nil {
			return stepErr
		}
		if w == 0 {
			if err := journal.Upkeep(ctx, c, name(w), n); err != nil {
				return err
			}
		}
	}
}

func (g guest) notes(w int) string { return filepath.Join(g.out, "notes-"+name(w)) }

// count keeps what the node has counted so far where it survives.
func (g guest) count(ctx context.Context) error {
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+opsAddr+"/metrics", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		var kept bytes.Buffer
		lines := bufio.NewScanner(resp.Body)
		for lines.Scan() {
			if line := lines.Text(); strings.HasPrefix(line, "pairdb_") && strings.Contains(line, "_total") {
				fmt.Fprintln(&kept, line)
			}
		}
		if err := errors.Join(lines.Err(), resp.Body.Close()); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(g.out, "metrics"), kept.Bytes(), 0o600); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// check is what comes after the cut.
func (g guest) check() error {
	ctx, cancel := context.WithTimeout(context.Background(), checkLimit)
	defer cancel()
	acked := make([][]bool, writers)
	steps := 0
	for w := range writers {
		b, err := os.ReadFile(g.notes(w))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for line := range strings.Lines(string(b)) {
			acked[w] = append(acked[w], line == acknowledged+"\n")
		}
		steps += len(acked[w])
	}
	if _, err := os.Stat(filepath.Join(g.pod.Data(), "FORMAT")); err == nil {
		if err := g.pod.Verify(ctx); err != nil {
			return err
		}
	} else if steps > 0 {
		return fmt.Errorf("%d steps were answered by a directory that is not there: %w", steps, err)
	}
	node, c, err := g.start(ctx)
	if err != nil {
		return fmt.Errorf("it does not open again: %w", err)
	}
	defer node.Kill()
	if err := checkAll(ctx, c, acked); err != nil {
		return err
	}
	compactor, err := g.pod.Compactor()
	if err != nil {
		return err
	}
	defer compactor.Kill()
	for w := range acked {
		acked[w] = append(acked[w], false) // what was under way
	}
	if err := keepWriting(ctx, c, acked); err != nil {
		return fmt.Errorf("it can't go on: %w", err)
	}
	if err := checkAll(ctx, c, acked); err != nil {
		return fmt.Errorf("after it went on: %w", err)
	}
	node.Kill()
	if err := g.pod.Verify(ctx); err != nil {
		return fmt.Errorf("after it went on: %w", err)
	}
	fmt.Printf("all of %d steps are there\n", steps)
	return nil
}

func checkAll(ctx context.Context, c *client.Client, acked [][]bool) error {
	for w := range acked {
		if err := journal.Check(ctx, c, name(w), acked[w]); err != nil {
			return err
		}
	}
	return nil
}

func keepWriting(ctx context.Context, c *client.Client, acked [][]bool) error {
	for w := range acked {
		for range goOn {
			n := len(acked[w])
			if err := journal.Write(ctx, c, name(w), n); err != nil {
				return err
			}
			acked[w] = append(acked[w], true)
			if err := journal.Upkeep(ctx, c, name(w), n); err != nil {
				return err
			}
		}
	}
	return nil
}
