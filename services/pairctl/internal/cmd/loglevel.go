package cmd

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pairdb/pairdb/libs/client"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// logLevels are the words for levels.
var logLevels = []string{"debug", "info", "warn", "error"}

func (a *app) logLevelCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "log-level [LEVEL]",
		Short: "Show from which level on the node logs, or change it until the node restarts",
		Long: `log-level shows from which level on the node logs. With debug, info, warn or error it changes the
level until the node restarts, and says what it was.`,
		Args:      optionalArg,
		ValidArgs: logLevels,
		RunE: func(cmd *cobra.Command, args []string) error {
			level := ""
			if len(args) == 1 {
				level = args[0]
				if !slices.Contains(logLevels, level) {
					return fmt.Errorf("%w: %q is none of %s", errUsage, level, strings.Join(logLevels, ", "))
				}
			}
			return a.withClient(func(c *client.Client) error {
				ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
				defer cancel()
				r, err := c.Admin().SetLogLevel(ctx, &adminv1.SetLogLevelRequest{Level: level})
				if err != nil {
					return fmt.Errorf("log level: %w", err)
				}
				if level == "" {
					return a.say(map[string]any{"level": r.GetPrevious()}, "%s", r.GetPrevious())
				}
				return a.say(map[string]any{"level": level, "previous": r.GetPrevious()}, "%s, was %s", level, r.GetPrevious())
			})
		},
	}
}
