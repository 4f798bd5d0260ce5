package kubetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

// tunnels reach pods from outside, by the API server alone: each connection is a port-forward of its own, so
// that it works on every cluster, breaks as the pod's own connections do, and is made anew by who dials again.
type tunnels struct {
	config *rest.Config
	api    *http.Client
}

func newTunnels(config *rest.Config) (*tunnels, error) {
	api, err := rest.HTTPClientFor(config)
	return &tunnels{config: config, api: api}, err
}

// service returns the name of a pod that a service sends connections to now: one of its ready endpoints.
func (u *tunnels) service(ctx context.Context, name string) (string, error) {
	query := url.Values{"labelSelector": {discoveryv1.LabelServiceName + "=" + name}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet,
		u.config.Host+"/apis/discovery.k8s.io/v1/namespaces/"+namespace+"/endpointslices?"+query.Encode(), nil)
	if err != nil {
		return "", err
	}
	resp, err := u.api.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("endpoints of %s: %s", name, resp.Status)
	}
	var slices discoveryv1.EndpointSliceList
	if err := json.NewDecoder(resp.Body).Decode(&slices); err != nil {
		return "", err
	}
	var ready []string
	for _, s := range slices.Items {
		for _, e := range s.Endpoints {
			if e.Conditions.Ready != nil && *e.Conditions.Ready && e.TargetRef != nil {
				ready = append(ready, e.TargetRef.Name)
			}
		}
	}
	if len(ready) == 0 {
		return "", fmt.Errorf("service %s has no ready endpoint", name)
	}
	return ready[rand.N(len(ready))], nil
}

// dial connects to the clients' port of a pod, or of one that the service chooses.
func (u *tunnels) dial(ctx context.Context, to string) (net.Conn, error) {
	if strings.HasPrefix(to, service) {
		pod, err := u.service(ctx, name)
		if err != nil {
			return nil, err
		}
		to = pod
	}
	return u.forward(ctx, to, "8080")
}

// forward connects to a port of a pod.
func (u *tunnels) forward(ctx context.Context, pod, port string) (net.Conn, error) {
	transport, upgrader, err := spdy.RoundTripperFor(u.config)
	if err != nil {
		return nil, err
	}
	at, err := url.Parse(u.config.Host + "/api/v1/namespaces/" + namespace + "/pods/" + pod + "/portforward")
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at.String(), nil)
	if err != nil {
		return nil, err
	}
	conn, _, err := spdy.Negotiate(upgrader, &http.Client{Transport: transport}, req, portforward.PortForwardProtocolV1Name)
	if err != nil {
		return nil, fmt.Errorf("forward to %s: %w", pod, err)
	}
	headers := http.Header{}
	headers.Set(corev1.PortHeader, port)
	headers.Set(corev1.PortForwardRequestIDHeader, "0")
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	failure, err := conn.CreateStream(headers)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("forward to %s: %w", pod, err), conn.Close())
	}
	if err := failure.Close(); err != nil { // we write nothing to it
		return nil, errors.Join(err, conn.Close())
	}
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := conn.CreateStream(headers)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("forward to %s: %w", pod, err), conn.Close())
	}
	t := &tunnel{Stream: data, conn: conn, pod: pod}
	go func() {
		// What stands there is why the other end can't be reached; at its end the pod has hung up.
		_, _ = io.Copy(io.Discard, failure)
		_ = t.Close()
	}()
	return t, nil
}

// tunnel is one connection to a pod. It has no deadlines: gRPC closes what it gives up.
type tunnel struct {
	httpstream.Stream
	conn httpstream.Connection
	pod  string
	once sync.Once
	err  error
}

// Close ends the connection, and with it all that waits in Read and Write.
func (t *tunnel) Close() error {
	t.once.Do(func() { t.err = t.conn.Close() })
	return t.err
}

func (t *tunnel) LocalAddr() net.Addr              { return podAddr("test") }
func (t *tunnel) RemoteAddr() net.Addr             { return podAddr(t.pod) }
func (t *tunnel) SetDeadline(time.Time) error      { return nil }
func (t *tunnel) SetReadDeadline(time.Time) error  { return nil }
func (t *tunnel) SetWriteDeadline(time.Time) error { return nil }

// podAddr is a pod as an end of a connection.
type podAddr string

func (podAddr) Network() string  { return "pod" }
func (a podAddr) String() string { return string(a) }
