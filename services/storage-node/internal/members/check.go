package members

import (
	"fmt"
	"unicode"
	"unicode/utf8"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// Limits of a report, far above what a health-agent sends. A full one has about 3 MiB.
const (
	// maxVersionBytes bounds the version of a binary.
	maxVersionBytes = 100
	// maxReasons bounds each list of reasons or words, maxWordBytes a word, maxDetailBytes its text.
	maxReasons     = 32
	maxWordBytes   = 64
	maxDetailBytes = 1000
	// maxRemovalBytes bounds why a member is removed.
	maxRemovalBytes = 1000
)

func refuse(r store.Reason, format string, args ...any) error {
	return &store.Error{Reason: r, Message: fmt.Sprintf(format, args...)}
}

// check refuses a report that is not one. Declarations are looked at when they are joined.
func (r *Report) check() error {
	if n := len(r.Members); n > membership.MaxMembers {
		return refuse(store.ReasonReport, "%d members, at most %d are allowed", n, membership.MaxMembers)
	}
	known := make(map[string]bool, len(r.Members))
	for i := range r.Members {
		m := &r.Members[i]
		if err := m.Declared.Validate(); err != nil {
			return refuse(store.ReasonReport, "member %d: %v", i, err)
		}
		if err := m.check(); err != nil {
			return refuse(store.ReasonReport, "member %s: %v", m.Declared.NodeID, err)
		}
		if known[m.Declared.NodeID] {
			return refuse(store.ReasonReport, "member %s stands there twice", m.Declared.NodeID)
		}
		known[m.Declared.NodeID] = true
	}
	if r.Verdict != nil {
		if err := r.Verdict.check(); err != nil {
			return refuse(store.ReasonReport, "verdict: %v", err)
		}
	}
	return nil
}

func (s *Seen) check() error {
	switch {
	case !s.Liveness.known():
		return fmt.Errorf("liveness %d is unknown", s.Liveness)
	case s.Since < 0:
		return fmt.Errorf("it is so since %d", s.Since)
	case len(s.Version) > maxVersionBytes:
		return fmt.Errorf("its version has %d bytes, at most %d are allowed", len(s.Version), maxVersionBytes)
	case len(s.GossipAddr) > membership.MaxAddrBytes:
		return fmt.Errorf("its gossip address has %d bytes, at most %d are allowed", len(s.GossipAddr), membership.MaxAddrBytes)
	case len(s.Degraded) > maxReasons:
		return fmt.Errorf("%d words for degraded, at most %d are allowed", len(s.Degraded), maxReasons)
	case s.DiskUsedPercent < 0 || s.DiskUsedPercent > 100:
		return fmt.Errorf("its disk is used to %d %%", s.DiskUsedPercent)
	}
	for _, word := range s.Degraded {
		if len(word) > maxWordBytes {
			return fmt.Errorf("a word of %d bytes for degraded, at most %d are allowed", len(word), maxWordBytes)
		}
	}
	return nil
}

func (v *Verdict) check() error {
	for _, list := range [][]Reason{v.NotLive, v.NotReady, v.Degraded} {
		if len(list) > maxReasons {
			return fmt.Errorf("%d reasons, at most %d are allowed", len(list), maxReasons)
		}
		for _, r := range list {
			if len(r.Name) > maxWordBytes || len(r.Detail) > maxDetailBytes {
				return fmt.Errorf("a reason of %d bytes with a text of %d, at most %d and %d are allowed", len(r.Name), len(r.Detail), maxWordBytes, maxDetailBytes)
			}
		}
	}
	return nil
}

// checkNodeID refuses what can't be the id of a member.
func checkNodeID(id string) error {
	probe := membership.Declaration{NodeID: id, Version: 1, State: membership.Up, VirtualNodes: 1}
	if probe.Validate() != nil {
		return refuse(store.ReasonMember, "%.120q is no node id: 1 to %d letters, digits, dashes, underscores and dots are allowed", id, membership.MaxNodeIDBytes)
	}
	return nil
}

// checkRemoval refuses what can't stand in a log as the reason of a removal.
func checkRemoval(reason string) error {
	if len(reason) < 1 || len(reason) > maxRemovalBytes {
		return refuse(store.ReasonRemoval, "the reason has %d bytes, 1 to %d are allowed", len(reason), maxRemovalBytes)
	}
	if !utf8.ValidString(reason) {
		return refuse(store.ReasonRemoval, "the reason is not valid UTF-8")
	}
	for _, c := range reason {
		if unicode.IsControl(c) {
			return refuse(store.ReasonRemoval, "the reason contains %q: no control character is allowed", c)
		}
	}
	return nil
}
