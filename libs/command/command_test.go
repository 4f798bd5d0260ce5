package command

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

func TestVersionsAreThoseOfTheLibrary(t *testing.T) {
	// Danger: a build without a tag registers no service.
	for version, want := range map[string]string{
		"v1.2.3": "1.2.3", "1.2.3-4-gabcdef": "1.2.3-4-gabcdef", "dev": "0.0.0", "": "0.0.0", "v1.2": "0.0.0", "unknown": "0.0.0",
	} {
		require.Equal(t, want, semanticVersion(version), version)
	}
}

// Danger: answers of a day stay in memory, or one is forgotten while its sender still repeats.
func TestMemoryOfRequestsIsBounded(t *testing.T) {
	m, now := newMemory(), time.Unix(1000, 0)
	flight := m.begin("flight", [32]byte{}, now)
	for i := range 3 * maxRemembered {
		m.end(m.begin(fmt.Sprint(i), [32]byte{}, now), answer{OK: true}, 10, false, now)
	}
	require.LessOrEqual(t, len(m.calls), maxRemembered+1)
	require.NotNil(t, m.find(fmt.Sprint(3*maxRemembered-1), now), "the newest is known")
	require.Nil(t, m.find("0", now))
	require.Same(t, flight, m.find("flight", now.Add(time.Hour)), "what is in flight is never forgotten")
	m.end(flight, answer{}, 10, false, now.Add(time.Hour))
	require.Empty(t, m.calls)
	require.Zero(t, m.bytes)

	for i := range 20 {
		m.end(m.begin(fmt.Sprint(i), [32]byte{}, now), answer{}, 1<<20, false, now)
	}
	require.LessOrEqual(t, m.bytes, maxRememberedBytes)
	require.Nil(t, m.find("19", now.Add(remember)))

	m.end(m.begin("passing", [32]byte{}, now), answer{}, 10, true, now)
	require.Nil(t, m.find("passing", now))
}

func TestAnswersFitIntoAHeader(t *testing.T) {
	// Danger: a line break in an error ends the header of the answer.
	a := failedWith("1", status.Error(codes.Unknown, "a\nb\x00"+strings.Repeat("ä", maxMessageBytes)))
	require.Less(t, len(a.Error.Message), maxMessageBytes+1)
	require.NotContains(t, a.Error.Message, "\n")
	require.Equal(t, "CANCELLED", failedWith("1", status.FromContextError(context.Canceled).Err()).Error.Reason)
	require.Equal(t, "UNAVAILABLE", failedWith("", status.Error(codes.Unavailable, "")).Error.Message)
}

var snapshot = Unary("snapshot", "Makes a checkpoint.", time.Minute, adminv1.AdminServiceClient.Snapshot)

// Danger: what is no request is passed on in part, or a repeat becomes another request.
func TestRequestsAreTakenApart(t *testing.T) {
	r, err := parse(snapshot, "n", []byte(`{"request_id":"1","node_id":"n","name":"x"}`))
	require.NoError(t, err)
	require.Equal(t, "1", r.id)
	require.True(t, proto.Equal(&adminv1.SnapshotRequest{Name: "x"}, r.message))
	for request, reason := range map[string]string{
		`{"request_id":"1"`:                    "MALFORMED",
		`null`:                                 "MALFORMED",
		`{"request_id":"1","nmae":"x"}`:        "MALFORMED",
		`{"name":"x"}`:                         "NO_REQUEST_ID",
		`{"request_id":"1","node_id":"m"}`:     "OTHER_NODE",
		strings.Repeat(" ", maxRequestBytes+1): "REQUEST_TOO_LARGE",
	} {
		_, err := parse(snapshot, "n", []byte(request))
		require.ErrorContains(t, err, reason+": ", request)
	}
	named := snapshot
	named.MaxRequestBytes = maxRequestBytes + 100
	named.Complete = func(id string, m proto.Message) { m.(*adminv1.SnapshotRequest).Name = "of-" + id }
	r, err = parse(named, "n", []byte(`{"request_id":"7"}`+strings.Repeat(" ", maxRequestBytes)))
	require.NoError(t, err)
	require.Equal(t, "of-7", r.message.(*adminv1.SnapshotRequest).GetName())
	_, err = parse(named, "n", []byte(strings.Repeat(" ", named.MaxRequestBytes+1)))
	require.ErrorContains(t, err, "REQUEST_TOO_LARGE")
}

// FuzzParse: whatever comes over NATS is a request or a refusal with a reason.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"request_id":"1","node_id":"n","name":"x"}`))
	f.Add([]byte(`{"request_id":1}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parse(snapshot, "n", data)
		if err == nil {
			require.NotEmpty(t, r.id)
			require.NotNil(t, r.message)
			return
		}
		var e *refusal
		require.ErrorAs(t, err, &e)
		b, err := json.Marshal(failedWith(r.id, err))
		require.NoError(t, err)
		require.Contains(t, string(b), `"ok":false`)
	})
}

// snapshots is a node that makes snapshots and nothing else.
type snapshots struct {
	adminv1.AdminServiceClient
}

func (snapshots) Snapshot(_ context.Context, r *adminv1.SnapshotRequest, _ ...grpc.CallOption) (*adminv1.SnapshotResponse, error) {
	return &adminv1.SnapshotResponse{Snapshot: &adminv1.SnapshotInfo{Name: r.GetName()}}, nil
}

func ExampleUnary() {
	v := Unary("snapshot", "Makes a checkpoint of the node under `name`.", time.Minute, adminv1.AdminServiceClient.Snapshot)
	request := v.Request()
	request.(*adminv1.SnapshotRequest).Name = "before"
	answer, err := v.Call(context.Background(), snapshots{}, request)
	fmt.Println(v.Name, v.Arguments(), answer.(*adminv1.SnapshotResponse).GetSnapshot().GetName(), err)
	// Output: snapshot [name] before <nil>
}
