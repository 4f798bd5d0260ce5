package server

import (
	"fmt"
	"strings"
	"time"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/libs/wire"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/members"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// reportFromProto converts a report. What is over the limits is refused before anything of its size is
// made; the rest is for the registry to refuse.
func reportFromProto(r *nodev1.ReportRequest) (members.Report, error) {
	if n := len(r.GetMembers()); n > membership.MaxMembers {
		return members.Report{}, badReport("%d members, at most %d are allowed", n, membership.MaxMembers)
	}
	out := members.Report{Members: make([]members.Member, len(r.GetMembers())), Verdict: verdictFromProto(r.GetVerdict())}
	for i, m := range r.GetMembers() {
		declared, err := wire.DeclarationFromProto(m.GetDeclared())
		if err != nil {
			return members.Report{}, badReport("member %d: %v", i, err)
		}
		liveness := m.GetLiveness()
		if liveness < clusterv1.Liveness_LIVENESS_ALIVE || liveness > clusterv1.Liveness_LIVENESS_LEFT {
			return members.Report{}, badReport("member %s: liveness %d is unknown", declared.NodeID, liveness)
		}
		out.Members[i] = members.Member{Declared: declared, Seen: members.Seen{
			Liveness: members.Liveness(liveness), Since: m.GetSinceMs(), Version: m.GetVersion(), GossipAddr: m.GetGossipAddr(),
			Ready: m.GetReady(), Degraded: m.GetDegraded(), DiskUsedPercent: int(m.GetDiskUsedPercent()),
		}}
	}
	return out, nil
}

func badReport(format string, args ...any) error {
	return &store.Error{Reason: store.ReasonReport, Message: fmt.Sprintf(format, args...)}
}

// verdictFromProto returns nil for none.
func verdictFromProto(v *clusterv1.Verdict) *members.Verdict {
	if v == nil {
		return nil
	}
	return &members.Verdict{
		Live: v.GetLive(), Ready: v.GetReady(),
		NotLive: reasonsFromProto(v.GetNotLive()), NotReady: reasonsFromProto(v.GetNotReady()), Degraded: reasonsFromProto(v.GetDegraded()),
	}
}

func reasonsFromProto(in []*clusterv1.Reason) []members.Reason {
	out := make([]members.Reason, len(in))
	for i, r := range in {
		out[i] = members.Reason{Name: r.GetName(), Detail: r.GetDetail()}
	}
	return out
}

// viewToProto converts what a node knows of its cluster, as it is at a moment.
func viewToProto(v members.View, now time.Time) (*adminv1.MembersResponse, error) {
	resp := &adminv1.MembersResponse{Members: make([]*clusterv1.Member, len(v.Members)), AgeMs: -1}
	if !v.Heard.IsZero() {
		resp.AgeMs = max(now.Sub(v.Heard).Milliseconds(), 0)
	}
	for i := range v.Members {
		m := &v.Members[i]
		declared, err := wire.DeclarationToProto(m.Declared)
		if err != nil {
			return nil, err
		}
		resp.Members[i] = &clusterv1.Member{
			Declared: declared, Liveness: clusterv1.Liveness(m.Liveness), SinceMs: m.Since, Version: m.Version, GossipAddr: m.GossipAddr,
			Ready: m.Ready, Degraded: m.Degraded, DiskUsedPercent: int32(m.DiskUsedPercent),
		}
	}
	if v.Verdict != nil {
		resp.Verdict = &clusterv1.Verdict{
			Live: v.Verdict.Live, Ready: v.Verdict.Ready, NotLive: reasonsToProto(v.Verdict.NotLive),
			NotReady: reasonsToProto(v.Verdict.NotReady), Degraded: reasonsToProto(v.Verdict.Degraded),
		}
	}
	return resp, nil
}

func reasonsToProto(in []members.Reason) []*clusterv1.Reason {
	out := make([]*clusterv1.Reason, len(in))
	for i, r := range in {
		out[i] = &clusterv1.Reason{Name: r.Name, Detail: strings.ToValidUTF8(r.Detail, "?")}
	}
	return out
}
