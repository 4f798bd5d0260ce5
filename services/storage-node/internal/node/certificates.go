package node

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	pki "github.com/pairdb/pairdb/libs/identity"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/token"
	"github.com/pairdb/pairdb/services/storage-node/internal/config"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
)

// plaintext is the word of the warning that is told by Status.
const plaintext = "plaintext"

// openCertificates reads the files of the node's certificate, or says that there is none.
func openCertificates(cfg *config.Config, rt *service.Runtime, log *slog.Logger, labels prometheus.Labels) (*pki.Source, error) {
	s, err := pki.Start(cfg.Files, rt, labels)
	if err != nil {
		return nil, err
	}
	if s == nil {
		if w := warnings(cfg); len(w) > 0 {
			log.Warn(w[0])
		}
		return nil, nil
	}
	if id := s.Identity(); id.Cluster != cfg.ClusterID {
		return nil, service.WithExitCode(service.ExitUsage, fmt.Errorf("PAIRDB_TLS_CERT: the certificate is of the cluster %s, PAIRDB_CLUSTER_ID is %s", id.Cluster, cfg.ClusterID))
	}
	return s, nil
}

// openTokens opens the keys of tokens, if clients need any.
func openTokens(cfg *config.Config) (*token.Keys, error) {
	if cfg.TokenKeys == "" {
		return nil, nil
	}
	keys, err := token.Open(cfg.TokenKeys, cfg.ClusterID)
	if err != nil {
		return nil, service.WithExitCode(service.ExitUsage, err)
	}
	return keys, nil
}

// warnings are what is wrong with a configuration that is served all the same.
func warnings(cfg *config.Config) []string {
	if cfg.Enabled() || pki.IsLoopback(cfg.GRPCAddr) {
		return nil
	}
	return []string{plaintext + ": PAIRDB_GRPC_ADDR " + cfg.GRPCAddr + " is open to other machines, without encryption, and everybody who reaches it may call everything: set PAIRDB_TLS_CERT, PAIRDB_TLS_KEY and PAIRDB_TLS_CA"}
}

// Connections that were made with a certificate end some time after it did: at the age a connection is
// asked to end, at the grace after it what is still open is cut off. Clients connect again by themselves,
// and streams go on where they were.
const (
	maxConnectionAge      = time.Hour
	maxConnectionAgeGrace = time.Hour
)

// tcpOptions are those of the gRPC server for other machines.
func (n *Node) tcpOptions() []grpc.ServerOption {
	options := n.tracing.ServerOptions()
	if n.certificates == nil {
		return options
	}
	keep := server.Keepalive
	keep.MaxConnectionAge, keep.MaxConnectionAgeGrace = maxConnectionAge, maxConnectionAgeGrace
	options = append(options, grpc.KeepaliveParams(keep))
	return append(options, n.certificates.ServerOptions(server.Roles)...)
}
