package service

import (
	"fmt"
	"io"
	"log/slog"
	"time"
)

// LogConfig is how a binary logs. Embed it in a configuration.
type LogConfig struct {
	LogLevel  string `envconfig:"PAIRDB_LOG_LEVEL" default:"info" unit:"word" desc:"Lowest level that is logged: debug, info, warn or error."`
	LogFormat string `envconfig:"PAIRDB_LOG_FORMAT" default:"json" unit:"word" desc:"json for machines, text for people."`
}

// Check adds what is wrong with the configuration to p.
func (c LogConfig) Check(p *Problems) {
	p.OneOf("PAIRDB_LOG_LEVEL", c.LogLevel, "debug", "info", "warn", "error")
	p.OneOf("PAIRDB_LOG_FORMAT", c.LogFormat, "json", "text")
}

func (c LogConfig) logging() LogConfig { return c }

// NewLogger returns a logger that writes one line per event to w, and its level, which may be
// changed while it runs.
func NewLogger(w io.Writer, c LogConfig) (*slog.Logger, *slog.LevelVar, error) {
	level := new(slog.LevelVar)
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return nil, nil, fmt.Errorf("PAIRDB_LOG_LEVEL: %w", err)
	}
	o := &slog.HandlerOptions{Level: level, ReplaceAttr: readableDurations}
	if c.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, o)), level, nil
	}
	return slog.New(slog.NewJSONHandler(w, o)), level, nil
}

// readableDurations writes durations as words ("1.5s"): JSON would show nanoseconds.
func readableDurations(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().Round(time.Microsecond).String())
	}
	return a
}
