package agent

import (
	"time"

	"github.com/pairdb/pairdb/libs/wire"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
	"github.com/pairdb/pairdb/services/health-agent/internal/gossip"
	"github.com/pairdb/pairdb/services/health-agent/internal/verdict"
)

// maxReasons bounds what is taken of a node's reasons: there are not so many words.
const maxReasons = 64

func statusFromProto(r *nodev1.HealthResponse) *verdict.NodeStatus {
	s := &verdict.NodeStatus{
		State: r.GetState(), Progress: r.GetRecoveryProgress(),
		NotLive: reasonsFromProto(r.GetNotLive()), NotReady: reasonsFromProto(r.GetNotReady()), Degraded: reasonsFromProto(r.GetDegraded()),
		Disk: r.GetDisk().GetState(), DiskPercent: r.GetDisk().GetUsedPercent(), Memory: r.GetMemory().GetState(), Stalled: milliseconds(r.GetStalledMs()),
		OpenFiles: r.GetOpenFiles(), OpenFilesLimit: r.GetOpenFilesLimit(),
		Compactors: int(r.GetCompactors()), Sidecars: map[string]time.Duration{},
	}
	for _, seen := range r.GetSidecars() {
		s.Sidecars[seen.GetName()] = milliseconds(seen.GetLastSeenMsAgo())
	}
	return s
}

// milliseconds converts without overflow; a year is longer than anything that is waited for.
func milliseconds(n int64) time.Duration {
	const year = 366 * 24 * 60 * 60 * 1000
	return time.Duration(min(max(n, 0), year)) * time.Millisecond
}

func reasonsFromProto(list []*clusterv1.Reason) []verdict.Reason {
	var out []verdict.Reason
	for _, r := range list[:min(len(list), maxReasons)] {
		out = append(out, verdict.FromNode(r.GetName(), r.GetDetail()))
	}
	return out
}

func verdictToProto(v verdict.Verdict) *clusterv1.Verdict {
	return &clusterv1.Verdict{
		Live: v.Live, Ready: v.Ready,
		NotLive: reasonsToProto(v.NotLive), NotReady: reasonsToProto(v.NotReady), Degraded: reasonsToProto(v.Degraded),
	}
}

func reasonsToProto(reasons []verdict.Reason) []*clusterv1.Reason {
	var out []*clusterv1.Reason
	for _, r := range reasons {
		out = append(out, &clusterv1.Reason{Name: string(r.Name), Detail: wire.Text(r.Detail)})
	}
	return out
}

var livenessToProto = map[gossip.Liveness]clusterv1.Liveness{
	gossip.Alive:   clusterv1.Liveness_LIVENESS_ALIVE,
	gossip.Suspect: clusterv1.Liveness_LIVENESS_SUSPECT,
	gossip.Down:    clusterv1.Liveness_LIVENESS_DOWN,
	gossip.Unseen:  clusterv1.Liveness_LIVENESS_UNSEEN,
	gossip.Left:    clusterv1.Liveness_LIVENESS_LEFT,
}

// memberToProto converts a member. One that has declared nothing has only its name.
func memberToProto(m gossip.Member) *clusterv1.Member {
	declared, err := wire.DeclarationToProto(m.Declared)
	if err != nil {
		declared = &clusterv1.Declaration{NodeId: m.Declared.NodeID}
	}
	p := &clusterv1.Member{
		Declared: declared, Liveness: livenessToProto[m.Liveness], SinceMs: m.Since.UnixMilli(),
		Version: m.Meta.Version, GossipAddr: m.Addr, Ready: m.Meta.Ready, DiskUsedPercent: int32(max(m.Meta.DiskPercent, 0)),
	}
	for _, w := range verdict.FromBits(m.Meta.Degraded) {
		p.Degraded = append(p.Degraded, string(w))
	}
	return p
}

func membersToProto(members []gossip.Member) []*clusterv1.Member {
	out := make([]*clusterv1.Member, 0, len(members))
	for _, m := range members {
		out = append(out, memberToProto(m))
	}
	return out
}
