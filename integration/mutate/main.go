// Package main breaks the promises of the engine and the protections of a pod on purpose, one at a time, and reports which
// test notices. It never changes the tree that it stands in: every mutation is made in a private copy.
//
// usage: mutate [-rev REV] [-list] [NAME]
//
// NAME is a regular expression: only mutations whose name matches are tried. A mutation whose old
// text is not there exactly once, that does not compile, or whose test fails without it proves
// nothing: that is an error, not a catch.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// wantCaught is the share of mutations that a test must notice. Of those of protections it is all.
const wantCaught = 0.9

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("mutate", flag.ContinueOnError)
	rev := flags.String("rev", "", "mutate this commit; default: the working tree as it is")
	list := flags.Bool("list", false, "print the mutations and run nothing")
	if err := flags.Parse(args); err != nil {
		return err
	}
	chosen, err := choose(mutations, flags.Arg(0))
	if err != nil {
		return err
	}
	if *list {
		fmt.Print(table(chosen))
		return nil
	}
	root, err := gitRoot(ctx)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "pairdb-mutate-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	w := &workshop{root: filepath.Join(tmp, "tree"), tmp: tmp, sound: map[string]error{}}
	if err := copyTree(ctx, root, *rev, w.root); err != nil {
		return fmt.Errorf("copy the tree: %w", err)
	}
	return w.tryAll(ctx, chosen)
}

// choose returns the mutations whose names match.
func choose(all []mutation, name string) ([]mutation, error) {
	want, err := regexp.Compile(name)
	if err != nil {
		return nil, err
	}
	var chosen []mutation
	for _, m := range all {
		if want.MatchString(m.name) {
			chosen = append(chosen, m)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no mutation matches %q", name)
	}
	return chosen, nil
}

// tryAll tries the mutations and prints the verdicts. It fails below wantCaught.
func (w *workshop) tryAll(ctx context.Context, chosen []mutation) error {
	caught, broken := 0, 0
	var survivors []string
	fmt.Printf("%-34s %-8s %7s  %s\n", "MUTATION", "VERDICT", "SECONDS", "BY")
	for _, m := range chosen {
		v, err := w.try(ctx, m)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			broken++
			fmt.Printf("%-34s %-8s %7s  %v\n", m.name, "ERROR", "", err)
			continue
		case v.caught:
			caught++
			fmt.Printf("%-34s %-8s %7.1f  %s\n", m.name, "caught", v.took.Seconds(), v.by)
		default:
			survivors = append(survivors, m.name)
			fmt.Printf("%-34s %-8s %7.1f  %s\n", m.name, "SURVIVED", v.took.Seconds(), m.run)
		}
	}
	fmt.Printf("%d of %d caught\n", caught, len(chosen))
	return judge(len(chosen), broken, survivors)
}

// judge is the verdict over all that were tried: how many prove nothing, and the names of those that no test noticed.
func judge(tried, broken int, survivors []string) error {
	if broken > 0 {
		return fmt.Errorf("%d mutations prove nothing", broken)
	}
	for _, p := range protections {
		if slices.Contains(survivors, p.name) {
			return fmt.Errorf("no test notices that a protection is gone: %s", p.name)
		}
	}
	if float64(tried-len(survivors)) < wantCaught*float64(tried) {
		return fmt.Errorf("less than %.0f %% are caught", 100*wantCaught)
	}
	return nil
}

// table returns the mutations as docs/TESTING.md shows them.
func table(all []mutation) string {
	var b strings.Builder
	b.WriteString("| mutation | what is broken | goes red |\n|---|---|---|\n")
	for _, m := range all {
		tests := "`" + strings.ReplaceAll(m.run, "|", "`, `") + "`"
		if m.part != "" {
			tests += ", " + strings.ReplaceAll(m.part, "_", " ")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s (%s) |\n", m.name, m.breaks, tests, filepath.Base(m.pkg))
	}
	return b.String()
}
