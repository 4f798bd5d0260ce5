package event

import (
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// StreamName is the stream that keeps events.
const StreamName = "PAIRDB_EVENTS"

const (
	// keep is how long the stream keeps events. A week is what an operator on holiday misses.
	keep = 7 * 24 * time.Hour
	// DuplicateWindow is how long the stream knows the ids it has. An event whose acknowledgement was
	// lost waits in its outbox for as long as NATS is away, and is sent again after that: with a
	// shorter window it would be there twice.
	DuplicateWindow = keep
	// MaxWait is how long an event may wait to be published; an older one is dropped, because the
	// stream could not tell any more whether it has it, and would be about to forget it. The hour
	// between the two is for clocks that disagree and for the last attempt.
	MaxWait = DuplicateWindow - time.Hour

	// Limits of the stream. Events are rare: a node makes some dozens a day, and half a million are
	// those of a thousand nodes for a week. The server holds the ids of the window in memory, about
	// 150 bytes each: 75 MB for as many.
	maxStreamMessages = 500_000
	maxStreamBytes    = 256 << 20
	// maxMessageBytes holds an encoded event and its headers.
	maxMessageBytes = MaxEncodedBytes + 4<<10
)

// Stream is the definition of the stream for a server that has none. An operator may make it before,
// with more replicas or other limits; it is left as it is found.
func Stream() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: StreamName, Description: "Events of PairDB's nodes (docs/EVENTS.md)", Subjects: []string{Filter("", "", "")},
		Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld, Storage: jetstream.FileStorage, Replicas: 1,
		MaxAge: keep, MaxMsgs: maxStreamMessages, MaxBytes: maxStreamBytes, MaxMsgSize: maxMessageBytes,
		Duplicates: DuplicateWindow,
	}
}
