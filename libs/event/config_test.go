package event

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/service"
)

// Danger: a password of a URL in a log, or a wrong address that is tried for ever.
func TestAddressesOfNATSAreChecked(t *testing.T) {
	for _, c := range []struct {
		config Config
		bad    string
	}{
		{Config{}, ""},
		{Config{NATSURL: "nats://n:4222"}, ""},
		{Config{NATSURL: "tls://a:4222, nats://b:4222,wss://c"}, ""},
		{Config{NATSURL: "tls://a:4222, nats://user:secret@b:4222"}, "server 2 of the list has a user"},
		{Config{NATSURL: "nats://secret@b:4222"}, "PAIRDB_NATS_CREDENTIALS"},
		{Config{NATSURL: "n:4222"}, "PAIRDB_NATS_URL"},
		{Config{NATSURL: "http://n:4222"}, "PAIRDB_NATS_URL"},
		{Config{NATSURL: "nats://"}, "PAIRDB_NATS_URL"},
		{Config{NATSURL: "nats://a,"}, "server 2"},
		{Config{NATSURL: "nats://user:secret@%"}, "PAIRDB_NATS_URL"},
		{Config{NATSURL: strings.Repeat("nats://a,", maxServers) + "nats://a"}, "at most"},
		{Config{NATSCredentials: "f"}, "PAIRDB_NATS_CREDENTIALS"},
		{Config{NATSCA: "f"}, "PAIRDB_NATS_CA"},
	} {
		var p service.Problems
		c.config.CheckNATS(&p)
		if c.bad == "" {
			require.NoError(t, p.Err())
			continue
		}
		require.ErrorContains(t, p.Err(), c.bad)
		require.NotContains(t, p.Err().Error(), "secret")
	}
}

// Danger: a file that is not there looks like a server that is not there.
func TestCredentialFilesAreLookedAtOnce(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	log := slog.New(slog.DiscardHandler)
	for _, c := range []Config{
		{NATSCredentials: filepath.Join(dir, "missing")},
		{NATSCredentials: write("garbage", "hello")},
		{NATSCredentials: write("large", strings.Repeat("x", maxCredentialBytes+1))},
		{NATSCA: filepath.Join(dir, "missing")},
		{NATSCA: write("no-ca", "hello")},
	} {
		c.NATSURL = "nats://127.0.0.1:1"
		_, err := Connect(c, "test", log)
		require.Error(t, err)
		require.ErrorContains(t, err, "PAIRDB_NATS_")
	}
}

// Danger: a thousand nodes ask a server that refuses them ten times a second each.
func TestRefusedConnectionsComeBackSlowly(t *testing.T) {
	for attempts, most := range map[int]time.Duration{1: firstPause, 2: 2 * firstPause, 6: 32 * firstPause, 7: lastPause, 1000: lastPause} {
		for range 20 {
			d := pauseAfter(attempts, false)
			require.LessOrEqual(t, d, most)
			require.GreaterOrEqual(t, d, most/2-1)
		}
	}
	require.GreaterOrEqual(t, pauseAfter(1, true), refusedPause/2-1)
}
