// Package tracing exports the spans of a binary to an OpenTelemetry collector, as the OTEL_… variables of
// the environment say. It never makes a request wait: spans that can't be sent are dropped.
//
// A binary names Open in its service.Program:
//
//	&service.Program{Name: "storage-node", Tracing: tracing.Open, …}
//
// Spans are exported if there is an endpoint, and only then: no other process is looked for by default.
//
//	OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
//	                         http://host:4317, or https:// for TLS: gRPC of a collector
//	OTEL_SDK_DISABLED=true, OTEL_TRACES_EXPORTER=none
//	                         no export all the same
//	OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG
//	                         which traces; parentbased_always_on: what the caller decided, else all
//	OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES
//	                         what the spans say about the process; the name is pairdb-<binary>
//
// Headers, timeouts, certificates and the size of batches are those of the OpenTelemetry SDK for Go, which
// reads their variables itself. The context of a trace travels in the metadata of gRPC as W3C Trace Context
// and Baggage.
package tracing
