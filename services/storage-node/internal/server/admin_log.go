package server

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// logLevels are the words for levels, the loudest last.
var logLevels = []string{"debug", "info", "warn", "error"}

// SetLogLevel changes what the node logs until it restarts. It answers in every phase: a node that does
// not come up is the one that has to be listened to. Without a level it changes nothing.
func (a adminService) SetLogLevel(ctx context.Context, r *adminv1.SetLogLevelRequest) (*adminv1.SetLogLevelResponse, error) {
	level := a.s.node.Level
	if level == nil {
		return nil, fmt.Errorf("%w: the level of this log can't be changed", errUnavailable)
	}
	previous := strings.ToLower(level.Level().String())
	if r.GetLevel() == "" {
		return &adminv1.SetLogLevelResponse{Previous: previous}, nil
	}
	if !slices.Contains(logLevels, r.GetLevel()) {
		return nil, fmt.Errorf("%w: %q; one of %s is expected", errLogLevel, clipped(r.GetLevel(), 20), strings.Join(logLevels, ", "))
	}
	var wanted slog.Level
	if err := wanted.UnmarshalText([]byte(r.GetLevel())); err != nil {
		return nil, fmt.Errorf("%w: %w", errLogLevel, err)
	}
	before := level.Level()
	level.Set(min(wanted, before)) // the change is to be seen whichever of both is louder
	if c := callFrom(ctx); c != nil {
		c.g.log.LogAttrs(ctx, slog.LevelWarn, "log level changed",
			append([]slog.Attr{slog.String("from", previous), slog.String("to", r.GetLevel())}, c.g.about(ctx)...)...)
	}
	level.Set(wanted)
	return &adminv1.SetLogLevelResponse{Previous: previous}, nil
}
