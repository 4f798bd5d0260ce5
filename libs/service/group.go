package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/oklog/run"
)

// Stage is one part of a running binary: a server, a loop, an engine.
type Stage struct {
	// Name is for logs.
	Name string
	// Run works until Stop was called or the stage failed; then the group stops. A nil Run is a
	// stage that only has to be stopped.
	Run func() error
	// Stop makes Run return and finishes what is in flight. It may also be called when Run has
	// returned already. ctx ends with the limit of the stage. A nil Stop does nothing.
	Stop func(ctx context.Context) error
	// Limit bounds Stop and what Run does after it; a stage that takes longer is left behind and
	// the shutdown goes on. Default 10 s.
	Limit time.Duration
}

// Group runs stages. When one ends, or the context does, all are stopped one after another in the
// order in which they were added: add readiness and listeners first, storage last.
type Group struct {
	log    *slog.Logger
	stages []Stage
}

// NewGroup returns an empty group that logs the stops.
func NewGroup(log *slog.Logger) *Group { return &Group{log: log} }

// Add adds a stage. All stages are added before Run.
func (g *Group) Add(s Stage) {
	if s.Limit <= 0 {
		s.Limit = 10 * time.Second
	}
	g.stages = append(g.stages, s)
}

// Run runs all stages until one ends or ctx does, stops all, and returns the error of the stage that
// ended first, joined with those of the stops. The end of ctx is not an error.
func (g *Group) Run(ctx context.Context) error {
	var actors run.Group
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	actors.Add(func() error { <-ctx.Done(); return nil }, func(error) { cancel() })
	var mu sync.Mutex // guards stopErrs
	var stopErrs []error
	for _, s := range g.stages {
		a := &actor{stage: s, log: g.log, stopping: make(chan struct{}), ended: make(chan struct{}), left: make(chan struct{})}
		actors.Add(a.execute, func(error) {
			if err := a.stop(); err != nil {
				mu.Lock()
				stopErrs = append(stopErrs, err)
				mu.Unlock()
			}
		})
	}
	err := actors.Run()
	mu.Lock()
	defer mu.Unlock()
	return errors.Join(append([]error{err}, stopErrs...)...)
}

// actor is a stage while it runs.
type actor struct {
	stage    Stage
	log      *slog.Logger
	stopping chan struct{} // closed when stop begins
	ended    chan struct{} // closed when Run returned
	left     chan struct{} // closed when the limit has passed
}

// execute runs the stage; it returns early when the stage was left behind.
func (a *actor) execute() error {
	result := make(chan error, 1)
	go func() {
		defer close(a.ended)
		if a.stage.Run == nil {
			<-a.stopping
			return
		}
		if err := a.stage.Run(); err != nil {
			result <- fmt.Errorf("%s: %w", a.stage.Name, err)
		}
	}()
	select {
	case <-a.ended:
	case <-a.left:
	}
	select {
	case err := <-result:
		return err
	default:
		return nil
	}
}

// stop stops the stage and waits until it has ended, within the limit.
func (a *actor) stop() error {
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), a.stage.Limit)
	defer cancel()
	defer close(a.left)
	close(a.stopping)
	done := make(chan error, 1)
	go func() {
		var err error
		if a.stage.Stop != nil {
			err = a.stage.Stop(ctx)
		}
		<-a.ended
		done <- err
	}()
	select {
	case err := <-done:
		a.log.Info("stage stopped", "stage", a.stage.Name, "took", time.Since(start))
		if err != nil {
			return fmt.Errorf("stop %s: %w", a.stage.Name, err)
		}
		return nil
	case <-ctx.Done():
		a.log.Error("stage left behind", "stage", a.stage.Name, "limit", a.stage.Limit)
		return fmt.Errorf("stop %s: not done within %s", a.stage.Name, a.stage.Limit)
	}
}
