package config

import (
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/service/servicetest"
)

func TestConfigurationPageAndDefaultsAreCurrent(t *testing.T) {
	servicetest.Config(t, "migrator", &Config{})
}

// What is sent beside requests is for the machine that it is: users of two processors feel what those of
// thirty-two don't.
func TestMovesMaySendForEachProcessor(t *testing.T) {
	servicetest.ClearEnvironment(t)
	var c Config
	require.NoError(t, service.Load(&c))
	require.EqualValues(t, 4<<20*runtime.GOMAXPROCS(0), c.BytesPerSecond.Bytes)
	t.Setenv("PAIRDB_MIGRATOR_BYTES_PER_SECOND", "64MiB")
	require.NoError(t, service.Load(&c))
	require.EqualValues(t, 64<<20, c.BytesPerSecond.Bytes)
}

// A value outside of its range must name the key and the range, and never run.
func TestEveryLimitIsCheckedOnBothSides(t *testing.T) {
	for _, c := range []struct {
		key       string
		good, bad []string
	}{
		{"PAIRDB_SOCKET", []string{"/" + strings.Repeat("s", 102)}, []string{"", "/" + strings.Repeat("s", 103)}},
		{"PAIRDB_MIGRATOR_BYTES_PER_SECOND", []string{"0", "1KiB", "1TiB", "auto"}, []string{"1", "1023B", "2TiB", "-1", "", "fast"}},
		{"PAIRDB_MIGRATOR_MOVES", []string{"1", "64"}, []string{"0", "65", "-1", "", "four"}},
		{"PAIRDB_REPAIR_INTERVAL", []string{"0s", "1s", "720h"}, []string{"999ms", "721h", "-1s", "", "often"}},
		{"PAIRDB_REPAIR_PAUSED", []string{"true", "false"}, []string{"", "for now"}},
		{"PAIRDB_REPAIR_BYTES_PER_SECOND", []string{"0", "1KiB", "1TiB"}, []string{"1", "2TiB", ""}},
		{"PAIRDB_MIGRATOR_OPS_ADDR", []string{":0", "127.0.0.1:9093"}, []string{"", "9093", ":x"}},
		{"PAIRDB_NATS_URL", []string{"", "nats://n:4222"}, []string{"n:4222"}},
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
