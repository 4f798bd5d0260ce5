package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pairdb/pairdb/services/storage-node/bench/engines"
	"github.com/pairdb/pairdb/services/storage-node/bench/report"
	"github.com/pairdb/pairdb/services/storage-node/bench/suite"
)

type flags struct {
	size, workloads, engines, out, dir, profiles string
	keys                                         uint64
	rounds                                       int
	list                                         bool
}

func command() *cobra.Command {
	var f flags
	c := &cobra.Command{
		Use:   "bench",
		Short: "measure PairDB's engine beside its peers",
		Long: `Runs the same workloads on the same data with PairDB's engine and its peers, in turn, and prints
one table of ratios to ` + engines.Baseline + ` and one of details. Progress goes to stderr.

  bench --size smoke                       every row, in about a minute; the figures mean nothing
  bench --workloads 'zipf|uniform'         rows whose names match
  bench --engines pairdb,pebble            these engines
  bench --cpuprofile profiles              a profile per row, engine and round
  bench growth                             how the cost of PairDB's engine grows with its data
  bench --list                             what rows and engines there are`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	p := c.PersistentFlags()
	p.StringVar(&f.size, "size", "default", "smoke, default or full")
	p.StringVar(&f.dir, "dir", "", "where the data is made, on the disk to be measured (default: a temporary directory)")
	p.Uint64Var(&f.keys, "keys", 0, "keys with values of 1 KiB, instead of what the size says")
	p.StringVar(&f.out, "out", "", "directory for the tables and charts")
	l := c.Flags()
	l.StringVar(&f.workloads, "workloads", "", "regular expression for the names of rows (default: all)")
	l.StringVar(&f.engines, "engines", "", "list of engines (default: all of this build: "+strings.Join(engines.Names(), ",")+")")
	l.StringVar(&f.profiles, "cpuprofile", "", "directory for profiles of the processor")
	l.IntVar(&f.rounds, "rounds", 0, "rounds, instead of what the size says")
	l.BoolVar(&f.list, "list", false, "list rows and engines")
	c.AddCommand(growth(&f), child(&f, suite.ServeCommand, suite.Serve), child(&f, suite.KillCommand, suite.ServeKill))
	return c
}

func (f *flags) sizes() (suite.Size, error) {
	s, err := suite.SizeNamed(f.size)
	if f.keys > 0 {
		s.Keys = f.keys
	}
	if f.rounds > 0 {
		s.Rounds = f.rounds
	}
	return s, err
}

func (f *flags) run(c *cobra.Command) error {
	if f.list {
		for _, r := range suite.Rows() {
			fmt.Fprintf(c.OutOrStdout(), "%-20s %s\n", r.Name, r.Help)
		}
		fmt.Fprintf(c.OutOrStdout(), "engines: %s\n", strings.Join(engines.Names(), ", "))
		return nil
	}
	config, err := f.config()
	if err != nil {
		return err
	}
	config.Progress = c.ErrOrStderr()
	result, err := suite.Run(c.Context(), config)
	if err != nil {
		return err
	}
	if err := report.Markdown(c.OutOrStdout(), result); err != nil {
		return err
	}
	if f.out == "" {
		return nil
	}
	return writeFiles(f.out, map[string]func(io.Writer) error{
		"engine.md":  func(w io.Writer) error { return report.Markdown(w, result) },
		"engine.svg": func(w io.Writer) error { return report.Chart(w, result) },
	})
}

func (f *flags) config() (suite.Config, error) {
	var c suite.Config
	var err error
	if c.Size, err = f.sizes(); err != nil {
		return c, err
	}
	wanted, err := regexp.Compile(f.workloads)
	if err != nil {
		return c, fmt.Errorf("--workloads: %w", err)
	}
	for _, r := range suite.Rows() {
		if wanted.MatchString(r.Name) {
			c.Rows = append(c.Rows, r)
		}
	}
	if len(c.Rows) == 0 {
		return c, fmt.Errorf("no row matches %q: see --list", f.workloads)
	}
	c.Engines = engines.Names()
	if f.engines != "" {
		c.Engines = strings.Split(f.engines, ",")
	}
	for _, e := range c.Engines {
		if !slices.Contains(engines.Names(), e) {
			return c, fmt.Errorf("no engine %q in this build: one of %s expected", e, strings.Join(engines.Names(), ", "))
		}
	}
	if c.Profiles, err = absolute(f.profiles); err != nil {
		return c, err
	}
	c.Dir, err = os.MkdirTemp(f.dir, "pairdb-bench-")
	return c, err
}

func absolute(dir string) (string, error) {
	if dir == "" {
		return "", nil
	}
	return filepath.Abs(dir)
}

// writeFiles writes what each writer makes below dir.
func writeFiles(dir string, files map[string]func(io.Writer) error) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	for name, write := range files {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if err := errors.Join(write(f), f.Close()); err != nil {
			return fmt.Errorf("%s: %w", f.Name(), err)
		}
	}
	return nil
}
