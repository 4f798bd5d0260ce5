package service

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Reason says why a process is not ready, not live, or degraded.
type Reason struct {
	// Name is a word of a closed set: "recovering", "stopping", "poisoned"…
	Name string `json:"reason"`
	// Detail is for people.
	Detail string `json:"detail,omitempty"`
	// Progress is 0 to 1 where something is under way.
	Progress *float64 `json:"progress,omitempty"`
}

// OpsOptions is what an operations server shows. The functions are called for each request
// and must not block; nil is a process that never has such a reason.
type OpsOptions struct {
	// Addr is host:port.
	Addr string
	// Registry is what /metrics shows.
	Registry *prometheus.Registry
	Log      *slog.Logger
	// NotLive returns why the process should be restarted.
	NotLive func() []Reason
	// NotReady returns why the process should get no requests now.
	NotReady func() []Reason
	// NotStarted returns what the start still has to do. It is asked by /health/startup: 503 until the
	// start is over. A startup probe holds the others back until then.
	NotStarted func() []Reason
	// Degraded returns what does not work as it should while requests are served.
	Degraded func() []Reason
	// Pprof also serves /debug/pprof/.
	Pprof bool
	// TLS makes the server speak TLS; nil: it does not. Who has no certificate gets health answers, without
	// their details, and nothing else.
	TLS *tls.Config
	// MayWatch refuses who may not see metrics and profiles. It is asked with TLS only.
	MayWatch func(*tls.ConnectionState) error
}

// Ops is the HTTP server for machines and operators: /metrics, /health, /ready, /health/live,
// /health/ready, /health/startup.
type Ops struct {
	server   *http.Server
	listener net.Listener
	tls      bool
}

// OpenOps listens. Serve answers.
func OpenOps(o OpsOptions) (*Ops, error) {
	listener, err := net.Listen("tcp", o.Addr)
	if err != nil {
		return nil, fmt.Errorf("operations server: %w", err)
	}
	return &Ops{
		listener: listener,
		tls:      o.TLS != nil,
		server: &http.Server{
			Handler:   opsHandler(o),
			TLSConfig: o.TLS,
			// An operations server answers probes, not uploads: 10s is far above any scrape.
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       10 * time.Second,
			IdleTimeout:       2 * time.Minute,
			// Above the longest profile: who reads slower holds one of the four places of scrapes.
			WriteTimeout:   90 * time.Second,
			MaxHeaderBytes: 16 << 10,
			ErrorLog:       slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
		},
	}, nil
}

// Addr returns the address that the server listens on.
func (o *Ops) Addr() string { return o.listener.Addr().String() }

// Stage returns the server as a stage of a group.
func (o *Ops) Stage() Stage {
	return Stage{
		Name: "ops",
		Run: func() error {
			if err := o.serve(); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		},
		Stop:  o.stop,
		Limit: 2 * time.Second, // a scrape takes milliseconds
	}
}

func (o *Ops) serve() error {
	if o.tls {
		return o.server.ServeTLS(o.listener, "", "") // the configuration has the certificate
	}
	return o.server.Serve(o.listener)
}

// stop waits for the answers in flight, but for no longer than a client may hold them back.
func (o *Ops) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := o.server.Shutdown(ctx); err != nil {
		return o.server.Close()
	}
	return nil
}

func opsHandler(o OpsOptions) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", o.guarded(promhttp.HandlerFor(o.Registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Registry: o.Registry})))
	live := healthHandler("live", o.NotLive, o.Degraded)
	ready := healthHandler("ready", o.NotReady, o.Degraded)
	mux.Handle("GET /health", live)
	mux.Handle("GET /health/live", live)
	mux.Handle("GET /ready", ready)
	mux.Handle("GET /health/ready", ready)
	mux.Handle("GET /health/startup", healthHandler("started", o.NotStarted, o.Degraded))
	if o.Pprof {
		for path, handler := range map[string]http.HandlerFunc{
			"": pprof.Index, "profile": pprof.Profile, "symbol": pprof.Symbol, "trace": pprof.Trace,
		} {
			mux.Handle("GET /debug/pprof/"+path, o.guarded(handler))
		}
	}
	return mux
}

// guarded has a handler serve those only who may watch.
func (o OpsOptions) guarded(h http.Handler) http.Handler {
	if o.TLS == nil {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := o.MayWatch(r.TLS); err != nil {
			o.Log.Warn("audit: request refused", "audit", "refused", "method", r.URL.Path, "from", r.RemoteAddr, "error", err)
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// healthAnswer is the body of a health answer.
type healthAnswer struct {
	Status   string   `json:"status"`
	Reasons  []Reason `json:"reasons,omitempty"`
	Degraded []Reason `json:"degraded,omitempty"`
}

// healthHandler answers 200 while there is no reason against, 503 otherwise.
func healthHandler(good string, against, degraded func() []Reason) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, code := healthAnswer{Status: good}, http.StatusOK
		if against != nil {
			answer.Reasons = against()
		}
		if degraded != nil {
			answer.Degraded = degraded()
		}
		if len(answer.Reasons) > 0 {
			answer.Status, code = "not "+good, http.StatusServiceUnavailable
		}
		if r.TLS != nil && len(r.TLS.PeerCertificates) == 0 {
			answer.Reasons, answer.Degraded = undetailed(answer.Reasons), undetailed(answer.Degraded)
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(code)
		json.NewEncoder(w).Encode(answer) //nolint:errcheck // the prober has gone
	})
}

// undetailed leaves the words of reasons, and what they say about disks, paths and members out.
func undetailed(all []Reason) []Reason {
	var out []Reason
	for _, r := range all {
		out = append(out, Reason{Name: r.Name, Progress: r.Progress})
	}
	return out
}
