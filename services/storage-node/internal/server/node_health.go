package server

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/members"
)

// Reason says why the node is not live, not ready or degraded: a word of a closed set, and words for
// people.
type Reason = members.Reason

// Vitals is how the node is, as far as it knows by itself.
type Vitals struct {
	NotLive, NotReady, Degraded []Reason
	// RecoveryProgress is 0 to 1; 1 when recovery is over.
	RecoveryProgress          float64
	Disk                      DiskVitals
	Memory                    MemoryVitals
	OpenFiles, OpenFilesLimit int
	// Stalled is how long writes that wait have not moved.
	Stalled time.Duration
	// Compactors counts those that lease jobs.
	Compactors int
	// Sidecars are those that were heard, by name.
	Sidecars []Seen
	// OutboxLength counts events that wait for their publication.
	OutboxLength int64
}

// DiskVitals is the data volume.
type DiskVitals struct {
	State                 string
	TotalBytes, FreeBytes uint64
	UsedPercent           float64
}

// MemoryVitals is the memory of the container or the process.
type MemoryVitals struct {
	State                 string
	UsedBytes, LimitBytes uint64
}

// Seen is when a sidecar was last heard.
type Seen struct {
	Name string
	Ago  time.Duration
}

// Names of sidecars.
const (
	SidecarCompactor = "compactor"
	SidecarAgent     = "health-agent"
	SidecarMigrator  = "migrator"
)

var sidecarNames = []string{SidecarCompactor, SidecarAgent, SidecarMigrator}

// Sidecars remembers when each sidecar last called. The zero value has heard nobody. It is safe for
// concurrent use.
type Sidecars struct {
	mu   sync.Mutex
	last map[string]time.Time // guarded by mu
}

// Note notes a call. An empty name says nothing; others than those of sidecars are refused, because they
// become labels of metrics.
func (s *Sidecars) Note(name string, now time.Time) error {
	if name == "" {
		return nil
	}
	if !slices.Contains(sidecarNames, name) {
		return status.Error(codes.InvalidArgument, fmt.Sprintf("unknown sidecar %.40q: %s", name, strings.Join(sidecarNames, ", ")))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		s.last = map[string]time.Time{}
	}
	s.last[name] = now
	return nil
}

// Seen returns the sidecars that were heard, by name.
func (s *Sidecars) Seen(now time.Time) []Seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Seen
	for _, name := range sidecarNames {
		if last, ok := s.last[name]; ok {
			out = append(out, Seen{name, max(now.Sub(last), 0)})
		}
	}
	return out
}

// AddSeen adds another sign of life of a sidecar; the latest one counts. The list stays sorted by name.
func AddSeen(all []Seen, name string, ago time.Duration) []Seen {
	i, found := slices.BinarySearchFunc(all, name, func(s Seen, name string) int { return strings.Compare(s.Name, name) })
	if !found {
		return slices.Insert(all, i, Seen{name, max(ago, 0)})
	}
	all[i].Ago = max(min(all[i].Ago, ago), 0)
	return all
}

// Health answers in every phase.
func (n *nodeService) Health(_ context.Context, r *nodev1.HealthRequest) (*nodev1.HealthResponse, error) {
	if err := n.s.node.Sidecars.Note(r.GetSidecar(), time.Now()); err != nil {
		return nil, err
	}
	phase, _ := n.s.node.State()
	v := n.s.node.Vitals()
	resp := &nodev1.HealthResponse{
		State: phase.String(), RecoveryProgress: v.RecoveryProgress, UptimeSeconds: int64(time.Since(n.s.node.Started).Seconds()),
		NotLive: reasonsToProto(v.NotLive), NotReady: reasonsToProto(v.NotReady), Degraded: reasonsToProto(v.Degraded),
		Disk:      &nodev1.DiskHealth{State: v.Disk.State, TotalBytes: int64(v.Disk.TotalBytes), FreeBytes: int64(v.Disk.FreeBytes), UsedPercent: v.Disk.UsedPercent},
		Memory:    &nodev1.MemoryHealth{State: v.Memory.State, UsedBytes: int64(v.Memory.UsedBytes), LimitBytes: int64(v.Memory.LimitBytes)},
		OpenFiles: int64(v.OpenFiles), OpenFilesLimit: int64(v.OpenFilesLimit), StalledMs: v.Stalled.Milliseconds(),
		Compactors: int32(v.Compactors), OutboxLength: v.OutboxLength,
	}
	for _, s := range v.Sidecars {
		resp.Sidecars = append(resp.Sidecars, &nodev1.SidecarSeen{Name: s.Name, LastSeenMsAgo: s.Ago.Milliseconds()})
	}
	return resp, nil
}
