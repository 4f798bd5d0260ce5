// Package verdict decides how a pod is: alive, ready, degraded by what. It never measures: what was
// found out is its argument, and equal arguments have equal verdicts.
//
// Three rules are behind the table of its test. What fails beside the node (compactor, migrator, NATS,
// gossip, this agent) degrades the pod and never takes it out of service, for the node serves without
// it. A node that does not answer is not ready after a few seconds. And not live, which is a
// recommendation to start the node again, is said only where a start can help: the node says so itself
// (poisoned), or it has not answered for a minute. A long recovery is live: starting it again would
// begin it anew.
package verdict

import (
	"fmt"
	"time"
)

// Reason is a word and a text for people.
type Reason struct {
	Name   Word
	Detail string
}

// Verdict on a pod.
type Verdict struct {
	// Live: the node must not be started again. Ready: it should get requests.
	Live, Ready bool
	// NotLive, NotReady and Degraded say why; each word once.
	NotLive, NotReady, Degraded []Reason
}

// States of a node, as NodeService.Health says them.
const (
	StateRecovering = "recovering"
	StateServing    = "serving"
	StatePoisoned   = "poisoned"
	StateStopping   = "stopping"
)

// NodeStatus is what a node says of itself.
type NodeStatus struct {
	// State is one of the words above; a newer node may have others.
	State string
	// Progress of recovering is 0 to 1; Unmoved is how long it has not changed.
	Progress float64
	Unmoved  time.Duration
	// NotLive, NotReady and Degraded are the node's own reasons.
	NotLive, NotReady, Degraded []Reason
	// Disk and Memory are "ok" or what is wrong with them; empty when the node does not say.
	Disk, Memory string
	// DiskPercent is the used part of the data volume; it judges nothing beside Disk.
	DiskPercent float64
	// Stalled is how long writes have waited for the disk.
	Stalled time.Duration
	// OpenFiles of OpenFilesLimit are in use; a limit of 0 is not known.
	OpenFiles, OpenFilesLimit int64
	// Compactors lease jobs.
	Compactors int
	// Sidecars are those that the node has heard since it started, and how long ago.
	Sidecars map[string]time.Duration
}

// GossipStatus is how the agent stands among the others.
type GossipStatus struct {
	// Off says why gossip does not run; empty when it does.
	Off string
	// Unanswered: the seeds were tried and none answered.
	Unanswered bool
	// Others are declared beside this one and not removed; Reachable of them answer.
	Others, Reachable int
	// Duplicate is where another member with this node id is; empty when there is none.
	Duplicate string
	// Removed: the cluster's map has this member as removed.
	Removed bool
	// Keyring says what is wrong with the file of the keys; empty when nothing is.
	Keyring string
}

// ProbeStatus is what the agent measures itself.
type ProbeStatus struct {
	// DiskPercent is the used part of the data volume; negative when it is out of reach.
	DiskPercent float64
	// MemoryPercent and FilesPercent are of the agent's own limits; 0 when not known.
	MemoryPercent float64
	FilesPercent  float64
	// ClockJump is how far the wall clock jumped lately; 0 when it did not.
	ClockJump time.Duration
}

// Input is all that a verdict is made of.
type Input struct {
	// Node is what the node said last, nil when it never has.
	Node *NodeStatus
	// Away is how long the node has not answered: since its last answer, or since the agent began to
	// ask. 0: it answered just now.
	Away time.Duration
	// Why says how it does not answer, for people.
	Why    string
	Gossip GossipStatus
	Probe  ProbeStatus
}

// Limits of the verdict.
type Limits struct {
	// NotReadyAfter is how long a node may be silent and still count as ready: three of the questions
	// that are asked every second, so that a pause of its process is no outage.
	NotReadyAfter time.Duration
	// NotLiveAfter is how long until it should be started again. Its answers come from memory in every
	// phase; a minute without one is no load.
	NotLiveAfter time.Duration
	// StalledAfter is how long writes may wait for the disk: a sync that takes longer is a disk that
	// hangs, not one that is busy.
	StalledAfter time.Duration
	// SidecarAfter is how long a sidecar may be silent: several of its heartbeats, and a restart.
	SidecarAfter time.Duration
	// DiskPercent is where a volume that only the agent sees counts as filling up, as in the node.
	DiskPercent float64
	// NearPercent is where files and memory count as nearly used up.
	NearPercent float64
}

// DefaultLimits are those of a pod.
var DefaultLimits = Limits{
	NotReadyAfter: 3 * time.Second,
	NotLiveAfter:  time.Minute,
	StalledAfter:  10 * time.Second,
	SidecarAfter:  time.Minute,
	DiskPercent:   85,
	NearPercent:   90,
}

// Judge returns the verdict.
func (l Limits) Judge(in Input) Verdict {
	var v Verdict
	if in.Node == nil || in.Away >= l.NotReadyAfter {
		l.silent(&v, in)
	} else {
		l.node(&v, in.Node)
		l.sidecars(&v, in.Node)
	}
	l.gossip(&v, in.Gossip)
	l.probe(&v, in)
	v.Live, v.Ready = len(v.NotLive) == 0, len(v.NotReady) == 0 && len(v.NotLive) == 0
	return v
}

// add adds a reason unless its word is there.
func add(to *[]Reason, name Word, format string, args ...any) {
	for _, r := range *to {
		if r.Name == name {
			return
		}
	}
	*to = append(*to, Reason{Name: name, Detail: fmt.Sprintf(format, args...)})
}

func addAll(to *[]Reason, reasons []Reason) {
	for _, r := range reasons {
		add(to, r.Name, "%s", r.Detail)
	}
}

// silent judges a node that does not answer.
func (l Limits) silent(v *Verdict, in Input) {
	detail := fmt.Sprintf("no answer for %s", in.Away.Round(time.Second))
	if in.Why != "" {
		detail += ": " + in.Why
	}
	add(&v.NotReady, Node, "%s", detail)
	if in.Away >= l.NotLiveAfter {
		add(&v.NotLive, Node, "%s", detail)
	}
}

// node judges what a node says of itself.
func (l Limits) node(v *Verdict, n *NodeStatus) {
	addAll(&v.NotLive, n.NotLive)
	addAll(&v.NotReady, n.NotReady)
	addAll(&v.Degraded, n.Degraded)
	switch n.State {
	case StateServing:
	case StateRecovering:
		detail := fmt.Sprintf("%.0f %%", 100*n.Progress)
		if n.Unmoved >= l.NotLiveAfter {
			detail += fmt.Sprintf(", no progress for %s", n.Unmoved.Round(time.Second))
		}
		add(&v.NotReady, Recovering, "%s", detail)
	case StateStopping:
		add(&v.NotReady, Stopping, "")
	case StatePoisoned:
		add(&v.NotLive, Poisoned, "")
		add(&v.NotReady, Poisoned, "")
	default:
		add(&v.NotReady, Other, "state %q", n.State)
	}
	if n.Stalled >= l.StalledAfter {
		add(&v.NotReady, Stalled, "writes have waited for the disk for %s", n.Stalled.Round(time.Second))
	}
	if n.Disk != "" && n.Disk != "ok" {
		add(&v.Degraded, Disk, "%s", n.Disk)
	}
	if n.Memory != "" && n.Memory != "ok" {
		add(&v.Degraded, Memory, "%s", n.Memory)
	}
	if n.OpenFilesLimit > 0 && 100*float64(n.OpenFiles) >= l.NearPercent*float64(n.OpenFilesLimit) {
		add(&v.Degraded, Files, "%d of %d", n.OpenFiles, n.OpenFilesLimit)
	}
}

// sidecars judges those that were there: what never came is not part of this pod.
func (l Limits) sidecars(v *Verdict, n *NodeStatus) {
	if _, seen := n.Sidecars["compactor"]; seen && n.Compactors == 0 {
		add(&v.Degraded, Compactor, "none leases jobs")
	}
	if ago, seen := n.Sidecars["migrator"]; seen && ago >= l.SidecarAfter {
		add(&v.Degraded, Migrator, "not heard for %s", ago.Round(time.Second))
	}
}

func (l Limits) gossip(v *Verdict, g GossipStatus) {
	if g.Duplicate != "" {
		add(&v.NotReady, DuplicateID, "%s", g.Duplicate)
	}
	if g.Removed {
		add(&v.NotReady, Removed, "this member was removed from the cluster")
	}
	if g.Keyring != "" {
		add(&v.Degraded, Keyring, "%s", g.Keyring)
	}
	switch {
	case g.Off != "":
		add(&v.Degraded, Gossip, "%s", g.Off)
	case g.Others > 0 && g.Reachable == 0:
		add(&v.Degraded, Isolated, "none of %d other members answers", g.Others)
	case g.Unanswered && g.Reachable == 0:
		add(&v.Degraded, Seeds, "no seed answers")
	}
}

func (l Limits) probe(v *Verdict, in Input) {
	p := in.Probe
	if p.ClockJump != 0 {
		add(&v.Degraded, Clock, "the wall clock jumped by %s", p.ClockJump.Round(time.Millisecond))
	}
	if p.DiskPercent >= l.DiskPercent && (in.Node == nil || in.Node.Disk == "") {
		add(&v.Degraded, Disk, "%.0f %% used", p.DiskPercent)
	}
	if p.MemoryPercent >= l.NearPercent {
		add(&v.Degraded, AgentMemory, "%.0f %% of the health-agent's limit", p.MemoryPercent)
	}
	if p.FilesPercent >= l.NearPercent {
		add(&v.Degraded, AgentFiles, "%.0f %% of the health-agent's limit", p.FilesPercent)
	}
}
