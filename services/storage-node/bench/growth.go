package main

import (
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/pairdb/pairdb/services/storage-node/bench/engines"
	"github.com/pairdb/pairdb/services/storage-node/bench/report"
	"github.com/pairdb/pairdb/services/storage-node/bench/suite"
)

// growthRows are those whose cost may depend on how much data there is.
var growthRows = []string{"fill-random", "miss-1", "zipf-1", "uniform-1", "scan-100", "overwrite-4"}

// growthDivisors make the sizes from the size's number of keys: 1×, 10×, 100×.
var growthDivisors = []uint64{100, 10, 1}

func growth(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "growth",
		Short: "how the cost of PairDB's engine grows with its data: 1×, 10× and 100× keys",
		Long: `Runs the main rows with PairDB's engine on a hundredth, a tenth and all of the size's keys, and
prints microseconds per operation for each.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			size, err := f.sizes()
			if err != nil {
				return err
			}
			var results []suite.Result
			for _, by := range growthDivisors {
				config := suite.Config{Size: size, Engines: []string{engines.Ours}, Progress: c.ErrOrStderr()}
				config.Size.Keys = max(size.Keys/by, 200) // more than a scan
				for _, r := range suite.Rows() {
					for _, name := range growthRows {
						if r.Name == name {
							config.Rows = append(config.Rows, r)
						}
					}
				}
				if config.Dir, err = os.MkdirTemp(f.dir, "pairdb-bench-"); err != nil {
					return err
				}
				r, err := suite.Run(c.Context(), config)
				if err != nil {
					return err
				}
				results = append(results, r)
			}
			if err := report.GrowthMarkdown(c.OutOrStdout(), results); err != nil || f.out == "" {
				return err
			}
			return writeFiles(f.out, map[string]func(io.Writer) error{
				"growth.md":  func(w io.Writer) error { return report.GrowthMarkdown(w, results) },
				"growth.svg": func(w io.Writer) error { return report.GrowthChart(w, results) },
			})
		},
	}
}
