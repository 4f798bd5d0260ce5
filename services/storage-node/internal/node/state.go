package node

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
)

// state is how the node is, for probes, Status and the log. Events change it; probes only read it.
type state struct {
	mu sync.Mutex // guards all
	// phase is one of the server.State words; it only moves forward.
	phase  server.State
	reason string
	// recovered of recoverTotal log bytes are replayed.
	recovered, recoverTotal int64
	// pressure says that writes are delayed or refused and why; empty when neither.
	pressure string
	// stalled is since when applied writes have not become durable; zero when they do.
	stalled time.Time
	// noWorkers says that no compactor is there.
	noWorkers bool
	// quarantined counts tables set aside.
	quarantined int
}

// stallLimit is how long applied writes may wait for the disk before the node says that it is not
// ready: an fsync that takes longer than this is a disk that hangs, not one that is busy.
const stallLimit = 10 * time.Second

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

// notReady returns why the node should get no requests.
func (s *state) notReady(now time.Time) []service.Reason {
	phase, reason := s.get()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case phase == server.StateRecovering:
		progress := 0.0
		if s.recoverTotal > 0 {
			progress = float64(s.recovered) / float64(s.recoverTotal)
		}
		return []service.Reason{{Name: phase.String(), Detail: reason, Progress: &progress}}
	case phase != server.StateServing:
		return []service.Reason{{Name: phase.String(), Detail: reason}}
	case !s.stalled.IsZero() && now.Sub(s.stalled) >= stallLimit:
		return []service.Reason{{Name: "stalled", Detail: fmt.Sprintf("no write has become durable for %s", now.Sub(s.stalled).Round(time.Second))}}
	}
	return nil
}

// notLive returns why the process should be started again: it ends by itself when it is poisoned,
// and a disk that hangs is not cured by a restart.
func (s *state) notLive() []service.Reason {
	if phase, reason := s.get(); phase == server.StatePoisoned {
		return []service.Reason{{Name: phase.String(), Detail: reason}}
	}
	return nil
}

// degraded returns what does not work as it should while requests are served. Refused writes are
// no reason to take reads away, so pressure stands here and not in notReady.
func (s *state) degraded() []service.Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []service.Reason
	if s.noWorkers {
		out = append(out, service.Reason{Name: "compaction", Detail: "no compactor is connected"})
	}
	if s.pressure != "" {
		out = append(out, service.Reason{Name: "pressure", Detail: s.pressure})
	}
	if s.quarantined > 0 {
		out = append(out, service.Reason{Name: "quarantine", Detail: fmt.Sprintf("%d damaged tables are set aside", s.quarantined)})
	}
	return out
}

// health returns whether the node should get requests, and in words what is not as it should be.
func (s *state) health(now time.Time) (ready bool, problems []string) {
	unready := s.notReady(now)
	for _, r := range append(unready, s.degraded()...) {
		problems = append(problems, strings.TrimSuffix(r.Name+": "+r.Detail, ": "))
	}
	return len(unready) == 0, problems
}
