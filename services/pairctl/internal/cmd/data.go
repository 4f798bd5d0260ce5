package cmd

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/pairdb/pairdb/libs/client"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
)

func (a *app) putCmd() *cobra.Command {
	var w writeFlags
	c := &cobra.Command{
		Use:   "put KEY VALUE",
		Short: "Store a value (VALUE - reads it from standard input)",
		Args:  exactArgs("KEY", "VALUE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			value := []byte(args[1])
			if args[1] == "-" {
				var err error
				if value, err = io.ReadAll(a.In); err != nil {
					return fmt.Errorf("read the value: %w", err)
				}
			}
			opts, err := w.options(cmd)
			if err != nil {
				return err
			}
			return a.withClient(func(c *client.Client) error {
				r, err := c.Put(cmd.Context(), args[0], value, opts...)
				if err != nil {
					return err
				}
				return a.printResult(r)
			})
		},
	}
	c.Flags().DurationVar(&w.ttl, "ttl", 0, "let the value expire after this time, e.g. 90s or 24h")
	c.Flags().BoolVar(&w.ifAbsent, "if-absent", false, "only if the key has no value; exit code 7 otherwise")
	w.register(c)
	return c
}

func (a *app) deleteCmd() *cobra.Command {
	var w writeFlags
	c := &cobra.Command{
		Use:   "delete KEY",
		Short: "Delete a key",
		Args:  exactArgs("KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts, err := w.options(cmd)
			if err != nil {
				return err
			}
			return a.withClient(func(c *client.Client) error {
				r, err := c.Delete(cmd.Context(), args[0], opts...)
				if err != nil {
					return err
				}
				return a.printResult(r)
			})
		},
	}
	w.register(c)
	return c
}

func outcomeName(o client.Outcome) string {
	return strings.TrimPrefix(o.String(), "OUTCOME_")
}

func (a *app) printResult(r client.Result) error {
	if a.output == "json" {
		return a.printJSON(map[string]any{
			"outcome": outcomeName(r.Outcome), "siblings": r.Siblings, "clock": clockText(r.Clock), "replayed": r.Replayed,
		})
	}
	note := ""
	if r.Siblings > 1 {
		note += fmt.Sprintf(" (%d siblings; get --siblings shows them)", r.Siblings)
	}
	if r.Replayed {
		note += " (by an earlier request with this idempotency key)"
	}
	_, err := fmt.Fprintf(a.Out, "%s%s\n", outcomeName(r.Outcome), note)
	return err
}

func (a *app) getCmd() *cobra.Command {
	var siblings bool
	c := &cobra.Command{
		Use:   "get KEY",
		Short: "Print the value of a key; exit code 3 when there is none",
		Args:  exactArgs("KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(func(c *client.Client) error {
				v, err := c.Get(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.printValue(args[0], v, siblings)
			})
		},
	}
	c.Flags().BoolVar(&siblings, "siblings", false, "print every concurrent value with its clock")
	return c
}

func (a *app) printValue(key string, v client.Value, siblings bool) error {
	if a.output == "json" {
		out := map[string]any{"key": key, "found": v.Found, "clock": clockText(v.Clock)}
		if v.Found {
			putValue(out, v.Bytes)
			out["time"] = v.Time.UTC().Format(time.RFC3339Nano)
			if !v.ExpiresAt.IsZero() {
				out["expires_at"] = v.ExpiresAt.UTC().Format(time.RFC3339)
			}
		}
		if len(v.Siblings) > 0 {
			out["siblings"] = siblingsJSON(v.Siblings)
		}
		if err := a.printJSON(out); err != nil {
			return err
		}
		if !v.Found {
			return errNotFound
		}
		return nil
	}
	if !v.Found {
		return fmt.Errorf("key %q: %w", key, errNotFound)
	}
	if siblings && len(v.Siblings) > 0 {
		for _, s := range v.Siblings {
			if s.Tombstone {
				fmt.Fprintf(a.Out, "%s\t(deleted)\n", clockText(s.Clock))
				continue
			}
			fmt.Fprintf(a.Out, "%s\t%s\n", clockText(s.Clock), s.Value)
		}
		return nil
	}
	if _, err := a.Out.Write(append(v.Bytes, '\n')); err != nil {
		return err
	}
	if live := len(v.Live()); live > 1 {
		fmt.Fprintf(a.Err, "note: %d concurrent values; get --siblings shows them\n", live)
	}
	return nil
}

func siblingsJSON(all []*datav1.Sibling) []map[string]any {
	out := make([]map[string]any, 0, len(all))
	for _, s := range all {
		m := map[string]any{"clock": clockText(s.Clock), "tombstone": s.Tombstone}
		if s.Dot != nil {
			m["dot"] = fmt.Sprintf("%s:%d", s.Dot.NodeId, s.Dot.Counter)
		}
		if !s.Tombstone {
			putValue(m, s.Value)
		}
		out = append(out, m)
	}
	return out
}

// clockText prints a clock as "node:counter,...".
func clockText(c *datav1.VectorClock) string {
	var b strings.Builder
	for i, e := range c.GetEntries() {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%s:%d", e.NodeId, e.Counter)
	}
	return b.String()
}

// putValue adds a value to a JSON object: as text where it is text, else in base64.
func putValue(m map[string]any, value []byte) {
	if utf8.Valid(value) {
		m["value"] = string(value)
		return
	}
	m["value_base64"] = base64.StdEncoding.EncodeToString(value)
}

func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.Out)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// bounds turns the flags of scan into a key range.
func bounds(prefix, from, to string) (start, end string, err error) {
	if prefix == "" {
		return from, to, nil
	}
	if from != "" || to != "" {
		return "", "", fmt.Errorf("%w: --prefix can't be combined with --from and --to", errUsage)
	}
	start, end = client.Prefix(prefix)
	return start, end, nil
}

func (a *app) scanCmd() *cobra.Command {
	var prefix, from, to string
	var limit int
	c := &cobra.Command{
		Use:   "scan",
		Short: "Print keys and values in key order",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			start, end, err := bounds(prefix, from, to)
			if err != nil {
				return err
			}
			if limit < 0 {
				return fmt.Errorf("%w: --limit is not negative", errUsage)
			}
			out := bufio.NewWriterSize(a.Out, 64<<10)
			defer out.Flush()
			line := *a
			line.Out = out
			return a.withClient(func(c *client.Client) error {
				n := 0
				for r, err := range c.Scan(cmd.Context(), start, end) {
					if err != nil {
						return err
					}
					value, found := client.Winner(r)
					if !found {
						continue
					}
					if err := line.printRow(r.Key, value); err != nil {
						return err
					}
					if n++; n == limit {
						break
					}
				}
				return out.Flush()
			})
		},
	}
	f := c.Flags()
	f.StringVar(&prefix, "prefix", "", "keys that begin with this")
	f.StringVar(&from, "from", "", "keys not before this one")
	f.StringVar(&to, "to", "", "keys before this one")
	f.IntVar(&limit, "limit", 0, "at most this many keys; 0 is all")
	return c
}

func (a *app) printRow(key string, value []byte) error {
	if a.output == "json" {
		m := map[string]any{"key": key}
		putValue(m, value)
		return a.printJSON(m)
	}
	_, err := fmt.Fprintf(a.Out, "%s\t%s\n", key, value)
	return err
}

func (a *app) countCmd() *cobra.Command {
	var prefix, from, to string
	c := &cobra.Command{
		Use:   "count",
		Short: "Count the live keys",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			start, end, err := bounds(prefix, from, to)
			if err != nil {
				return err
			}
			return a.withClient(func(c *client.Client) error {
				n := 0
				for _, err := range c.Keys(cmd.Context(), start, end) {
					if err != nil {
						return err
					}
					n++
				}
				if a.output == "json" {
					return a.printJSON(map[string]any{"count": n})
				}
				fmt.Fprintln(a.Out, n)
				return nil
			})
		},
	}
	f := c.Flags()
	f.StringVar(&prefix, "prefix", "", "keys that begin with this")
	f.StringVar(&from, "from", "", "keys not before this one")
	f.StringVar(&to, "to", "", "keys before this one")
	return c
}
