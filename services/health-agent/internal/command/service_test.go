package command

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/command"
	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/service/servicetest"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
)

// Danger: a command does something else than the call of an operator.
func TestCommandsAreCallsOfTheNode(t *testing.T) {
	w := run(t)
	a := w.ask("status", `{"request_id":"1"}`)
	require.True(t, a.OK)
	require.Equal(t, "1", a.RequestID)
	var s struct {
		NodeID string `json:"node_id"`
		State  string `json:"state"`
	}
	require.NoError(t, json.Unmarshal(a.Result, &s))
	require.Equal(t, "n.1 serving", s.NodeID+" "+s.State)
	require.True(t, w.ask("flush", `{"request_id":"2","node_id":"n.1"}`).OK)
	a = w.ask("snapshot", `{"request_id":"3","name":"before"}`)
	require.True(t, a.OK)
	require.Contains(t, strings.ReplaceAll(string(a.Result), " ", ""), `"sequence":"7"`)
	require.Equal(t, []string{"before"}, w.node.snapshots)
	require.Equal(t, 1, w.count("status", "ok"))
	require.Equal(t, 1, w.count("snapshot", "ok"))

	detailed, err := status.New(codes.AlreadyExists, "snapshot exists").WithDetails(&errdetails.ErrorInfo{Reason: "SNAPSHOT_EXISTS"})
	require.NoError(t, err)
	w.node.set(func(n *node) { n.err = detailed.Err() })
	a = w.ask("snapshot", `{"request_id":"4","name":"before"}`)
	require.Equal(t, answer{RequestID: "4", Error: &answerError{"SNAPSHOT_EXISTS", "snapshot exists"}}, a)
	require.Equal(t, 1, w.count("snapshot", "failed"))
}

// Danger: a sender that heard nothing repeats itself, and the node does it twice.
func TestRepeatsGetTheFirstAnswer(t *testing.T) {
	w := run(t)
	first := w.ask("snapshot", `{"request_id":"a","name":"s"}`)
	w.node.set(func(n *node) { n.err = status.Error(codes.Internal, "it would fail now") })
	require.Equal(t, first, w.ask("snapshot", `{"request_id":"a","name":"s"}`))
	_, snapshots := w.node.asked()
	require.Equal(t, 1, snapshots)
	require.Equal(t, 1, w.count("snapshot", "repeated"))
	require.Equal(t, "REQUEST_ID_REUSED", w.ask("snapshot", `{"request_id":"a","name":"other"}`).Error.Reason)
	require.Equal(t, "REQUEST_ID_REUSED", w.ask("flush", `{"request_id":"a"}`).Error.Reason)
	flushes, _ := w.node.asked()
	require.Zero(t, flushes)

	// What failed for the moment is tried again, what failed for good is not.
	w.node.set(func(n *node) { n.err = status.Error(codes.Unavailable, "recovering") })
	require.Equal(t, "UNAVAILABLE", w.ask("flush", `{"request_id":"b"}`).Error.Reason)
	w.node.set(func(n *node) { n.err = nil })
	require.True(t, w.ask("flush", `{"request_id":"b"}`).OK)
	w.node.set(func(n *node) { n.err = status.Error(codes.InvalidArgument, "no") })
	require.False(t, w.ask("flush", `{"request_id":"c"}`).OK)
	w.node.set(func(n *node) { n.err = nil })
	require.False(t, w.ask("flush", `{"request_id":"c"}`).OK)
}

// Danger: a repeat while the first is in work starts the work again.
func TestRepeatInFlightWaitsForTheFirst(t *testing.T) {
	w := run(t)
	gate := make(chan struct{})
	w.node.set(func(n *node) { n.gate = gate })
	var wg sync.WaitGroup
	answers := make([]answer, 5)
	for i := range answers {
		wg.Go(func() { answers[i] = w.ask("flush", `{"request_id":"a"}`) })
	}
	require.Eventually(t, func() bool { return w.service.InFlight() == len(answers) }, 10*time.Second, time.Millisecond)
	require.True(t, w.ask("status", `{"request_id":"s"}`).OK, "others go on meanwhile")
	close(gate)
	wg.Wait()
	flushes, _ := w.node.asked()
	require.Equal(t, 1, flushes)
	for _, a := range answers {
		require.Equal(t, answers[0], a)
		require.True(t, a.OK)
	}
}

// Danger: what is no request is passed on in part, or ends the agent.
func TestWhatIsNoRequestIsRefusedWithAReason(t *testing.T) {
	w := run(t)
	for request, reason := range map[string]string{
		``:                                "MALFORMED",
		`[]`:                              "MALFORMED",
		`null`:                            "MALFORMED",
		`{"request_id":"1"`:               "MALFORMED",
		`{"request_id":7}`:                "MALFORMED",
		`{"request_id":"1","node_id":[]}`: "MALFORMED",
		`{"request_id":"1","nmae":"x"}`:   "MALFORMED",
		`{"request_id":"1","name":7}`:     "MALFORMED",
		`{"name":"x"}`:                    "NO_REQUEST_ID",
		`{"request_id":"","name":"x"}`:    "NO_REQUEST_ID",
		`{"request_id":"` + strings.Repeat("x", 129) + `"}`: "NO_REQUEST_ID",
		`{"request_id":"1","node_id":"n.2","name":"x"}`:     "OTHER_NODE",
		strings.Repeat(" ", 16<<10+1):                       "REQUEST_TOO_LARGE",
	} {
		a := w.ask("snapshot", request)
		require.False(t, a.OK, request)
		require.Equal(t, reason, a.Error.Reason, request)
	}
	_, snapshots := w.node.asked()
	require.Zero(t, snapshots)
	require.Equal(t, 13, w.count("snapshot", "refused"))
	require.Equal(t, 4, strings.Count(w.log.String(), "command refused"), "each kind is logged once a minute")
	require.True(t, w.ask("snapshot", `{"request_id":"1","name":"x"}`).OK, "a refusal does not use an id up")
}

// Danger: a flood of commands eats the agent's memory or holds up the node.
func TestTooManyCommandsAreRefused(t *testing.T) {
	w := run(t)
	gate := make(chan struct{})
	w.node.set(func(n *node) { n.gate = gate })
	var wg sync.WaitGroup
	for i := range command.MaxInFlight {
		wg.Go(func() { w.ask("flush", fmt.Sprintf(`{"request_id":"%d"}`, i)) })
	}
	require.Eventually(t, func() bool { return w.service.InFlight() == command.MaxInFlight }, 10*time.Second, time.Millisecond)
	require.Equal(t, "OVERLOADED", w.ask("status", `{"request_id":"x"}`).Error.Reason)
	close(gate)
	wg.Wait()
	require.True(t, w.ask("status", `{"request_id":"x"}`).OK)
}

// Danger: an agent that stops waits for a flush of minutes, or leaves the sender without a word.
func TestStopEndsWhatIsInWork(t *testing.T) {
	w := run(t)
	w.node.set(func(n *node) { n.gate = make(chan struct{}) })
	answered := make(chan answer, 1)
	go func() { answered <- w.ask("flush", `{"request_id":"a"}`) }()
	require.Eventually(t, func() bool { f, _ := w.node.asked(); return f == 1 }, 10*time.Second, time.Millisecond)
	began := time.Now()
	go w.stop()
	a := <-answered
	require.False(t, a.OK)
	require.Less(t, time.Since(began), 5*time.Second)
	w.stop()
}

// Danger: operators don't find the service with the tool that everybody has.
func TestServiceIsFoundByNATSTools(t *testing.T) {
	w := run(t)
	m, err := w.client.Request("$SRV.INFO."+Kind.Name, nil, 5*time.Second)
	require.NoError(t, err)
	var info micro.Info
	require.NoError(t, json.Unmarshal(m.Data, &info))
	require.Equal(t, "n.1", info.Metadata["node_id"])
	require.Equal(t, "0.0.0", info.Version)
	require.Len(t, info.Endpoints, len(Kind.Verbs))
	for i, e := range info.Endpoints {
		require.Equal(t, "pairdb.c%2E1.cmd.n%2E1."+Kind.Verbs[i].Name, e.Subject)
	}
}

// users are those of docs/EVENTS.md: the pod's agent, an operator, and one who may only listen.
func users(o *server.Options) {
	node := "pairdb.c%2E1.cmd.n%2E1.>"
	o.Users = []*server.User{
		{Username: "agent", Password: "a", Permissions: &server.Permissions{
			Subscribe: &server.SubjectPermission{Allow: []string{node, "$SRV.>"}},
			Publish:   &server.SubjectPermission{Allow: []string{"_INBOX.>"}},
			Response:  &server.ResponsePermission{MaxMsgs: 1, Expires: time.Minute},
		}},
		{Username: "operator", Password: "o", Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: []string{"pairdb.*.cmd.>", "$SRV.>"}},
			Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}},
		}},
		{Username: "reader", Password: "r", Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: []string{"$JS.API.>"}},
			Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>", "pairdb.*.event.>"}},
		}},
	}
}

func urlOf(s *server.Server, user, password string) string {
	return strings.Replace(s.ClientURL(), "nats://", "nats://"+user+":"+password+"@", 1)
}

// Danger: whoever reaches NATS commands the nodes.
func TestWhoMayNotPublishCommandsIsRefusedByTheServer(t *testing.T) {
	s := startNATS(t, users)
	w := start(t, event.Config{NATSURL: urlOf(s, "agent", "a")}, urlOf(s, "operator", "o"))
	w.answers()
	require.True(t, w.ask("snapshot", `{"request_id":"1","name":"allowed"}`).OK)

	refused := make(chan error, 8)
	reader, err := nats.Connect(urlOf(s, "reader", "r"), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
	require.NoError(t, err)
	defer reader.Close()
	_, err = reader.Request(event.CommandSubject("c.1", "n.1", "snapshot"), []byte(`{"request_id":"2","name":"stolen"}`), time.Second)
	require.Error(t, err)
	require.ErrorIs(t, <-refused, nats.ErrPermissionViolation)
	_, err = nats.Connect(s.ClientURL())
	require.ErrorIs(t, err, nats.ErrAuthorization)
	require.Equal(t, []string{"allowed"}, w.node.snapshots)
	require.Equal(t, 1, w.count("snapshot", "ok"))
}

// Danger: one wrong permission and the agent never answers again, without a word.
func TestAgentWithoutPermissionSaysSo(t *testing.T) {
	s := startNATS(t, users)
	w := start(t, event.Config{NATSURL: urlOf(s, "reader", "r")}, urlOf(s, "operator", "o"))
	require.Eventually(t, func() bool { return strings.Contains(w.log.String(), "ermissions") }, 20*time.Second, 10*time.Millisecond)
}

// Danger: NATS is away when the pod starts, or restarts, and there are no commands until the next
// restart of the pod.
func TestCommandsComeBackWithNATS(t *testing.T) {
	s := startNATS(t, nil)
	port := s.Addr().String()[strings.LastIndex(s.Addr().String(), ":")+1:]
	url := s.ClientURL()
	s.Shutdown()
	s.WaitForShutdown()
	same := func(o *server.Options) { _, err := fmt.Sscan(port, &o.Port); require.NoError(t, err) }
	again := startNATS(t, same)
	w := start(t, event.Config{NATSURL: url}, url)
	w.answers()
	again.Shutdown()
	again.WaitForShutdown()
	startNATS(t, same)
	require.Eventually(t, func() bool {
		m, err := w.client.Request(event.CommandSubject("c.1", "n.1", "status"), []byte(`{"request_id":"1"}`), time.Second)
		return err == nil && strings.Contains(string(m.Data), `"ok":true`)
	}, 30*time.Second, 20*time.Millisecond)
}

// identity is a node that says who it is.
type identity struct {
	nodev1.UnimplementedNodeServiceServer
}

func (identity) Identity(context.Context, *nodev1.IdentityRequest) (*nodev1.IdentityResponse, error) {
	return &nodev1.IdentityResponse{NodeId: "n.1", ClusterId: "c.1", Version: "v1.2.3"}, nil
}

// Danger: the agent answers for a node that it does not know, or can't be stopped while it waits.
func TestStageAnswersForTheNodeOfTheSocket(t *testing.T) {
	s := startNATS(t, nil)
	path := filepath.Join(t.TempDir(), "n.sock")
	socket, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer socket.Close()
	rt := &service.Runtime{Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()}
	run := func() (stop func() error) {
		stage := ForNode(event.Config{NATSURL: s.ClientURL()}, socket, rt)
		ran := make(chan error, 1)
		go func() { ran <- stage.Run() }()
		return func() error {
			require.NoError(t, stage.Stop(t.Context()))
			return <-ran
		}
	}
	require.NoError(t, run()(), "there is no node yet")

	listener, err := net.Listen("unix", path)
	require.NoError(t, err)
	g := grpc.NewServer()
	nodev1.RegisterNodeServiceServer(g, identity{})
	adminv1.RegisterAdminServiceServer(g, &node{})
	served := make(chan error, 1)
	go func() { served <- g.Serve(listener) }()
	stop := run()
	client, err := nats.Connect(s.ClientURL())
	require.NoError(t, err)
	defer client.Close()
	require.Eventually(t, func() bool {
		m, err := client.Request(event.CommandSubject("c.1", "n.1", "status"), []byte(`{"request_id":"1"}`), time.Second)
		return err == nil && strings.Contains(string(m.Data), `"ok":true`)
	}, 20*time.Second, 20*time.Millisecond)
	require.NoError(t, stop())
	g.Stop()
	require.NoError(t, <-served)
	families, err := rt.Metrics.Gather()
	require.NoError(t, err)
	require.Equal(t, "pairdb_command_requests_total", families[0].GetName())
}

// Danger: the page tells of verbs that there are not.
func TestEventsPageListsTheVerbs(t *testing.T) {
	servicetest.Section(t, "docs/EVENTS.md", "commands", command.Table(Kind.Verbs))
}
