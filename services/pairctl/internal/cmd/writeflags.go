package cmd

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pairdb/pairdb/libs/client"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
)

// writeFlags say what a put or a delete follows from, and when it is made.
type writeFlags struct {
	ttl                                       time.Duration
	ifAbsent                                  bool
	ifValue, ifClock, context, idempotencyKey string
}

// register adds the flags that put and delete share.
func (w *writeFlags) register(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&w.ifValue, "if-value", "", "only if this is the value of the key; exit code 7 otherwise")
	f.StringVar(&w.ifClock, "if-clock", "", "only if this is the clock of the key, as 'get -o json' shows it; empty: the node has never seen the key")
	f.StringVar(&w.context, "context", "", "supersede what a read with this clock has seen, and keep what came since")
	f.StringVar(&w.idempotencyKey, "idempotency-key", "", "name the write: the same command again within a day changes nothing")
}

// options returns what the flags that are given mean; an empty text is a value of its own.
func (w *writeFlags) options(cmd *cobra.Command) ([]client.WriteOption, error) {
	opts := []client.WriteOption{client.WithTTL(w.ttl)}
	given := cmd.Flags().Changed
	if w.ifAbsent {
		opts = append(opts, client.IfAbsent())
	}
	if given("if-value") {
		opts = append(opts, client.IfValue([]byte(w.ifValue)))
	}
	if given("idempotency-key") {
		opts = append(opts, client.WithIdempotencyKey(w.idempotencyKey))
	}
	for _, flag := range []struct {
		name, text string
		option     func(client.Clock) client.WriteOption
	}{{"if-clock", w.ifClock, client.IfClock}, {"context", w.context, client.WithContext}} {
		if !given(flag.name) {
			continue
		}
		clock, err := parseClock(flag.text)
		if err != nil {
			return nil, fmt.Errorf("%w: --%s: %w", errUsage, flag.name, err)
		}
		opts = append(opts, flag.option(clock))
	}
	return opts, nil
}

// parseClock reads what clockText prints.
func parseClock(text string) (client.Clock, error) {
	clock := &datav1.VectorClock{}
	if text == "" {
		return clock, nil
	}
	for entry := range strings.SplitSeq(text, ",") {
		i := strings.LastIndexByte(entry, ':')
		if i <= 0 {
			return nil, fmt.Errorf("%q is no clock: NODE:COUNTER, separated by commas, is wanted", text)
		}
		counter, err := strconv.ParseUint(entry[i+1:], 10, 64)
		if err != nil || counter == 0 {
			return nil, fmt.Errorf("%q is no clock: the counter of %s is %q", text, entry[:i], entry[i+1:])
		}
		clock.Entries = append(clock.Entries, &datav1.ClockEntry{NodeId: entry[:i], Counter: counter})
	}
	return clock, nil
}
