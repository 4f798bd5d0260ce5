// Command bench measures a storage node over the wire beside what it is held against: empty gRPC
// servers, etcd and Redis, each in a process of its own, with the client on the same processors; beside a
// compaction also next to Pebble, in this process. It never starts anything that it does not end, and knows the node by its wire only.
//
// It is a module of its own: etcd brings some seventy modules that nothing else here needs, and they
// must not choose versions for the tests.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// size is how much is measured.
type size struct {
	rounds  int
	each    time.Duration // of one row at one depth
	depths  []int         // requests in flight
	keys    int
	mergeMB int // data that is merged beside reads
}

var sizes = map[string]size{
	"smoke":   {rounds: 1, each: 250 * time.Millisecond, depths: []int{1, 64}, keys: 2_000, mergeMB: 32},
	"default": {rounds: 3, each: time.Second, depths: []int{1, 16, 64, 256}, keys: 10_000, mergeMB: 256},
	"full":    {rounds: 7, each: 3 * time.Second, depths: []int{1, 16, 64, 256}, keys: 10_000, mergeMB: 1024},
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == "serve" {
		if err := serve(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// serve runs one of the servers that come with this program.
func serve(what string, args []string) error {
	switch {
	case what == "echo":
		return serveEcho()
	case what == "etcd" && len(args) == 1:
		return serveEtcd(args[0])
	}
	return fmt.Errorf("unknown server %q", what)
}

func run(ctx context.Context, out io.Writer) error {
	name := flag.String("size", "default", "smoke, default or full")
	binaries := flag.String("bin", "bin", "directory of storage-node and compactor")
	report := flag.String("out", "", "directory for the report in Markdown; none when empty")
	only := flag.String("only", "", "measure only rows whose name contains one of these words, separated by commas")
	depths := flag.String("depths", "", "requests in flight, separated by commas, in place of the size's")
	flag.Parse()
	z, ok := sizes[*name]
	if !ok {
		return fmt.Errorf("unknown size %q: smoke, default or full", *name)
	}
	if *depths != "" {
		z.depths = nil
		for s := range strings.SplitSeq(*depths, ",") {
			n := 0
			if _, err := fmt.Sscan(s, &n); err != nil || n < 1 {
				return fmt.Errorf("depth %q is not a number", s)
			}
			z.depths = append(z.depths, n)
		}
	}
	dir, err := os.MkdirTemp("", "pairdb-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{size: z, binaries: *binaries, dir: dir, progress: os.Stderr}
	if *only != "" {
		b.only = strings.Split(*only, ",")
	}
	defer b.close()
	if err := b.start(ctx); err != nil {
		return err
	}
	if err := b.measure(ctx); err != nil {
		return err
	}
	if b.wants("compaction") {
		if err := errors.Join(b.mergeNode(ctx), b.mergePebble(ctx)); err != nil {
			return err
		}
	}
	text := b.report(*name)
	if _, err := io.WriteString(out, text); err != nil {
		return err
	}
	if *report == "" {
		return nil
	}
	return errors.Join(os.MkdirAll(*report, 0o755), os.WriteFile(filepath.Join(*report, "grpc.md"), []byte(text), 0o644))
}
