package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// configure makes the settings of connections. Tickets would let a certificate live on in a session that
// was made with it.
func (m *material) configure() {
	m.server = credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{m.cert}, SessionTicketsDisabled: true,
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: m.pool,
	})
	m.client = credentials.NewTLS(m.clientConfig())
	m.ops = &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{m.cert}, SessionTicketsDisabled: true,
		// A probe of Kubernetes has no certificate: each path says whether it needs one.
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: m.pool, NextProtos: []string{"http/1.1"},
	}
}

func (m *material) clientConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: m.pool,
		// Also where the server's list of authorities does not name ours: it says so then.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &m.cert, nil },
	}
}

// Peer is who is at the other end, as its certificate says.
type Peer struct {
	credentials.TLSInfo
	// Identity is empty, and Problem says why, if the certificate names none: it is one of our
	// authorities' all the same.
	Identity Identity
	Problem  error
}

// PeerFrom returns who made the call of ctx, if it came over TLS.
func PeerFrom(ctx context.Context) (*Peer, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, false
	}
	info, ok := p.AuthInfo.(*Peer)
	return info, ok
}

// Transport returns what gRPC servers and connections use. A server takes who has a certificate of the
// authorities; a Guard says what they may call. A connection is made to nodes of this cluster only, whose
// certificate also has the name or address that is dialed.
func (s *Source) Transport() credentials.TransportCredentials { return &transport{s: s} }

type transport struct{ s *Source }

func (t *transport) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.s.handshake(raw)
	if err != nil {
		t.s.refusals.handshake(t.s.log, raw.RemoteAddr(), err)
		return nil, nil, err
	}
	return conn, newPeer(info), nil
}

// handshake makes the connection of a server, if there is a place for one.
func (s *Source) handshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if err := s.places.begin(); err != nil {
		return nil, nil, err
	}
	conn, info, err := s.current.Load().server.ServerHandshake(raw)
	s.places.end(err == nil)
	if err != nil {
		return nil, nil, err
	}
	return &placed{Conn: conn, leave: s.places.leave}, info, nil
}

func newPeer(info credentials.AuthInfo) *Peer {
	p := &Peer{}
	p.TLSInfo, _ = info.(credentials.TLSInfo)
	if len(p.State.PeerCertificates) == 0 {
		p.Problem = ErrNoIdentity
		return p
	}
	p.Identity, p.Problem = FromCertificate(p.State.PeerCertificates[0])
	return p
}

func (t *transport) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	m := t.s.current.Load()
	conn, info, err := m.client.ClientHandshake(ctx, authority, raw)
	if err != nil {
		return nil, nil, err
	}
	p := newPeer(info)
	if err := isNodeOf(p, m.identity.Cluster); err != nil {
		conn.Close() //nolint:errcheck // the other error counts
		return nil, nil, err
	}
	return conn, p, nil
}

// isNodeOf refuses servers that are no node of our cluster: an application's certificate must not pass for one.
func isNodeOf(p *Peer, cluster string) error {
	switch {
	case p.Problem != nil:
		return fmt.Errorf("the server is no node: %w", p.Problem)
	case p.Identity.Cluster != cluster:
		return fmt.Errorf("the server is of the cluster %s, this process of %s", p.Identity.Cluster, cluster)
	case p.Identity.Roles&Node == 0:
		return fmt.Errorf("the server is no node: its certificate is that of %s", p.Identity)
	}
	return nil
}

func (t *transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (t *transport) Clone() credentials.TransportCredentials { return t } // it never changes

// OverrideServerName is what the interface wants. grpc.WithAuthority says by which name a node is known.
func (t *transport) OverrideServerName(string) error {
	return errors.New("use grpc.WithAuthority")
}

// OpsConfig returns the settings of an HTTP server of operations, which serves whoever has no
// certificate as well: MayWatch says who may see more than whether the process is well.
func (s *Source) OpsConfig() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.current.Load().ops, nil },
	}
}

// watchers are the roles that may see metrics and profiles.
const watchers = Monitor | Operator | Node

// MayWatch refuses a connection whose certificate is not that of somebody who may see metrics and
// profiles of this process.
func (s *Source) MayWatch(state *tls.ConnectionState) error {
	if state == nil || len(state.PeerCertificates) == 0 {
		return fmt.Errorf("a certificate is needed: that of a %s", watchers)
	}
	id, err := FromCertificate(state.PeerCertificates[0])
	if err != nil {
		return err
	}
	return allowed(id, s.Identity().Cluster, watchers)
}
