package command

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/micro"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/command"
	"github.com/pairdb/pairdb/libs/service/servicetest"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	datav1 "github.com/pairdb/pairdb/proto/pairdb/data/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
)

// Danger: a command over NATS moves other data than the same words of an operator would.
func TestCommandsAreCallsOfTheNode(t *testing.T) {
	w := start(t)
	for i, c := range []struct {
		verb, arguments string
		want            proto.Message
	}{
		{"drain", `"kind":"KIND_DECOMMISSION","force":true,"reason":"its disk burns"`,
			&adminv1.DrainRequest{Kind: adminv1.DrainRequest_KIND_DECOMMISSION, Force: true, Reason: "its disk burns"}},
		{"replicate", `"id":"r1","what":{"tenant":"t","hash_ranges":[{"start":"1","end":"2"}]},"targets":[{"node_id":"m"}],"mode":"MODE_FOLLOW"`,
			&adminv1.ReplicateRequest{
				Id: "r1", Mode: movev1.Mode_MODE_FOLLOW, Targets: []*movev1.Target{{NodeId: "m"}},
				What: &movev1.Selection{Tenant: "t", HashRanges: []*datav1.HashRange{{Start: 1, End: 2}}},
			}},
		{"moves", `"include_ended":true`, &adminv1.MovesRequest{IncludeEnded: true}},
		{"cancel", `"id":"r1","reason":"not now"`, &adminv1.CancelMoveRequest{Id: "r1", Reason: "not now"}},
		{"repair", `"id":"p1","targets":[{"node_id":"m"}]`, &adminv1.RepairRequest{Id: "p1", Targets: []*movev1.Target{{NodeId: "m"}}}},
		{"cleanup", `"dry_run":true`, &adminv1.CleanupRequest{DryRun: true}},
	} {
		a := w.ask(c.verb, fmt.Sprintf(`{"request_id":"%d",%s}`, i, c.arguments))
		require.True(t, a.OK, "%s: %v", c.verb, a.Error)
		asked := w.node.calls()
		require.Len(t, asked, i+1)
		require.True(t, proto.Equal(c.want, asked[i]), "%s: %v", c.verb, asked[i])
		if c.verb == "cleanup" {
			require.Contains(t, strings.ReplaceAll(string(a.Result), " ", ""), `"finished":true`, "the last word of the node")
		}
	}
}

// Danger: the reason of a refusal gets lost on the way, and nobody knows why a node does not drain.
func TestRefusalsOfTheNodeKeepTheirReason(t *testing.T) {
	w := start(t)
	detailed, err := status.New(codes.FailedPrecondition, "ranges would be left with 1 copy").WithDetails(&errdetails.ErrorInfo{Reason: "DRAIN_UNSAFE"})
	require.NoError(t, err)
	w.node.set(func(n *node) { n.err = detailed.Err() })
	for i, v := range Kind.Verbs {
		a := w.ask(v.Name, fmt.Sprintf(`{"request_id":"%d"}`, i))
		require.False(t, a.OK)
		require.Equal(t, "DRAIN_UNSAFE: ranges would be left with 1 copy", a.Error.Reason+": "+a.Error.Message, v.Name)
	}
	w.node.set(func(n *node) { n.err, n.broken = nil, true })
	require.False(t, w.ask("cleanup", `{"request_id":"broken"}`).OK, "half a clean-up is none")
}

// Danger: a sender that heard nothing repeats itself to a migrator that has restarted, and the data
// moves twice.
func TestRepeatsMakeNoSecondMove(t *testing.T) {
	first, second := start(t), start(t) // the second remembers nothing
	for _, verb := range []string{"replicate", "repair"} {
		for _, w := range []*world{first, second, second} {
			require.True(t, w.ask(verb, `{"request_id":"A b `+verb+`"}`).OK)
		}
		require.True(t, first.ask(verb, `{"request_id":"other `+verb+`"}`).OK)
	}
	id := func(m proto.Message) string { return m.(interface{ GetId() string }).GetId() }
	a, b := first.node.calls(), second.node.calls()
	require.Len(t, a, 4)
	require.Len(t, b, 2)
	require.Equal(t, id(a[0]), id(b[0]))
	require.Equal(t, id(a[2]), id(b[1]))
	require.NotEqual(t, id(a[0]), id(a[1]))
	require.NotEqual(t, id(a[0]), id(a[2]), "moves and repairs of a node share their ids")
	require.Regexp(t, `^[a-z0-9.-]{1,60}$`, id(a[0]), "with room for the number of the target")
}

// Danger: a list that does not fit into a message is no answer at all, and its sender waits for it.
func TestListThatIsTooLongIsAnError(t *testing.T) {
	w := start(t)
	w.node.set(func(n *node) { n.moves = 20_000 })
	a := w.ask("moves", `{"request_id":"1"}`)
	require.False(t, a.OK)
	require.Equal(t, "ANSWER_TOO_LARGE", a.Error.Reason)
	w.node.set(func(n *node) { n.moves = 1 })
	require.True(t, w.ask("moves", `{"request_id":"2"}`).OK)
	require.Equal(t, "REQUEST_TOO_LARGE", w.ask("replicate", strings.Repeat(" ", maxSelectionBytes+1)).Error.Reason)
	require.Equal(t, "REQUEST_TOO_LARGE", w.ask("moves", strings.Repeat(" ", maxSelectionBytes)).Error.Reason)
}

// Danger: operators don't find the service with the tool that everybody has.
func TestServiceIsFoundByNATSTools(t *testing.T) {
	w := start(t)
	m, err := w.client.Request("$SRV.INFO."+Kind.Name, nil, 5*time.Second)
	require.NoError(t, err)
	var info micro.Info
	require.NoError(t, json.Unmarshal(m.Data, &info))
	require.Equal(t, "n.1", info.Metadata["node_id"])
	require.Len(t, info.Endpoints, len(Kind.Verbs))
	for i, e := range info.Endpoints {
		require.Equal(t, "pairdb.c%2E1.cmd.n%2E1."+Kind.Verbs[i].Name, e.Subject)
	}
}

// Danger: the page tells of verbs that there are not.
func TestEventsPageListsTheVerbs(t *testing.T) {
	servicetest.Section(t, "docs/EVENTS.md", "commands of the migrator", command.Table(Kind.Verbs))
}
