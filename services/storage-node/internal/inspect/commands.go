package inspect

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/vfs"
)

// Commands are the subcommands of the storage-node binary.
func Commands(fsys vfs.FS) []service.Command {
	return []service.Command{
		{
			Name: "check", Summary: "DATA_DIR [-o text|json]: verify the directory of a stopped node; exit code 4 when something is damaged",
			Run: func(ctx context.Context, args []string, stdout, stderr io.Writer) error {
				return runCheck(ctx, fsys, args, stdout, stderr)
			},
		},
		{
			Name: "dump", Summary: "FILE|DATA_DIR [--json] [--values]: print what is in a log segment, a table, a manifest, or all of a directory",
			Run: func(ctx context.Context, args []string, stdout, _ io.Writer) error {
				return runDump(ctx, fsys, args, stdout)
			},
		},
	}
}

func runCheck(ctx context.Context, fsys vfs.FS, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("check", flag.ContinueOnError)
	output := flags.String("o", "text", "text or json: one finding a line, then a summary")
	dir, err := parse(flags, "DATA_DIR", args, stdout)
	if err != nil || dir == "" {
		return err
	}
	if *output != "text" && *output != "json" {
		return usage(fmt.Errorf("-o %s: text or json expected", *output))
	}
	o := CheckOptions{JSON: *output == "json"}
	if terminal(stderr) {
		p := &percent{w: stderr}
		o.Progress = p.progress
		defer p.done()
	}
	return exit(buffered(stdout, func(w io.Writer) error { return Check(ctx, fsys, dir, o, w) }))
}

func runDump(ctx context.Context, fsys vfs.FS, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("dump", flag.ContinueOnError)
	o := DumpOptions{}
	flags.BoolVar(&o.JSON, "json", false, "print one object a line")
	flags.BoolVar(&o.Values, "values", false, "print values, not only their length")
	name, err := parse(flags, "FILE|DATA_DIR", args, stdout)
	if err != nil || name == "" {
		return err
	}
	return exit(buffered(stdout, func(w io.Writer) error { return Dump(ctx, fsys, name, o, w) }))
}

// parse reads flags before and behind the one operand. The operand is empty when help was asked for.
func parse(flags *flag.FlagSet, operand string, args []string, stdout io.Writer) (string, error) {
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	var operands []string
	for {
		err := flags.Parse(args)
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(stdout, "storage-node %s %s [flags]\n", flags.Name(), operand)
			flags.SetOutput(stdout)
			flags.PrintDefaults()
			return "", nil
		}
		if err != nil {
			return "", usage(fmt.Errorf("%s: %w", flags.Name(), err))
		}
		if flags.NArg() == 0 {
			break
		}
		operands, args = append(operands, flags.Arg(0)), flags.Args()[1:]
	}
	if len(operands) != 1 || operands[0] == "" {
		return "", usage(fmt.Errorf("%s: one %s expected, got %d", flags.Name(), operand, len(operands)))
	}
	return operands[0], nil
}

// usage marks an error as one of the command line.
func usage(err error) error { return service.WithExitCode(service.ExitUsage, err) }

// exit gives the error of a tool its exit code.
func exit(err error) error {
	if errors.Is(err, ErrDamaged) {
		return service.WithExitCode(service.ExitCorrupt, err)
	}
	return err
}

// outputBytes: dumps are many small writes.
const outputBytes = 64 << 10

func buffered(w io.Writer, run func(io.Writer) error) error {
	b := bufio.NewWriterSize(w, outputBytes)
	err := run(b)
	if ferr := b.Flush(); err == nil {
		err = ferr
	}
	return err
}

func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// percent shows progress on a terminal, in one line.
type percent struct {
	w    io.Writer
	last int64
}

func (p *percent) progress(done, total int64) {
	if now := done * 100 / max(total, 1); now > p.last {
		p.last = now
		fmt.Fprintf(p.w, "\rchecking tables: %d %% of %d MiB ", now, total>>20)
	}
}

func (p *percent) done() {
	if p.last > 0 {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
