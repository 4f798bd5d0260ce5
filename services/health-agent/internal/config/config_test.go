package config

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/service/servicetest"
)

func TestConfigurationPageAndDefaultsAreCurrent(t *testing.T) {
	servicetest.Config(t, "health-agent", &Config{})
}

// A value outside of its range must name the key and the range, and never run.
func TestEveryLimitIsCheckedOnBothSides(t *testing.T) {
	for _, c := range []struct {
		key       string
		good, bad []string
	}{
		{"PAIRDB_SOCKET", []string{"/" + strings.Repeat("s", 102)}, []string{"", "/" + strings.Repeat("s", 103)}},
		{"PAIRDB_NODE_ID", []string{"", strings.Repeat("n", 100)}, []string{strings.Repeat("n", 101)}},
		{"PAIRDB_DATA_DIR", []string{"/data", "data"}, []string{""}},
		{"PAIRDB_ZONE", []string{"", strings.Repeat("z", 100)}, []string{strings.Repeat("z", 101)}},
		{"PAIRDB_GOSSIP_ADDR", []string{":0", "127.0.0.1:7946", "[::1]:7946"}, []string{"", "7946", "localhost:7946", ":x"}},
		{"PAIRDB_GOSSIP_ADVERTISE_ADDR", []string{"", "10.0.0.1:7946", "[::1]:1"}, []string{":7946", "pod:7946", "10.0.0.1:0", "10.0.0.1"}},
		{"PAIRDB_GOSSIP_SEEDS", []string{"", "a:1", "a:1,10.0.0.1:7946,dns+pairdb.svc:7946", strings.Repeat("a:1,", 99) + "a:1"},
			[]string{"a", "a:0", ":1", "a:1,,b:1", "a:1, b:1", "tcp+a:1", strings.Repeat("a:1,", 100) + "a:1"}},
		{"PAIRDB_HEALTH_OPS_ADDR", []string{":0", "127.0.0.1:9094"}, []string{"", "9094", ":x"}},
		{"PAIRDB_NATS_URL", []string{"", "nats://n:4222"}, []string{"n:4222", "http://n"}},
		{"PAIRDB_NATS_CREDENTIALS", []string{""}, []string{"/file"}},
		{"PAIRDB_NATS_CA", []string{""}, []string{"/file"}},
		{"PAIRDB_OPS_PPROF", []string{"true"}, []string{"yes", ""}},
		{"PAIRDB_SHUTDOWN_TIMEOUT", []string{"1s", "10m"}, []string{"0s", "999ms", "11m"}},
		{"PAIRDB_LOG_LEVEL", []string{"debug", "error"}, []string{"", "loud"}},
		{"PAIRDB_LOG_FORMAT", []string{"json", "text"}, []string{"", "xml"}},
	} {
		t.Run(c.key, func(t *testing.T) {
			servicetest.ClearEnvironment(t)
			for _, value := range c.good {
				t.Setenv(c.key, value)
				require.NoError(t, service.Load(&Config{}), "%s=%q", c.key, value)
			}
			for _, value := range c.bad {
				t.Setenv(c.key, value)
				require.ErrorContains(t, service.Load(&Config{}), c.key, "%s=%q", c.key, value)
			}
		})
	}
}
