package move

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	movev1 "github.com/pairdb/pairdb/proto/pairdb/move/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
	"github.com/pairdb/pairdb/services/migrator/internal/stream"
)

// recordFormat is the format of records that a target must take.
const recordFormat = 1

// target is the other side of a move, for as long as a step lasts.
type target struct {
	conn    grpc.ClientConnInterface
	replica replicav1.ReplicaServiceClient
	release func()
	// incarnation of its data directory.
	incarnation string
	// contract: it knows the established contract of coordinators only.
	contract bool
	// refusal is why it takes no data now; empty: it does.
	refusal string
}

// reachTarget connects to the target and makes sure that it is the one that is meant.
func (r *Runner) reachTarget(ctx context.Context) (*target, error) {
	m := r.move()
	want, named := m.GetTarget().GetNodeId(), m.GetTarget().GetAddr()
	known, ok := r.o.Addr(want)
	if named == "" && !ok {
		return nil, fmt.Errorf("%w: no member is called %s yet, and the move has no address", errRefused, want)
	}
	addr := named
	if addr == "" {
		addr = known
	}
	t, err := r.greet(ctx, addr)
	if _, other := errors.AsType[otherNode](err); other && ok && known != addr {
		t, err = r.greet(ctx, known) // it has moved since
	}
	if o, other := errors.AsType[otherNode](err); other {
		return nil, failf("%s answers as node %s, %s is meant", o.addr, o.is, want)
	}
	return t, err
}

// otherNode says that somebody else has the address of a node.
type otherNode struct{ addr, is string }

func (o otherNode) Error() string { return o.addr + " is node " + o.is }

// greet asks who is at an address.
func (r *Runner) greet(ctx context.Context, addr string) (*target, error) {
	conn, release, err := r.o.Targets.Dial(addr)
	if err != nil {
		return nil, failure{err}
	}
	t := &target{conn: conn, replica: replicav1.NewReplicaServiceClient(conn), release: release}
	if err := r.describe(ctx, t, addr); err != nil {
		release()
		return nil, err
	}
	return t, nil
}

func (r *Runner) describe(ctx context.Context, t *target, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, r.o.Times.Call)
	defer cancel()
	m := r.move()
	d, err := t.replica.Describe(ctx, &replicav1.DescribeRequest{Peer: r.peer}, failFast)
	if code, _ := wireStatus(err); code == codes.Unimplemented {
		return r.describeContract(ctx, t, addr)
	}
	switch {
	case err != nil:
		return ofTarget(err)
	case d.GetClusterId() != r.o.Self.ClusterID:
		return failf("%s: %s is of cluster %q, this node of %q", reasonOtherCluster, addr, d.GetClusterId(), r.o.Self.ClusterID)
	case d.GetNodeId() != m.GetTarget().GetNodeId():
		return otherNode{addr: addr, is: d.GetNodeId()}
	case !slices.Contains(d.GetRecordFormats(), recordFormat):
		return failf("%s takes records of the formats %v, this binary sends %d: update it", addr, d.GetRecordFormats(), recordFormat)
	}
	t.incarnation, t.refusal = d.GetIncarnation(), d.GetRefusal()
	return nil
}

// describeContract makes sure that a node without ReplicaService can be sent this move.
func (r *Runner) describeContract(ctx context.Context, t *target, addr string) error {
	m := r.move()
	if p := m.GetPurpose(); m.GetHandOver() || p != movev1.Purpose_PURPOSE_REPLICATE && p != movev1.Purpose_PURPOSE_STREAM {
		return failf("%s does not know ReplicaService: only copies can be sent to it", addr)
	}
	h, err := storagenodev1.NewStorageNodeServiceClient(t.conn).HealthCheck(ctx, &storagenodev1.HealthCheckRequest{}, failFast)
	if err != nil {
		return ofTarget(err)
	}
	t.contract = true
	if !h.GetHealthy() {
		t.refusal = h.GetStatus()
	}
	return nil
}

// sendTo connects to the target, to send data to it: it must take data now, and have what it had.
func (r *Runner) sendTo(ctx context.Context) (*target, error) {
	t, err := r.reachTarget(ctx)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	was := r.incarnation
	if was == "" {
		r.incarnation, r.contract = t.incarnation, t.contract
	}
	r.mu.Unlock()
	switch {
	case t.refusal != "":
		err = ofTarget(fmt.Errorf("%w: %s", errRefused, t.refusal))
	case was != "" && was != t.incarnation:
		err = fmt.Errorf("%w: %s instead of %s", errAnotherTarget, t.incarnation, was)
	}
	if err != nil {
		t.release()
		return nil, err
	}
	return t, nil
}

// sink opens a stream of records to the target.
func (r *Runner) sink(ctx context.Context, t *target, o stream.Options) (stream.Sink, error) {
	o.MoveID, o.ClusterID, o.NodeID = r.id, r.o.Self.ClusterID, r.o.Self.NodeID
	o.Limits, o.Stall = r.limits, r.o.Times.Stall
	o.Waited = r.o.Metrics.throttled
	if t.contract {
		return stream.OpenContract(ctx, storagenodev1.NewStorageNodeServiceClient(t.conn), o), nil
	}
	s, err := stream.OpenIngest(ctx, t.replica, o)
	if err != nil {
		return nil, ofTarget(err)
	}
	return s, nil
}

// tenants has both sides know of each other's tenants: what was dropped on one must not be refilled from
// the other.
func (r *Runner) tenants(ctx context.Context, t *target) error {
	own, err := r.joinTenants(ctx, r.o.Replica, nil)
	if err != nil {
		return ofNode(err)
	}
	joined, err := r.joinTenants(ctx, t.replica, own)
	if err != nil {
		return ofTarget(err)
	}
	_, err = r.joinTenants(ctx, r.o.Replica, joined)
	return ofNode(err)
}

// joinTenants tells one side of tenants, and returns what it knows then.
func (r *Runner) joinTenants(ctx context.Context, c replicav1.ReplicaServiceClient, list []*movev1.EncodedRecord) ([]*movev1.EncodedRecord, error) {
	const most = 10_000 // of a request
	for {
		part := list[:min(len(list), most)]
		list = list[len(part):]
		a, err := r.tellTenants(ctx, c, part)
		if err != nil || len(list) == 0 {
			return a.GetTenants(), err
		}
	}
}

func (r *Runner) tellTenants(ctx context.Context, c replicav1.ReplicaServiceClient, part []*movev1.EncodedRecord) (*replicav1.TenantsResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, r.o.Times.Call)
	defer cancel()
	return c.Tenants(ctx, &replicav1.TenantsRequest{Peer: r.peer, Tenants: part})
}
