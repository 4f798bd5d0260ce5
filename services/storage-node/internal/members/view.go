package members

import (
	"fmt"
	"strings"
	"time"

	"github.com/pairdb/pairdb/libs/membership"
)

// Liveness is what is seen of a member.
type Liveness uint8

// The kinds of liveness.
const (
	// Alive answers.
	Alive Liveness = iota + 1
	// Suspect missed a probe; others are asked.
	Suspect
	// Down is reached by nobody.
	Down
	// Unseen is declared, and was not met since the agent started.
	Unseen
	// Left said goodbye.
	Left
)

var livenessNames = [...]string{Alive: "ALIVE", Suspect: "SUSPECT", Down: "DOWN", Unseen: "UNSEEN", Left: "LEFT"}

// String returns the word for a liveness.
func (l Liveness) String() string {
	if !l.known() {
		return fmt.Sprintf("Liveness(%d)", uint8(l))
	}
	return livenessNames[l]
}

func (l Liveness) known() bool { return l >= Alive && l <= Left }

// Seen is what the health-agent knows of a member beside its declaration.
type Seen struct {
	Liveness Liveness
	// Since is when Liveness changed, in milliseconds since the Unix epoch.
	Since int64
	// Version is that of the member's storage-node.
	Version    string
	GossipAddr string
	// Ready and Degraded are the verdict on the member's pod; Degraded has words.
	Ready    bool
	Degraded []string
	// DiskUsedPercent is 0 to 100.
	DiskUsedPercent int
}

// Member is a declaration and what is seen of the member.
type Member struct {
	Declared membership.Declaration
	Seen
}

// Reason says why something is not as it should be: a word of a closed set, and a text for people.
type Reason struct{ Name, Detail string }

// String returns what Status shows.
func (r Reason) String() string { return strings.TrimSuffix(r.Name+": "+r.Detail, ": ") }

// Verdict is what the health-agent thinks of the pod.
type Verdict struct {
	Live, Ready                 bool
	NotLive, NotReady, Degraded []Reason
}

// Report is what the health-agent says.
type Report struct {
	// Verdict may be nil.
	Verdict *Verdict
	Members []Member
}

// View is the cluster at one moment. It is shared: nobody changes it.
type View struct {
	// Members are sorted by node id; those that were removed stand last.
	Members []Member
	// Verdict is nil until the health-agent gave one.
	Verdict *Verdict
	// Heard is when the health-agent reported last; zero: not since the node started.
	Heard time.Time
	// Changed is closed when members or verdict are not the newest any more.
	Changed <-chan struct{}
}
