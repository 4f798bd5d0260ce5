package gossip

import (
	"log/slog"
	"net"
	"regexp"
	"strings"
	"sync"
)

// Reasons of refusals, a closed set.
const (
	refusedLabel      = "label"        // another cluster, or no gossip at all
	refusedEncryption = "encryption"   // no key of ours decrypts it, or it is not encrypted
	refusedPacket     = "packet"       // it can't be read
	refusedMeta       = "meta"         // too long or malformed
	refusedState      = "state"        // the declared map of a push/pull can't be read
	refusedMessage    = "message"      // likewise of a message
	refusedMembers    = "members"      // more members than there may be
	refusedDuplicate  = "duplicate-id" // a member with a node id that another one has
)

var refusedReasons = []string{
	refusedLabel, refusedEncryption, refusedPacket, refusedMeta, refusedState, refusedMessage, refusedMembers, refusedDuplicate,
}

// maxRefusalsLogged bounds what an attacker who changes his address can write into the log.
const maxRefusalsLogged = 1000

// refusals counts and logs what was refused.
type refusals struct {
	log     *slog.Logger
	metrics *Metrics

	mu   sync.Mutex
	seen map[[2]string]bool // peer and reason that were logged; guarded by mu
}

func newRefusals(log *slog.Logger, m *Metrics) *refusals {
	return &refusals{log: log, metrics: m, seen: map[[2]string]bool{}}
}

// note counts a refusal and logs it when it is the first of this peer and reason.
func (r *refusals) note(reason, peer, detail string) {
	r.metrics.refused.WithLabelValues(reason).Inc()
	if host, _, err := net.SplitHostPort(peer); err == nil {
		peer = host // each connection comes from another port
	}
	r.mu.Lock()
	first := !r.seen[[2]string{peer, reason}] && len(r.seen) < maxRefusalsLogged
	if first {
		r.seen[[2]string{peer, reason}] = true
	}
	r.mu.Unlock()
	if first {
		r.log.Warn("gossip refused", "reason", reason, "peer", peer, "detail", detail)
	}
}

// fromLog finds refusals among what memberlist logs: it tells of them nowhere else. The first match
// counts, whatever the case.
var fromLog = []struct{ words, reason string }{
	{"unacceptable label", refusedLabel},
	{"label header", refusedLabel},
	{"cannot decode label", refusedLabel},
	{"decrypt packet failed", refusedEncryption},
	{"no installed keys could decrypt", refusedEncryption},
	{"encryption is configured but", refusedEncryption},
	{"encryption is not configured", refusedEncryption},
	{"not supported", refusedPacket},
	{"invalid msgtype", refusedPacket},
	{"missing message type", refusedPacket},
	{"invalid checksum", refusedPacket},
	{"packet too short", refusedPacket},
	{"exceeds limit", refusedPacket},
	{"larger than limit", refusedPacket},
	{"message is empty", refusedPacket},
	{"failed to decode", refusedPacket},
	{"failed to decompress", refusedPacket},
	{"failed to read remote state", refusedPacket},
	{"failed to receive user message", refusedPacket},
	{"protocol version", refusedPacket},
	{"vsn is not present", refusedPacket},
}

// outgoing are lines about calls of this agent that failed: what the other side says of its refusal
// is none of ours.
var outgoing = []string{"push/pull with", "failed to join", "fallback tcp ping"}

var (
	logFrom    = regexp.MustCompile(`from=(\S+)`)
	logSuspect = regexp.MustCompile(`Suspect (\S+) has failed`)
)

// logReader is where memberlist logs: every line goes to the log at debug level, refusals are counted,
// and suspicions go to the view, for there is no other way to hear of them.
type logReader struct {
	log      *slog.Logger
	refusals *refusals
	suspect  func(node string)
}

// Write takes one line.
func (l *logReader) Write(p []byte) (int, error) {
	line := strings.TrimSpace(string(p))
	l.log.Debug("memberlist", "line", line)
	if m := logSuspect.FindStringSubmatch(line); m != nil {
		l.suspect(m[1])
		return len(p), nil
	}
	lower := strings.ToLower(line)
	for _, words := range outgoing {
		if strings.Contains(lower, words) {
			return len(p), nil
		}
	}
	for _, f := range fromLog {
		if !strings.Contains(lower, f.words) {
			continue
		}
		peer := "unknown"
		if m := logFrom.FindStringSubmatch(line); m != nil {
			peer = m[1]
		}
		l.refusals.note(f.reason, peer, line)
		break
	}
	return len(p), nil
}
