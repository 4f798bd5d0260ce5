package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/pairdb/pairdb/services/storage-node/bench/suite"
)

// child is a command that the program starts itself.
func child(f *flags, name string, serve func(engine, dir string, size suite.Size, in io.Reader, out io.Writer) error) *cobra.Command {
	var engine string
	c := &cobra.Command{
		Use: name, Hidden: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			size, err := f.sizes()
			if err != nil {
				return err
			}
			return serve(engine, f.dir, size, c.InOrStdin(), c.OutOrStdout())
		},
	}
	c.Flags().StringVar(&engine, "engine", "", "which")
	return c
}
