package event

import (
	"bytes"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/pairdb/pairdb/libs/service"
)

// Config is how a process reaches NATS. Embed it in a configuration.
type Config struct {
	NATSURL         string `envconfig:"PAIRDB_NATS_URL" optional:"true" unit:"url" desc:"NATS servers for events and commands, nats://host:port or tls://host:port, several with commas and without a user; when not set, events wait in the outbox and there are no remote commands."`
	NATSCredentials string `envconfig:"PAIRDB_NATS_CREDENTIALS" optional:"true" unit:"path" desc:"File with the credentials for NATS: a .creds file, which is read again at each connect, the seed of an nkey, or a line user:password."`
	NATSCA          string `envconfig:"PAIRDB_NATS_CA" optional:"true" unit:"path" desc:"File with the certificates (PEM) that the NATS servers are checked against; when not set, those of the system."`
}

// maxServers bounds the list of PAIRDB_NATS_URL.
const maxServers = 32

// CheckNATS adds what is wrong with the configuration to p. It opens no file.
func (c Config) CheckNATS(p *service.Problems) {
	if c.NATSURL == "" {
		if c.NATSCredentials != "" {
			p.Addf("PAIRDB_NATS_CREDENTIALS", "is set, and PAIRDB_NATS_URL is not: say where NATS is")
		}
		if c.NATSCA != "" {
			p.Addf("PAIRDB_NATS_CA", "is set, and PAIRDB_NATS_URL is not: say where NATS is")
		}
		return
	}
	servers := strings.Split(c.NATSURL, ",")
	if len(servers) > maxServers {
		p.Addf("PAIRDB_NATS_URL", "%d servers, at most %d", len(servers), maxServers)
		return
	}
	for _, s := range servers {
		u, err := url.Parse(strings.TrimSpace(s))
		if err != nil || u.Host == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) {
			// The text may hold a password.
			p.Addf("PAIRDB_NATS_URL", "server %d of the list is no address: write nats://host:port or tls://host:port", 1+slices.Index(servers, s))
			continue
		}
		if u.User != nil { // --print-config shows addresses
			p.Addf("PAIRDB_NATS_URL", "server %d of the list has a user: write user:password into a file, and its path into PAIRDB_NATS_CREDENTIALS", 1+slices.Index(servers, s))
		}
	}
}

// maxCredentialBytes bounds what is read of a file of credentials.
const maxCredentialBytes = 64 << 10

// options returns what the configuration says to the client of NATS. A file that is not there is an
// error now, and not a connection that never comes up.
func (c Config) options() ([]nats.Option, error) {
	var out []nats.Option
	if c.NATSCA != "" {
		if _, err := os.Stat(c.NATSCA); err != nil {
			return nil, fmt.Errorf("PAIRDB_NATS_CA: %w", err)
		}
		out = append(out, nats.RootCAs(c.NATSCA))
	}
	if c.NATSCredentials == "" {
		return out, nil
	}
	info, err := os.Stat(c.NATSCredentials)
	if err != nil {
		return nil, fmt.Errorf("PAIRDB_NATS_CREDENTIALS: %w", err)
	}
	if info.Size() > maxCredentialBytes {
		return nil, fmt.Errorf("PAIRDB_NATS_CREDENTIALS: %s has %d bytes, at most %d", c.NATSCredentials, info.Size(), maxCredentialBytes)
	}
	content, err := os.ReadFile(c.NATSCredentials)
	if err != nil {
		return nil, fmt.Errorf("PAIRDB_NATS_CREDENTIALS: %w", err)
	}
	if bytes.Contains(content, []byte("NATS USER JWT")) {
		return append(out, nats.UserCredentials(c.NATSCredentials)), nil
	}
	line := strings.TrimSpace(string(content))
	if user, password, ok := strings.Cut(line, ":"); ok && user != "" && !strings.Contains(line, "\n") {
		return append(out, nats.UserInfo(user, password)), nil
	}
	key, err := nats.NkeyOptionFromSeed(c.NATSCredentials)
	if err != nil {
		return nil, fmt.Errorf("PAIRDB_NATS_CREDENTIALS: %s is neither a .creds file, the seed of an nkey nor a line user:password", c.NATSCredentials)
	}
	return append(out, key), nil
}
