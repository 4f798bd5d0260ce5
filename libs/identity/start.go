package identity

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pairdb/pairdb/libs/service"
)

// Start opens the files of a process of a pod, and registers its metrics. Without files it returns nil,
// and so on: the methods below are those of a process without TLS then. The certificate must be that of a
// node. The errors are of the configuration.
func Start(files Files, rt *service.Runtime, labels prometheus.Labels) (*Source, error) {
	var s *Source
	if files.Enabled() {
		var err error
		if s, err = Open(files, rt.Log); err != nil {
			return nil, service.WithExitCode(service.ExitUsage, err)
		}
		if id := s.Identity(); id.Roles&Node == 0 {
			return nil, service.WithExitCode(service.ExitUsage, fmt.Errorf("PAIRDB_TLS_CERT: the certificate is that of %s, this process needs one of a %s", id, Node))
		}
		rt.Log.Info("TCP ports speak TLS 1.3 and ask for certificates", "identity", s.Identity().String(), "expires", s.Expires().UTC())
	}
	rt.Metrics.MustRegister(NewCollector(s, labels))
	return s, nil
}

// AddTo has a group read the files while it runs.
func (s *Source) AddTo(g *service.Group) {
	if s == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.Add(service.Stage{
		Name: "certificates", Limit: time.Second,
		Run:  func() error { s.Run(ctx); return nil },
		Stop: func(context.Context) error { cancel(); return nil },
	})
}

// Ops returns the options of an operations server, with TLS if there is any.
func (s *Source) Ops(o service.OpsOptions) service.OpsOptions {
	if s != nil {
		o.TLS, o.MayWatch = s.OpsConfig(), s.MayWatch
	}
	return o
}

// Degraded returns what is wrong with the files, as a reason to be degraded.
func (s *Source) Degraded() []service.Reason {
	if s == nil {
		return nil
	}
	if problem := s.Problem(); problem != "" {
		return []service.Reason{{Name: "certificate", Detail: problem}}
	}
	return nil
}

// DialOption is how nodes are dialed: with TLS, or in the clear.
func (s *Source) DialOption() grpc.DialOption {
	if s == nil {
		return grpc.WithTransportCredentials(insecure.NewCredentials())
	}
	return grpc.WithTransportCredentials(s.Transport())
}

// IsLoopback reports whether an address to listen on, host:port, is reached from this machine only.
func IsLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
