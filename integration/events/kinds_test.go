package events

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/event"
)

const (
	realPod  = "integration/events/pod_test.go TestRealPodPublishesWhatHappensToIt"
	realDisk = "integration/events/pod_test.go TestRealPodTellsOfItsDisk"
	members  = "integration/events/agent_test.go TestRealAgentsTellOfMembers"
	// In one process with a real outbox, publisher and server: what can't be provoked from outside.
	ofTheEngine = "services/storage-node/internal/node/publish_test.go TestEngineEventsAreToldByTheirKind"
	disk        = "services/storage-node/internal/node/publish_test.go TestDiskThatFillsAndEmptiesIsPublished"
	moving      = "services/storage-node/internal/node/moves_test.go TestMovesAndDrainsArePublished"
	poisoned    = "services/storage-node/internal/node/publish_test.go TestPoisonedEngineIsPublishedOrLeftForTheNextStart"
)

// producers says which test has each kind of the catalogue happen and observes it in NATS.
var producers = map[string]string{
	event.NodeStarted:           realPod,
	event.NodeReady:             realPod,
	event.NodeDegraded:          realPod,
	event.NodeStopping:          realPod,
	event.MembershipJoined:      members,
	event.MembershipLeft:        members,
	event.MembershipFailed:      members,
	event.CompactionDegraded:    realPod,
	event.CompactionRecovered:   realPod,
	event.CompactionQuarantined: ofTheEngine,
	event.DiskWarning:           realDisk,
	event.DiskFull:              realDisk,
	event.DiskThrottled:         realDisk,
	event.DiskRecovered:         disk,
	event.EnginePoisoned:        poisoned,
	event.TableCorrupt:          realPod,
	event.SnapshotCreated:       realPod,
	event.MoveRequested:         moving,
	event.MoveStarted:           moving,
	event.MoveProgress:          moving,
	event.MoveCompleted:         moving,
	event.MoveFailed:            moving,
	event.MoveCancelled:         moving,
	event.DrainRequested:        moving,
	event.DrainStarted:          moving,
	event.DrainProgress:         moving,
	event.DrainCompleted:        moving,
	event.DrainFailed:           moving,
	event.DrainCancelled:        moving,
	event.ReplicationLag:        moving,
}

// Danger: a kind stands in the catalogue and is never sent.
func TestEveryKindIsProducedByATest(t *testing.T) {
	require.Len(t, producers, len(event.Kinds()))
	for _, k := range event.Kinds() {
		where, ok := producers[k.Name]
		require.True(t, ok, "no test has %s happen: write one and list it", k.Name)
		file, test, ok := strings.Cut(where, " ")
		require.True(t, ok)
		code, err := os.ReadFile(filepath.Join("..", "..", file))
		require.NoError(t, err)
		_, body, ok := strings.Cut(string(code), "func "+test+"(")
		require.True(t, ok, "%s has no %s", file, test)
		body, _, _ = strings.Cut(body, "\n}\n")
		require.Contains(t, body, "event."+constantOf(k.Name), "%s does not look for %s", test, k.Name)
	}
}

// constantOf returns the name of the constant of a kind: DiskFull for disk.full.
func constantOf(kind string) string {
	var out string
	for word := range strings.SplitSeq(kind, ".") {
		out += strings.ToUpper(word[:1]) + word[1:]
	}
	return out
}
