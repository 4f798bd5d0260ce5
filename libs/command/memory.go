package command

import (
	"crypto/sha256"
	"time"
)

const (
	// remember is how long an answer is known: longer than any sender tries again.
	remember = 10 * time.Minute
	// maxRemembered and maxRememberedBytes bound what is known. At some commands a minute neither is
	// reached; a flood pushes the oldest answers out.
	maxRemembered      = 1000
	maxRememberedBytes = 8 << 20
)

// call is a request that was taken: in flight until done is closed, then with its answer.
type call struct {
	id     string
	digest [sha256.Size]byte // of verb and request
	at     time.Time
	done   chan struct{}
	answer answer // after done
	bytes  int    // of answer, after done
	over   bool
}

// memory knows the requests of the last minutes by their ids. Its owner locks.
type memory struct {
	calls map[string]*call
	order []*call // by at; those that were forgotten are taken out as they come to the front
	bytes int
}

func newMemory() *memory { return &memory{calls: map[string]*call{}} }

// find returns what is known of an id, or nil.
func (m *memory) find(id string, now time.Time) *call {
	m.expire(now)
	return m.calls[id]
}

// begin notes a request that is in flight from now on.
func (m *memory) begin(id string, digest [sha256.Size]byte, now time.Time) *call {
	c := &call{id: id, digest: digest, at: now, done: make(chan struct{})}
	m.calls[id] = c
	m.order = append(m.order, c)
	return c
}

// end gives a call its answer. With forget the same id is a new request.
func (m *memory) end(c *call, a answer, size int, forget bool, now time.Time) {
	c.answer, c.over = a, true
	close(c.done)
	if forget {
		m.forget(c)
		return
	}
	c.bytes = size
	m.bytes += size
	m.expire(now)
}

func (m *memory) forget(c *call) {
	if m.calls[c.id] == c {
		delete(m.calls, c.id)
		m.bytes -= c.bytes
		c.bytes = 0
	}
}

// expire forgets what is too old or too much, oldest first. What is in flight stays: how many those
// are is bounded elsewhere.
func (m *memory) expire(now time.Time) {
	kept := m.order[:0]
	for i, c := range m.order {
		if m.calls[c.id] != c {
			continue
		}
		tooMany := len(m.order)-i > maxRemembered || m.bytes > maxRememberedBytes
		if c.over && (tooMany || now.Sub(c.at) >= remember) {
			m.forget(c)
			continue
		}
		kept = append(kept, c)
	}
	clear(m.order[len(kept):])
	m.order = kept
}
