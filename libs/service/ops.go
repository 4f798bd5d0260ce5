package service

import (
	"context"
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

// OpsOptions is what an operations server shows. The three functions are called for each request
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
	// Degraded returns what does not work as it should while requests are served.
	Degraded func() []Reason
	// Pprof also serves /debug/pprof/.
	Pprof bool
}

// Ops is the HTTP server for machines and operators: /metrics, /health, /ready, /health/live,
// /health/ready.
type Ops struct {
	server   *http.Server
	listener net.Listener
}

// OpenOps listens. Serve answers.
func OpenOps(o OpsOptions) (*Ops, error) {
	listener, err := net.Listen("tcp", o.Addr)
	if err != nil {
		return nil, fmt.Errorf("operations server: %w", err)
	}
	return &Ops{
		listener: listener,
		server: &http.Server{
			Handler: opsHandler(o),
			// An operations server answers probes, not uploads: 10s is far above any scrape.
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       10 * time.Second,
			IdleTimeout:       2 * time.Minute,
			MaxHeaderBytes:    16 << 10,
			ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
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
			if err := o.server.Serve(o.listener); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		},
		Stop:  o.stop,
		Limit: 2 * time.Second, // a scrape takes milliseconds
	}
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
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.Registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Registry: o.Registry}))
	live := healthHandler("live", o.NotLive, o.Degraded)
	ready := healthHandler("ready", o.NotReady, o.Degraded)
	mux.Handle("GET /health", live)
	mux.Handle("GET /health/live", live)
	mux.Handle("GET /ready", ready)
	mux.Handle("GET /health/ready", ready)
	if o.Pprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// healthAnswer is the body of a health answer.
type healthAnswer struct {
	Status   string   `json:"status"`
	Reasons  []Reason `json:"reasons,omitempty"`
	Degraded []Reason `json:"degraded,omitempty"`
}

// healthHandler answers 200 while there is no reason against, 503 otherwise.
func healthHandler(good string, against, degraded func() []Reason) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
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
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(code)
		json.NewEncoder(w).Encode(answer) //nolint:errcheck // the prober has gone
	})
}
