package cmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/pairdb/pairdb/libs/event"
)

// eventFlags say which events are shown.
type eventFlags struct {
	nats             event.Config
	since            string
	kind, node       string
	follow           bool
	limit            int
	start            time.Time // of since; zero is from the beginning
	newOnly          bool
	connectionPeriod time.Duration
}

func (a *app) eventsCmd() *cobra.Command {
	var o eventFlags
	c := &cobra.Command{
		Use:   "events",
		Short: "Show what happened in the cluster, from its NATS",
		Long: `events prints a line for each event: time, node, kind, and what there is to say about it. NATS keeps
them for a week. --follow goes on with new ones until Ctrl-C, and begins with them unless --since says
otherwise. docs/EVENTS.md lists the kinds.

  pairctl events --since 1h                 what happened in the last hour
  pairctl events --follow --kind disk       disks that fill up, as it happens`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(time.Now()); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			return a.events(cmd.Context(), o)
		},
	}
	f := c.Flags()
	natsFlags(f, &o.nats)
	f.BoolVarP(&o.follow, "follow", "f", false, "go on with what happens from now on")
	f.StringVar(&o.since, "since", "", "begin then: a duration before now (1h), or a time (2026-11-30T08:00:00Z)")
	f.StringVar(&o.kind, "kind", "", "only kinds that begin with this: disk, node.degraded")
	f.StringVar(&o.node, "node", "", "only events of this node")
	f.IntVar(&o.limit, "limit", 0, "end after this many events; 0 is never")
	return c
}

// check completes the flags and says what is wrong with them.
func (o *eventFlags) check(now time.Time) error {
	if err := checkNATS(o.nats); err != nil {
		return err
	}
	if o.limit < 0 {
		return errors.New("--limit is not negative")
	}
	o.newOnly = o.follow && o.since == ""
	o.connectionPeriod = callTimeout
	if o.since == "" {
		return nil
	}
	if d, err := time.ParseDuration(o.since); err == nil && d >= 0 {
		o.start = now.Add(-d)
		return nil
	}
	at, err := time.Parse(time.RFC3339, o.since)
	if err != nil {
		return fmt.Errorf("--since %q is neither a duration (1h) nor a time (2026-11-30T08:00:00Z)", o.since)
	}
	o.start = at
	return nil
}

// consumer returns what the server is asked for. Times of the stream are those at which it got an
// event, which is later than what happened: the start is looked at again for each event.
func (o *eventFlags) consumer() jetstream.OrderedConsumerConfig {
	c := jetstream.OrderedConsumerConfig{FilterSubjects: []string{event.Filter("", o.node, "")}}
	switch {
	case o.newOnly:
		c.DeliverPolicy = jetstream.DeliverNewPolicy
	case !o.start.IsZero():
		c.DeliverPolicy, c.OptStartTime = jetstream.DeliverByStartTimePolicy, &o.start
	}
	return c
}

// errNATS says that NATS is not there.
var errNATS = errors.New("NATS is not reached")

func (a *app) events(ctx context.Context, o eventFlags) error {
	conn, err := event.Connect(o.nats, "pairctl events", slog.New(slog.DiscardHandler))
	if err != nil {
		return fmt.Errorf("%w: %w", errInput, err)
	}
	defer conn.Close()
	consumer, err := openEvents(ctx, conn, o)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	if !o.follow && consumer.CachedInfo().NumPending == 0 {
		return nil
	}
	messages, err := consumer.Messages()
	if err != nil {
		return fmt.Errorf("events: %w", err)
	}
	defer messages.Stop()
	defer context.AfterFunc(ctx, messages.Stop)()
	if o.follow {
		fmt.Fprintln(a.Err, "note: following; Ctrl-C ends it")
	}
	return a.printEvents(ctx, messages, o)
}

// waitForNATS waits a little for the connection.
func waitForNATS(ctx context.Context, conn *event.Conn, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !conn.Connected() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			if conn.Refusals() > 0 {
				return fmt.Errorf("%w: it refuses the credentials", errNATS)
			}
			return fmt.Errorf("%w: no answer within %s", errNATS, limit)
		}
	}
	return nil
}

// openEvents asks for the stream.
func openEvents(ctx context.Context, conn *event.Conn, o eventFlags) (jetstream.Consumer, error) {
	if err := waitForNATS(ctx, conn, o.connectionPeriod); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	js, err := jetstream.New(conn.NATS())
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	consumer, err := js.OrderedConsumer(ctx, event.StreamName, o.consumer())
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return nil, fmt.Errorf("%w: this NATS has no stream %s: no node has published to it yet", errInput, event.StreamName)
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, nats.ErrNoResponders):
		return nil, fmt.Errorf("%w: this NATS has no JetStream, or it is not for this user", errInput)
	case err != nil:
		return nil, fmt.Errorf("events: %w", err)
	}
	return consumer, nil
}

func (a *app) printEvents(ctx context.Context, messages jetstream.MessagesContext, o eventFlags) error {
	for shown := 0; ; {
		m, err := messages.Next()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, jetstream.ErrMsgIteratorClosed) {
				return nil // Ctrl-C is how following ends
			}
			return fmt.Errorf("events: %w", err)
		}
		e, err := event.Decode(m.Data())
		switch {
		case err != nil:
			fmt.Fprintf(a.Err, "note: %s is no event of PairDB: %v\n", m.Subject(), err)
		case o.wants(e):
			if err := a.printClusterEvent(e, m.Data()); err != nil {
				return err
			}
			shown++
		}
		about, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("events: %w", err)
		}
		if o.limit > 0 && shown >= o.limit || !o.follow && about.NumPending == 0 {
			return nil
		}
	}
}

// wants reports whether an event is one of those that were asked for.
func (o *eventFlags) wants(e event.Event) bool {
	return strings.HasPrefix(e.Kind, o.kind) && (o.node == "" || e.Node == o.node) && !e.Time.Before(o.start)
}

func (a *app) printClusterEvent(e event.Event, encoded []byte) error {
	if a.output == "json" {
		_, err := fmt.Fprintf(a.Out, "%s\n", encoded)
		return err
	}
	line := fmt.Sprintf("%s  %-16s %-22s %s", e.Time.Local().Format("2006-01-02 15:04:05.000"), e.Node, e.Kind, summary(e))
	_, err := fmt.Fprintln(a.Out, strings.TrimRight(line, " "))
	return err
}

// summary says in one line what an event carries: the fields that are set, in the order of the message.
func summary(e event.Event) string {
	payload, err := e.Payload()
	if err != nil {
		return oneLine(string(e.Data)) // newer than this pairctl
	}
	if e.Kind == event.NodeDegraded && proto.Size(payload) == 0 {
		return "all is well again"
	}
	var words []string
	collect(&words, "", payload.ProtoReflect())
	return strings.Join(words, " ")
}

// collect appends name=value for the fields of a message; what is in a message of it has its name in
// front, what is in a list its place.
func collect(words *[]string, prefix string, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !m.Has(f) {
			continue
		}
		name := prefix + string(f.Name())
		if !f.IsList() {
			appendWord(words, name, f, m.Get(f))
			continue
		}
		for j := range m.Get(f).List().Len() {
			appendWord(words, fmt.Sprintf("%s[%d]", name, j), f, m.Get(f).List().Get(j))
		}
	}
}

func appendWord(words *[]string, name string, f protoreflect.FieldDescriptor, v protoreflect.Value) {
	switch f.Kind() {
	case protoreflect.MessageKind:
		collect(words, name+".", v.Message())
	case protoreflect.EnumKind:
		text := fmt.Sprint(v.Enum())
		if d := f.Enum().Values().ByNumber(v.Enum()); d != nil {
			text = string(d.Name())
		}
		*words = append(*words, name+"="+text)
	case protoreflect.StringKind:
		*words = append(*words, name+"="+quoted(v.String()))
	default:
		*words = append(*words, name+"="+v.String())
	}
}

// quoted quotes a text that a reader could not tell from what is around it.
func quoted(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '"' || r == '=' || r == 0x7f }) {
		return fmt.Sprintf("%q", s)
	}
	return s
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
