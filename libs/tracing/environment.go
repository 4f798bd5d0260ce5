package tracing

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// The variables that this package reads itself. A wrong value of theirs would be replaced by a default of
// the SDK: every request traced, or spans sent to this machine.
const (
	endpointKey       = "OTEL_EXPORTER_OTLP_ENDPOINT"
	tracesEndpointKey = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
	protocolKey       = "OTEL_EXPORTER_OTLP_PROTOCOL"
	tracesProtocolKey = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
	exporterKey       = "OTEL_TRACES_EXPORTER"
	samplerKey        = "OTEL_TRACES_SAMPLER"
	samplerArgKey     = "OTEL_TRACES_SAMPLER_ARG"
	disabledKey       = "OTEL_SDK_DISABLED"
)

// samplers are the values of OTEL_TRACES_SAMPLER that the SDK knows.
var samplers = []string{
	"always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio",
}

// wanted reports whether the environment asks for an export of spans. An error is a value that can't be
// what was meant.
func wanted(getenv func(string) string) (bool, error) {
	get := func(key string) string { return strings.TrimSpace(getenv(key)) }
	key := tracesEndpointKey
	if get(key) == "" {
		key = endpointKey
	}
	if get(key) == "" || strings.EqualFold(get(disabledKey), "true") || strings.EqualFold(get(exporterKey), "none") {
		return false, nil
	}
	if u, err := url.Parse(get(key)); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return false, fmt.Errorf("%s=%q: write http://host:4317, or https:// for TLS", key, get(key))
	}
	if e := get(exporterKey); e != "" && e != "otlp" {
		return false, fmt.Errorf("%s=%q: otlp or none is expected", exporterKey, e)
	}
	for _, key := range []string{protocolKey, tracesProtocolKey} {
		if p := get(key); p != "" && p != "grpc" {
			return false, fmt.Errorf("%s=%q: grpc is what this program speaks", key, p)
		}
	}
	return true, checkSampler(get(samplerKey), get(samplerArgKey))
}

func checkSampler(sampler, arg string) error {
	if sampler == "" {
		return nil
	}
	if !slices.Contains(samplers, sampler) {
		return fmt.Errorf("%s=%q: one of %s is expected", samplerKey, sampler, strings.Join(samplers, ", "))
	}
	if !strings.HasSuffix(sampler, "traceidratio") || arg == "" {
		return nil
	}
	if ratio, err := strconv.ParseFloat(arg, 64); err != nil || !(ratio >= 0 && ratio <= 1) {
		return fmt.Errorf("%s=%q: a number from 0 to 1 is expected", samplerArgKey, arg)
	}
	return nil
}
