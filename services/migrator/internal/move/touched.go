package move

import "sync"

// Limits of the keys that are remembered: a fence compares them all within its time.
const (
	maxTouchedKeys  = 200_000
	maxTouchedBytes = 64 << 20
)

// touched are the keys of changes that were forwarded since the last comparison began. It is safe for
// concurrent use.
type touched struct {
	mu       sync.Mutex
	on       bool                // guarded by mu
	keys     map[string]struct{} // guarded by mu
	bytes    int                 // guarded by mu
	overflow bool                // guarded by mu; there were more
}

// begin forgets what there was and remembers from now on.
func (t *touched) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.on, t.keys, t.bytes, t.overflow = true, map[string]struct{}{}, 0, false
}

// end forgets everything.
func (t *touched) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.on, t.keys, t.bytes, t.overflow = false, nil, 0, false
}

// add remembers a key.
func (t *touched) add(key []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.on || t.overflow {
		return
	}
	if _, ok := t.keys[string(key)]; ok {
		return
	}
	if len(t.keys) >= maxTouchedKeys || t.bytes+len(key) > maxTouchedBytes {
		t.overflow, t.keys = true, map[string]struct{}{}
		return
	}
	t.keys[string(key)] = struct{}{}
	t.bytes += len(key)
}

// take returns the keys and begins anew; complete says that none is missing.
func (t *touched) take() (keys [][]byte, complete bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	keys = make([][]byte, 0, len(t.keys))
	for k := range t.keys {
		keys = append(keys, []byte(k))
	}
	complete = t.on && !t.overflow
	t.keys, t.bytes = map[string]struct{}{}, 0
	return keys, complete
}

// count returns how many keys there are; complete says that none is missing.
func (t *touched) count() (n int, complete bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.keys), t.on && !t.overflow
}
