package engine

import (
	"fmt"
	"strings"

	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// metaPrefix marks the engine's own facts of the node.
const metaPrefix = "engine."

// NodeMeta returns the durable facts that the engine's owner keeps: identity, incarnation, reserved
// counters.
func (e *Engine) NodeMeta() map[string]string {
	m := e.manifest.NodeMeta()
	for k := range m {
		if strings.HasPrefix(k, metaPrefix) {
			delete(m, k)
		}
	}
	return m
}

// SetNodeMeta makes facts durable, in one step; an empty value removes one. At most a few hundred
// small ones fit, and each call is a sync: this is no store.
func (e *Engine) SetNodeMeta(facts map[string]string) error {
	for k := range facts {
		if strings.HasPrefix(k, metaPrefix) {
			return fmt.Errorf("%w: facts that begin with %q are the engine's", ErrInvalidKey, metaPrefix)
		}
	}
	if err := e.writable(); err != nil {
		return err
	}
	return e.applyEdit(manifest.Edit{NodeMeta: facts}, nil, nil)
}
