package event_test

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pairdb/pairdb/libs/event"
	eventv1 "github.com/pairdb/pairdb/proto/pairdb/event/v1"
)

// follow prints the events of all nodes from an hour ago on, until ctx ends.
func follow(ctx context.Context, url string) error {
	nc, err := nats.Connect(url)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	since := time.Now().Add(-time.Hour)
	consumer, err := js.OrderedConsumer(ctx, event.StreamName, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{event.Filter("", "", "")},
		DeliverPolicy:  jetstream.DeliverByStartTimePolicy, OptStartTime: &since,
	})
	if err != nil {
		return err
	}
	consuming, err := consumer.Consume(func(m jetstream.Msg) {
		if e, err := event.Decode(m.Data()); err == nil {
			fmt.Println(e.Time.Format(time.RFC3339), e.Node, e.Kind, string(e.Data))
		}
	})
	if err != nil {
		return err
	}
	defer consuming.Stop()
	<-ctx.Done()
	return nil
}

// An event as it is sent, and as it is read.
func Example() {
	data, err := event.EncodePayload(event.NodeReady, &eventv1.NodeReady{TookMs: 840})
	if err != nil {
		panic(err)
	}
	sent := event.Event{
		ID: "node-0.5e1a77c09b3d2f46.7", Kind: event.NodeReady, Cluster: "pairdb", Node: "node-0",
		Time: time.Date(2026, time.November, 30, 8, 15, 0, 0, time.UTC), Sequence: 7, Data: data,
	}
	b, err := sent.Encode()
	if err != nil {
		panic(err)
	}
	fmt.Println(sent.Subject())
	read, err := event.Decode(b)
	if err != nil {
		panic(err)
	}
	payload, err := read.Payload()
	fmt.Println(read.Node, read.Sequence, payload.(*eventv1.NodeReady).GetTookMs(), err)

	// Output:
	// pairdb.pairdb.event.node-0.node.ready
	// node-0 7 840 <nil>
}

var _ = follow // docs/EVENTS.md shows it
