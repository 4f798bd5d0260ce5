package node

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/memory"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
)

// state is how the node is, for probes, Status, NodeService and the log. Events and the watch change it;
// who asks only reads it.
type state struct {
	mu sync.Mutex // guards all
	// phase is one of the server.State words; it only moves forward.
	phase  server.State
	reason string
	// recovered of recoverTotal log bytes are replayed.
	recovered, recoverTotal int64
	// pressure says that writes are delayed or refused and why; empty when neither.
	pressure string
	// noWorkers says that no compactor is there.
	noWorkers bool
	// quarantined counts tables set aside.
	quarantined int
	// tenants says why the list of tenants can't be read; empty when it can.
	tenants string
	// events says why events are not published; empty when they are.
	events string
	// members are problems with the map of the cluster.
	members []service.Reason
	// certificate says why the files of the node's certificate, or those of tokens, are not used; empty when they are.
	certificate string
	// moves says why the list of moves can't be read; empty when it can.
	moves string
	// ownership says why it can't be read which ranges are the node's; empty when it can.
	ownership string
	// unheard says that a node that joins does not know yet whether its ranges are others'.
	unheard bool
	// draining is until when writes are refused before a restart; zero when they are taken.
	draining time.Time

	// stalled is since when writes that wait do not move; zero when they do.
	stalled time.Time
	// probing is since when a write test of the data directory runs, probeFailed why the last one did
	// not work.
	probing     time.Time
	probeFailed string

	disk       engine.SpaceState
	usage      vfs.Usage
	memory     memory.State
	reading    memory.Reading
	files      int
	fileLimit  int
	goroutines int

	// stallLimit ends the process; PAIRDB_STALL_LIMIT.
	stallLimit time.Duration
}

// stallAfter is how long writes may wait for the disk before the node says that it is not ready: an
// fsync that takes longer than this is a disk that hangs, not one that is busy.
const stallAfter = 10 * time.Second

const (
	// maxFilesPercent of the file descriptors that the process may have are in use: soon neither tables
	// nor connections can be opened.
	maxFilesPercent = 80
	// maxGoroutines: a request needs one or two, and 4,096 of them are worked on at once.
	maxGoroutines = 10_000
)

// Names of reasons to be degraded. The set is closed: they are labels of metrics.
const (
	reasonCompaction = "compaction"
	reasonPressure   = "pressure"
	reasonQuarantine = "quarantine"
	reasonTenants    = "tenants"
	reasonDisk       = "disk"
	reasonMemory     = "memory"
	reasonFiles      = "files"
	reasonGoroutines = "goroutines"
	reasonEvents     = "events"
	reasonMoves      = "moves"
	reasonOwnership  = "ownership"
	reasonDraining   = "draining"
	// That of package identity.
	reasonCertificate = "certificate"
	// Those of package members.
	reasonMembers   = "members"
	reasonDuplicate = "duplicate-id"
	reasonRemoved   = "removed"
)

var degradedReasons = []string{
	reasonCompaction, reasonPressure, reasonQuarantine, reasonTenants, reasonDisk, reasonMemory, reasonFiles, reasonGoroutines, reasonEvents,
	reasonMoves, reasonOwnership, reasonDraining, reasonMembers, reasonDuplicate, reasonRemoved, reasonCertificate,
}

// Names of reasons not to be ready, besides the phases.
const (
	reasonDataDir = "data-dir"
	reasonStalled = "stalled"
	reasonJoining = "joining"
)

// enter moves to a later phase; a node never comes back from one.
func (s *state) enter(phase server.State, reason string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if phase <= s.phase {
		return false
	}
	s.phase, s.reason = phase, reason
	return true
}

// get returns the phase with its reason.
func (s *state) get() (server.State, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.getLocked()
}

func (s *state) getLocked() (server.State, string) {
	if s.phase == server.StateRecovering && s.recoverTotal > 0 {
		return s.phase, fmt.Sprintf("%d of %d MiB of the commit log replayed", s.recovered>>20, s.recoverTotal>>20)
	}
	return s.phase, s.reason
}

func (s *state) set(change func(*state)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

// progressLocked is how far recovery is, 0 to 1.
func (s *state) progressLocked() float64 {
	switch {
	case s.phase != server.StateRecovering:
		return 1
	case s.recoverTotal > 0:
		return float64(s.recovered) / float64(s.recoverTotal)
	}
	return 0
}

// stalledFor returns how long nothing has moved: neither the writes that wait nor the write test of the
// data directory.
func (s *state) stalledFor(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stalledForLocked(now)
}

func (s *state) stalledForLocked(now time.Time) (d time.Duration) {
	for _, since := range []time.Time{s.stalled, s.probing} {
		if !since.IsZero() {
			d = max(d, now.Sub(since))
		}
	}
	return d
}

// notStarted returns what the start still has to do: the replay of the commit log. Until it is over a
// startup probe fails and holds the other probes back; how long it may take is for whoever sets the
// probe. A start that ended badly is over, too: then the process ends by itself.
func (s *state) notStarted() []service.Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != server.StateRecovering {
		return nil
	}
	return []service.Reason{s.phaseReasonLocked()}
}

func (s *state) phaseReasonLocked() service.Reason {
	phase, detail := s.getLocked()
	r := service.Reason{Name: phase.String(), Detail: detail}
	if phase == server.StateRecovering {
		progress := s.progressLocked()
		r.Progress = &progress
	}
	return r
}

// notReady returns why the node should get no requests.
func (s *state) notReady(now time.Time) []service.Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []service.Reason
	if s.phase != server.StateServing {
		out = append(out, s.phaseReasonLocked())
	}
	if s.unheard && s.phase == server.StateServing {
		out = append(out, service.Reason{Name: reasonJoining, Detail: "it is not known yet whether other nodes own what this one is to have"})
	}
	if s.probeFailed != "" {
		out = append(out, service.Reason{Name: reasonDataDir, Detail: s.probeFailed})
	}
	if d := s.stalledForLocked(now); d >= stallAfter {
		out = append(out, service.Reason{Name: reasonStalled, Detail: fmt.Sprintf("no write has moved for %s: the disk hangs", d.Round(time.Second))})
	}
	return out
}

// notLive returns why the process should be started again. It ends by itself for each of these reasons;
// they stand here for the case that it can't. A replay is never one: the next would begin anew.
func (s *state) notLive(now time.Time) []service.Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []service.Reason
	if s.phase == server.StatePoisoned {
		out = append(out, s.phaseReasonLocked())
	}
	if s.hungLocked(now) {
		out = append(out, service.Reason{Name: reasonStalled, Detail: fmt.Sprintf("no write has moved for longer than PAIRDB_STALL_LIMIT, %s", s.stallLimit)})
	}
	return out
}

// hung reports whether the node has stalled for longer than it may.
func (s *state) hung(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hungLocked(now)
}

func (s *state) hungLocked(now time.Time) bool {
	return s.phase == server.StateServing && s.stallLimit > 0 && s.stalledForLocked(now) > s.stallLimit
}

// degraded returns what does not work as it should while requests are served. Refused writes are
// no reason to take reads away, so pressure, disk and memory stand here and not in notReady.
func (s *state) degraded() []service.Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []service.Reason
	add := func(name string, holds bool, format string, args ...any) {
		if holds {
			out = append(out, service.Reason{Name: name, Detail: fmt.Sprintf(format, args...)})
		}
	}
	add(reasonCompaction, s.noWorkers, "no compactor is connected")
	add(reasonPressure, s.pressure != "", "%s", s.pressure)
	add(reasonQuarantine, s.quarantined > 0, "%d damaged tables are set aside", s.quarantined)
	add(reasonTenants, s.tenants != "", "%s", s.tenants)
	add(reasonDisk, s.disk > engine.SpaceOK, "%s: %.1f %% used, %d MiB free", s.disk, usedPercent(s.usage), s.usage.FreeBytes>>20)
	add(reasonMemory, s.memory > memory.OK, "%s: %s", s.memory, s.reading)
	add(reasonFiles, s.fileLimit > 0 && s.files > s.fileLimit/100*maxFilesPercent, "%d of %d files are open", s.files, s.fileLimit)
	add(reasonGoroutines, s.goroutines > maxGoroutines, "%d goroutines", s.goroutines)
	add(reasonEvents, s.events != "", "%s", s.events)
	add(reasonMoves, s.moves != "", "%s", s.moves)
	add(reasonOwnership, s.ownership != "", "%s", s.ownership)
	add(reasonDraining, !s.draining.IsZero(), "writes are refused until %s: the node was asked to flush and be ready for a restart", s.draining.UTC().Format(time.RFC3339))
	add(reasonCertificate, s.certificate != "", "%s", s.certificate)
	return append(out, s.members...)
}

// usedPercent is the used part of a disk, 0 to 100, as df has it.
func usedPercent(u vfs.Usage) float64 {
	if u.TotalBytes == 0 {
		return 0
	}
	return 100 - 100*float64(u.FreeBytes)/float64(u.TotalBytes)
}

// health returns whether the node should get requests, and in words what is not as it should be.
func (s *state) health(now time.Time) (ready bool, problems []string) {
	unready := s.notReady(now)
	for _, r := range append(unready, s.degraded()...) {
		problems = append(problems, strings.TrimSuffix(r.Name+": "+r.Detail, ": "))
	}
	return len(unready) == 0, problems
}
