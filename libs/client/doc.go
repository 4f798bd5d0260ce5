// Package client is the Go client of a PairDB storage node: connection, deadlines, retries of what
// can be retried, and calls in terms of keys and values. It never hides a conflict: siblings and
// clocks are part of every answer.
//
// # Repeats
//
// A call that failed is repeated while that can help, for Options.RetryFor: the node could not be
// reached, is starting or stopping, or asked to come back. A write whose answer was lost may have been
// applied. To send it again is exact only if the node can tell a repeat from a second write, which
// would supersede what somebody else wrote in between. So
//
//   - Put and Delete name themselves with a random idempotency key, unless they have one, or a clock,
//     which tells repeats by nature. The node keeps the key for a day. AtLeastOnce, or a client
//     without repeats (a negative RetryFor), does without; so does a write that finds the node's memory
//     of keys damaged, and is not repeated then.
//   - A batch has no key. It is repeated when it was not applied for sure, or when Batch.AtLeastOnce
//     allows it, or when all its items have clocks.
//   - A pipeline repeats nothing.
//   - Scan, Keys and Watch go on where they were cut.
//
// A write that is given up although it may have been applied says so: MaybeApplied. Keys and clocks
// of a blind write are those of one node, so the address must be that of one node.
//
// # Tracing
//
// The package has no dependency on OpenTelemetry: its instrumentation of gRPC is a stats.Handler, which
// the application adds as it does to any other connection, with a provider of its own choice:
//
//	client.Options{DialOptions: []grpc.DialOption{grpc.WithStatsHandler(otelgrpc.NewClientHandler())}}
//
// Every try of a call is a span then, below the span of the call's context, and its traceparent goes to
// the node. A pipeline and a watch are one span each.
package client
