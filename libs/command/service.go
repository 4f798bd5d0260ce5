package command

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/event"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

const (
	// MaxInFlight is how many requests are worked on or wait for one another at once; an operator has
	// one or two.
	MaxInFlight = 32
	// headroom is kept of NATS' largest message for the headers of an answer.
	headroom = 4 << 10
	// registerPause is how long to wait before the service is registered again after NATS ended it.
	registerPause = 10 * time.Second
	// logEvery is how often a kind of refusal is logged.
	logEvery = time.Minute
)

// Kind is what the commands of a sidecar have in common.
type Kind struct {
	// Name is that of the micro service, and Description what it says of itself.
	Name, Description string
	// Sidecar is the name of the process, for people.
	Sidecar string
	// Verbs are the commands.
	Verbs []Verb
}

// Options say whose commands are answered. All but Labels and Now are required.
type Options struct {
	Kind
	// Conn is a connection to NATS that serves nothing else: the micro service takes over its
	// handlers. The caller closes it.
	Conn *event.Conn
	// Node is a connection to the node's socket.
	Node grpc.ClientConnInterface
	// ClusterID, NodeID and Version are the node's, as its Identity says.
	ClusterID, NodeID, Version string
	Log                        *slog.Logger
	// Labels are constant labels of the metrics.
	Labels prometheus.Labels
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// Service answers commands. All methods are safe for concurrent use.
type Service struct {
	o        Options
	admin    adminv1.AdminServiceClient
	requests *prometheus.CounterVec
	places   chan struct{} // capacity MaxInFlight: a place for each request in work

	mu     sync.Mutex
	known  *memory              // guarded by mu
	logged map[string]time.Time // guarded by mu; by kind of refusal
}

// New returns the service. Nothing is answered before Run.
func New(o Options) *Service {
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Service{
		o: o, admin: adminv1.NewAdminServiceClient(o.Node), known: newMemory(), logged: map[string]time.Time{},
		places: make(chan struct{}, MaxInFlight),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pairdb_command_requests_total", ConstLabels: o.Labels,
			Help: "Commands that came over NATS: ok, failed (the call of the node failed), refused (it was not made), repeated (the answer was known).",
		}, []string{"verb", "result"}),
	}
	for _, v := range o.Verbs { // a counter that begins with its first request hides it from rate()
		for _, result := range []string{"ok", "failed", "refused", "repeated"} {
			s.requests.WithLabelValues(v.Name, result)
		}
	}
	return s
}

// Collector returns the metrics.
func (s *Service) Collector() prometheus.Collector { return s.requests }

// InFlight is how many requests are worked on or wait.
func (s *Service) InFlight() int { return len(s.places) }

// Run answers commands until ctx ends, and waits for those in work. Run it once. It keeps the
// service registered: the library ends it when the server finds fault with one of its subscriptions.
func (s *Service) Run(ctx context.Context) {
	defer func() {
		for range MaxInFlight {
			s.places <- struct{}{} // who has one is waited for, and nobody gets one any more
		}
		if err := s.o.Conn.NATS().FlushTimeout(time.Second); err != nil {
			s.o.Log.Debug("commands", "error", err) // the last answers: their senders ask again
		}
	}()
	for ctx.Err() == nil {
		ended := make(chan struct{})
		registered, err := s.register(ctx, func() { close(ended) })
		if err != nil {
			s.o.Log.Warn("commands are not answered", "error", err)
		} else {
			select {
			case <-ended:
				s.o.Log.Warn("commands are not answered for a while: NATS ended a subscription",
					"subject", event.CommandSubject(s.o.ClusterID, s.o.NodeID, ">"))
			case <-ctx.Done():
				if err := registered.Stop(); err != nil {
					s.o.Log.Debug("commands", "error", err) // the connection has gone before
				}
				return
			}
		}
		timer := time.NewTimer(registerPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

var semantic = regexp.MustCompile(`^v?((0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?)$`)

// semanticVersion returns the version as the library wants it; what is none is a version of nothing.
func semanticVersion(version string) string {
	if m := semantic.FindStringSubmatch(version); m != nil {
		return m[1]
	}
	return "0.0.0"
}

func (s *Service) register(ctx context.Context, ended func()) (micro.Service, error) {
	registered, err := micro.AddService(s.o.Conn.NATS(), micro.Config{
		Name: s.o.Name, Version: semanticVersion(s.o.Version), Description: s.o.Description,
		Metadata:    map[string]string{"cluster_id": s.o.ClusterID, "node_id": s.o.NodeID, "version": s.o.Version},
		DoneHandler: func(micro.Service) { ended() },
	})
	if err != nil {
		return nil, err
	}
	for _, v := range s.o.Verbs {
		handler := micro.HandlerFunc(func(r micro.Request) { s.take(ctx, v, r) })
		err := registered.AddEndpoint(v.Name, handler,
			micro.WithEndpointSubject(event.CommandSubject(s.o.ClusterID, s.o.NodeID, v.Name)),
			micro.WithEndpointMetadata(map[string]string{"description": v.What}))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("endpoint %s: %w", v.Name, err), registered.Stop())
		}
	}
	return registered, nil
}

// take answers a request in a goroutine of its own: the library has one for each verb, and a flush
// must not hold up the next one's refusal.
func (s *Service) take(ctx context.Context, v Verb, r micro.Request) {
	select {
	case s.places <- struct{}{}:
	default:
		s.respond(v, r, "refused", failedWith("", s.refused(v, refuse("OVERLOADED", "%d commands are in work: try again", MaxInFlight))))
		return
	}
	go func() {
		defer func() { <-s.places }()
		result, a := s.answer(ctx, v, r.Data())
		s.respond(v, r, result, a)
	}()
}

func (s *Service) respond(v Verb, r micro.Request, result string, a answer) {
	b, err := json.Marshal(a)
	if limit := s.o.Conn.NATS().MaxPayload() - headroom; err == nil && limit > 0 && int64(len(b)) > limit {
		// What was asked for is done; without a word its sender would ask again, for ever.
		a = failedWith(a.RequestID, refuse("ANSWER_TOO_LARGE", "it is done, and the answer of %d bytes does not fit into a message of NATS", len(b)))
		b, err = json.Marshal(a)
	}
	s.requests.WithLabelValues(v.Name, result).Inc()
	if err == nil {
		// What the request's Respond and Error send. They also note errors in the request, where the library looks for
		// them when the handler has returned: it has, and nothing orders the two.
		m := &nats.Msg{Subject: r.Reply(), Data: b}
		if !a.OK {
			m.Header = nats.Header{micro.ErrorHeader: []string{a.Error.Message}, micro.ErrorCodeHeader: []string{a.Error.Reason}}
		}
		err = s.o.Conn.NATS().PublishMsg(m)
	}
	if err != nil {
		s.o.Log.Debug("answer to a command not sent", "verb", v.Name, "error", err) // its sender may ask again
	}
}

// answer returns the answer to a request, and the word that it is counted under.
func (s *Service) answer(ctx context.Context, v Verb, data []byte) (result string, a answer) {
	r, err := parse(v, s.o.NodeID, data)
	if err != nil {
		return "refused", failedWith(r.id, s.refused(v, err))
	}
	digest := digestOf(v, data)
	s.mu.Lock()
	c := s.known.find(r.id, s.o.Now())
	if c == nil {
		c = s.known.begin(r.id, digest, s.o.Now())
		s.mu.Unlock()
		return s.call(ctx, v, r, c)
	}
	s.mu.Unlock()
	if c.digest != digest {
		return "refused", failedWith(r.id, s.refused(v, refuse("REQUEST_ID_REUSED", "another request had this request_id within the last %s", remember)))
	}
	select {
	case <-c.done:
		return "repeated", c.answer
	case <-ctx.Done():
		return "refused", failedWith(r.id, refuse("STOPPING", "the %s is stopping: try again", s.o.Sidecar))
	}
}

// call makes the call and remembers the answer.
func (s *Service) call(ctx context.Context, v Verb, r request, c *call) (result string, a answer) {
	ctx, cancel := context.WithTimeout(ctx, v.Timeout)
	defer cancel()
	response, err := v.Call(ctx, s.admin, r.message)
	if err == nil {
		a, err = succeeded(r.id, response)
	}
	result = "ok"
	if err != nil {
		result, a = "failed", failedWith(r.id, err)
	}
	s.o.Log.Info("command", "verb", v.Name, "request_id", r.id, "result", result, "error", errorText(a))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known.end(c, a, len(a.Result), err != nil && passing(err), s.o.Now())
	return result, a
}

func errorText(a answer) string {
	if a.Error == nil {
		return ""
	}
	return a.Error.Reason + ": " + a.Error.Message
}

// digestOf tells two requests under one id apart. The order of fields counts: a repeat is the same
// bytes.
func digestOf(v Verb, data []byte) [sha256.Size]byte {
	return sha256.Sum256(append([]byte(v.Name+"\x00"), data...))
}

// refused logs a refusal, each kind once a minute: who asks wrongly may ask often.
func (s *Service) refused(v Verb, err error) error {
	var r *refusal
	if !errors.As(err, &r) {
		return err
	}
	now := s.o.Now()
	s.mu.Lock()
	last, ok := s.logged[r.reason]
	due := !ok || now.Sub(last) >= logEvery
	if due {
		s.logged[r.reason] = now
	}
	s.mu.Unlock()
	if due {
		s.o.Log.Warn("command refused", "verb", v.Name, "reason", r.reason, "message", r.message)
	}
	return err
}
