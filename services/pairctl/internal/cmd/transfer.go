package cmd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/services/pairctl/internal/transfer"
)

func (a *app) importCmd() *cobra.Command {
	var format, onError string
	var retryFor time.Duration
	o := transfer.ImportOptions{}
	c := &cobra.Command{
		Use:   "import [FILE|-]",
		Short: "Load records from a file or standard input",
		Long: `import stores one record per line: key<TAB>value (tsv, raw, no escapes), or
{"key": "...", "value": "..."} (ndjson; "value_base64" for bytes that are not UTF-8).

Every batch is durable before it counts as stored. When the connection breaks, the batches under
way are sent again, which neither loses nor doubles a record; what others write to the same keys
meanwhile may be superseded. An import that had to give up says from which line it can go on
(--from-line).`,
		Args: optionalArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if o.Format, err = transfer.ParseFormat(format); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			if onError != "stop" && onError != "skip" {
				return fmt.Errorf("%w: --on-error is stop or skip, not %q", errUsage, onError)
			}
			if o.Parallel < 1 || o.FromLine < 1 || o.BatchRecords < 1 || o.BatchRecords > client.MaxBatchOps {
				return fmt.Errorf("%w: --parallel and --from-line are at least 1, --batch is 1 to %d", errUsage, client.MaxBatchOps)
			}
			o.Skip = onError == "skip"
			return a.runImport(cmd, args, o, retryFor)
		},
	}
	f := c.Flags()
	f.StringVar(&format, "format", "tsv", "tsv or ndjson")
	f.StringVar(&onError, "on-error", "stop", "what a bad line does: stop or skip")
	f.IntVar(&o.Parallel, "parallel", 4, "batches under way at once")
	f.IntVar(&o.BatchRecords, "batch", client.MaxBatchOps, "records per batch")
	f.Int64Var(&o.FromLine, "from-line", 1, "first line to store; earlier ones are only checked")
	f.DurationVar(&retryFor, "retry-for", 2*time.Minute, "how long to go on while the node can't be reached or asks to wait")
	return c
}

func (a *app) runImport(cmd *cobra.Command, args []string, o transfer.ImportOptions, retryFor time.Duration) error {
	in, size, err := a.openInput(args)
	if err != nil {
		return err
	}
	defer in.Close()
	c, err := a.client(client.Options{RetryFor: retryFor, Timeout: 30 * time.Second})
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	defer c.Close()

	bar := newProgress(a.Err, "import", size)
	o.Progress = bar.add
	o.OnSkip = func(e *transfer.LineError) { bar.note("skipped: %v", e) }
	start := time.Now()
	res, err := transfer.Import(cmd.Context(), in, c, o)
	bar.finish()
	took := time.Since(start)
	if err != nil {
		fmt.Fprintf(a.Err, "stored %d records; every line up to %d is done\n", res.Stored, res.StoredLines)
		var bad *transfer.LineError
		if errors.As(err, &bad) {
			return fmt.Errorf("%w: %w (mend it and go on with --from-line %d, or leave bad lines out with --on-error skip)",
				errInput, err, res.StoredLines+1)
		}
		return fmt.Errorf("%w (go on with --from-line %d)", err, res.StoredLines+1)
	}
	if a.output == "json" {
		return a.printJSON(map[string]any{"stored": res.Stored, "skipped": res.Skipped, "seconds": took.Seconds()})
	}
	fmt.Fprintf(a.Out, "stored %d records in %s (%.0f/s), skipped %d\n",
		res.Stored, took.Round(time.Millisecond), float64(res.Stored)/took.Seconds(), res.Skipped)
	return nil
}

// openInput returns the input and its size, 0 when it is not known.
func (a *app) openInput(args []string) (io.ReadCloser, int64, error) {
	if len(args) == 0 || args[0] == "-" {
		return io.NopCloser(a.In), 0, nil
	}
	f, err := os.Open(args[0])
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w", errInput, err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("%w: %w", errInput, err)
	}
	return f, info.Size(), nil
}

func (a *app) exportCmd() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "export [FILE|-]",
		Short: "Write all records in key order to a file or standard output",
		Args:  optionalArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := transfer.ParseFormat(format)
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			return a.withClient(func(c *client.Client) error { return a.runExport(cmd, c, args, f) })
		},
	}
	c.Flags().StringVar(&format, "format", "tsv", "tsv or ndjson")
	return c
}

func (a *app) runExport(cmd *cobra.Command, c *client.Client, args []string, f transfer.Format) (err error) {
	out := a.Out
	if len(args) > 0 && args[0] != "-" {
		file, createErr := os.Create(args[0])
		if createErr != nil {
			return fmt.Errorf("%w: %w", errInput, createErr)
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		out = file
	}
	bar := newProgress(a.Err, "export", 0)
	var last int64
	res, err := transfer.Export(out, c.Scan(cmd.Context(), "", ""), f, func(n int64) {
		if n-last >= 1000 {
			bar.add(n - last)
			last = n
		}
	})
	bar.finish()
	if err != nil {
		return fmt.Errorf("after %d records: %w", res.Records, err)
	}
	fmt.Fprintf(a.Err, "wrote %d records\n", res.Records)
	if res.Conflicts > 0 {
		fmt.Fprintf(a.Err, "note: %d keys have concurrent values; only the winner of each is in the export\n", res.Conflicts)
	}
	return nil
}

// progress is a bar on a terminal, and nothing elsewhere.
type progress struct {
	pool *mpb.Progress
	bar  *mpb.Bar
	out  io.Writer
}

// newProgress shows total bytes, or a running count when total is 0.
func newProgress(out io.Writer, name string, total int64) *progress {
	file, ok := out.(*os.File)
	if !ok || !isTerminal(file) {
		return &progress{out: out}
	}
	pool := mpb.New(mpb.WithOutput(out), mpb.WithWidth(48))
	ends := []decor.Decorator{decor.CountersNoUnit("%d", decor.WCSyncSpace)}
	if total > 0 {
		ends = []decor.Decorator{
			decor.CountersKibiByte("% .1f / % .1f", decor.WCSyncSpace),
			decor.AverageSpeed(decor.SizeB1024(0), "  % .1f"),
			decor.AverageETA(decor.ET_STYLE_GO, decor.WCSyncSpace),
		}
	}
	bar := pool.AddBar(total, mpb.PrependDecorators(decor.Name(name+" ")), mpb.AppendDecorators(ends...))
	return &progress{pool: pool, bar: bar, out: out}
}

func (p *progress) add(n int64) {
	if p.bar != nil {
		p.bar.IncrInt64(n)
	}
}

// note prints a line above the bar.
func (p *progress) note(format string, args ...any) {
	out := p.out
	if p.pool != nil {
		out = p.pool
	}
	fmt.Fprintf(out, format+"\n", args...)
}

func (p *progress) finish() {
	if p.bar == nil {
		return
	}
	p.bar.Abort(false)
	p.pool.Wait()
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func humanBytes(n int64) string { return units.BytesSize(float64(n)) }

// setTotal fits the bar to a total that became known, or changed, on the way.
func (p *progress) setTotal(total int64) {
	if p.bar != nil && total > 0 {
		p.bar.SetTotal(total, false)
	}
}
