package config

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/service/servicetest"
)

func TestConfigurationPageAndDefaultsAreCurrent(t *testing.T) {
	servicetest.Config(t, "compactor", &Config{})
}

// A value outside of its range must name the key and the range, and never run.
func TestEveryLimitIsCheckedOnBothSides(t *testing.T) {
	for _, c := range []struct {
		key       string
		good, bad []string
	}{
		{"PAIRDB_SOCKET", []string{"/" + strings.Repeat("s", 102)}, []string{"", "/" + strings.Repeat("s", 103)}},
		{"PAIRDB_DATA_DIR", []string{"/data", "data"}, []string{""}},
		{"PAIRDB_COMPACTOR_SLOTS", []string{"1", "64"}, []string{"0", "65", "-1", "", "four"}},
		{"PAIRDB_COMPACTOR_OPS_ADDR", []string{":0", "127.0.0.1:9092"}, []string{"", "9092", ":x"}},
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
