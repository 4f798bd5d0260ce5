package service

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
)

// Program is a binary.
type Program struct {
	// Name of the binary.
	Name string
	// Summary is one sentence for --help.
	Summary string
	// Config is a pointer to the configuration struct; Main fills it before Run. It may embed
	// LogConfig.
	Config any
	// Run does the work until ctx ends, which SIGTERM and SIGINT cause.
	Run func(ctx context.Context, rt *Runtime) error
	// Commands are subcommands: Name is the first argument.
	Commands []Command
	// Tracing opens the export of spans before Run and is closed after it; nil: the binary exports none.
	// It is the Open of package tracing.
	Tracing OpenTracing
	// Umask is set before Run when it is not 0: binaries of a pod share files by their group.
	Umask int
	// Stdout and Stderr default to those of the process.
	Stdout, Stderr io.Writer
}

// Command is a subcommand. It gets no configuration: it works on what its arguments name.
type Command struct {
	Name, Summary string
	// Run gets the arguments after the name. Its error is printed and becomes the exit code.
	Run func(ctx context.Context, args []string, stdout, stderr io.Writer) error
}

// Runtime is what Main hands to Run.
type Runtime struct {
	Log     *slog.Logger
	Level   *slog.LevelVar
	Metrics *prometheus.Registry
	Build   Build
	// Tracing is where spans go; nil: nowhere.
	Tracing *Tracing
}

// Main runs the program with the arguments after its name and returns the exit code.
func (p *Program) Main(ctx context.Context, args []string) int {
	if p.Stdout == nil {
		p.Stdout = os.Stdout
	}
	if p.Stderr == nil {
		p.Stderr = os.Stderr
	}
	fields, err := p.fields()
	if err != nil {
		return p.fail(WithExitCode(ExitUsage, err))
	}
	if len(args) == 0 {
		return p.serve(ctx)
	}
	switch args[0] {
	case "--help", "-h", "help":
		p.usage(p.Stdout, fields)
		return ExitOK
	case "--version", "version":
		fmt.Fprintf(p.Stdout, "%s %s\n", p.Name, ThisBuild())
		return ExitOK
	case "--print-config":
		return p.printConfig(fields)
	}
	names := []string{"--help", "--version", "--print-config"}
	for _, c := range p.Commands {
		if c.Name == args[0] {
			ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return p.fail(c.Run(ctx, args[1:], p.Stdout, p.Stderr))
		}
		names = append(names, c.Name)
	}
	return p.fail(WithExitCode(ExitUsage, fmt.Errorf("unknown argument %q; the nearest known one is %s (--help lists all)", args[0], Nearest(args[0], names))))
}

func (p *Program) fields() ([]Field, error) {
	if p.Config == nil {
		return nil, nil
	}
	return Fields(p.Config)
}

func (p *Program) printConfig(fields []Field) int {
	if p.Config != nil {
		if err := Load(p.Config); err != nil {
			return p.fail(WithExitCode(ExitUsage, configProblem(err)))
		}
	}
	printConfig(p.Stdout, fields)
	return ExitOK
}

// serve loads the configuration, prepares the runtime and runs the program.
func (p *Program) serve(ctx context.Context) int {
	logging := LogConfig{LogLevel: "info", LogFormat: "json"}
	if p.Config != nil {
		if err := Load(p.Config); err != nil {
			return p.fail(WithExitCode(ExitUsage, configProblem(err)))
		}
		if c, ok := p.Config.(interface{ logging() LogConfig }); ok {
			logging = c.logging()
		}
	}
	log, level, err := NewLogger(p.Stderr, logging)
	if err != nil {
		return p.fail(WithExitCode(ExitUsage, err))
	}
	if p.Umask != 0 {
		syscall.Umask(p.Umask)
	}
	// After the first signal the default is restored: a second one ends the process.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop)

	spans, err := p.openTracing(ctx, log)
	if err != nil {
		return p.fail(WithExitCode(ExitUsage, err))
	}
	rt := &Runtime{Log: log, Level: level, Metrics: NewRegistry(p.Name), Build: ThisBuild(), Tracing: spans}
	log.Info("starting", "binary", p.Name, "version", rt.Build.Version, "revision", rt.Build.Revision, "pid", os.Getpid())
	err = p.Run(ctx, rt)
	spans.stop(log)
	if err != nil {
		code := ExitCode(err)
		log.Error("stopped", "error", err, "exit_code", code)
		if logging.LogFormat == "text" {
			return p.fail(err) // once more for people: without quotes, as the last line
		}
		return code
	}
	log.Info("stopped", "exit_code", ExitOK)
	return ExitOK
}

// fail prints an error in one line and returns its exit code.
func (p *Program) fail(err error) int {
	if err != nil {
		fmt.Fprintf(p.Stderr, "%s: %v\n", p.Name, err)
	}
	return ExitCode(err)
}

func configProblem(err error) error { return fmt.Errorf("configuration: %w", err) }
