package outbox

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/record"
)

// Types of frames.
const (
	frameEvent = 1
	frameState = 2
)

// epoch of every file: none is used twice.
const epoch = 1

// stateBytes is the length of a state.
const stateBytes = 17

// stored is an event in the file. The cluster and the node are those of the directory.
type stored struct {
	Sequence uint64          `json:"seq"`
	ID       string          `json:"id"`
	Kind     string          `json:"kind"`
	Time     time.Time       `json:"time"`
	Data     json.RawMessage `json:"data"`
}

// content is what a file holds.
type content struct {
	// events are those above floor, by sequence.
	events []stored
	floor  uint64
	// last is the newest sequence that was given, done with or not.
	last uint64
	// ids are those of all events in the file, in their order: also of those that are done with.
	ids []string
	// clean says that the file was closed.
	clean bool
}

func encodeState(floor, last uint64, clean bool) []byte {
	b := make([]byte, stateBytes)
	binary.LittleEndian.PutUint64(b, floor)
	binary.LittleEndian.PutUint64(b[8:], last)
	if clean {
		b[16] = 1
	}
	return b
}

// decode reads a file. Whatever the error is, the content before it counts: record.ErrTorn is how a
// file ends after a crash, others are damage.
func decode(b []byte) (c content, err error) {
	r := record.NewFileReader(bytes.NewReader(b), int64(len(b)), record.Options{File: fileName, Epoch: epoch, Positions: true})
	for {
		h, payload, err := r.Next()
		if errors.Is(err, io.EOF) {
			return c, nil
		}
		if err != nil {
			c.clean = false
			return c, err
		}
		if err := c.add(h.Type, payload); err != nil {
			c.clean = false
			return c, fmt.Errorf("%s: offset %d: %w", fileName, r.Offset(), err)
		}
	}
}

func (c *content) add(frame uint8, payload []byte) error {
	c.clean = false
	switch frame {
	case frameState:
		if len(payload) != stateBytes || payload[16] > 1 {
			return errors.New("a state of another form")
		}
		c.advance(binary.LittleEndian.Uint64(payload), binary.LittleEndian.Uint64(payload[8:]))
		c.clean = payload[16] == 1
	case frameEvent:
		var e stored
		if err := json.Unmarshal(payload, &e); err != nil {
			return fmt.Errorf("event: %w", err)
		}
		if err := event.CheckID(e.ID); err != nil {
			return err
		}
		if e.Sequence <= c.last || e.Sequence > maxSequence {
			return fmt.Errorf("event %s has the sequence %d after %d", e.ID, e.Sequence, c.last)
		}
		c.last = e.Sequence
		c.ids = append(c.ids, e.ID)
		if e.Sequence > c.floor {
			c.events = append(c.events, e)
		}
	default:
		return fmt.Errorf("frame of the unknown type %d", frame)
	}
	return nil
}

// maxSequence leaves room to go on after it.
const maxSequence = 1 << 62

// advance takes a state into account.
func (c *content) advance(floor, last uint64) {
	c.last = max(c.last, min(last, maxSequence))
	c.floor = max(c.floor, min(floor, c.last))
	for len(c.events) > 0 && c.events[0].Sequence <= c.floor {
		c.events = c.events[1:]
	}
}
