package engine

import (
	"errors"
	"fmt"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// applyEdit makes a manifest edit durable and publishes the version that it leads to. Under the same
// hold of e.mu it calls before, which changes what belongs to the new state, and after, for what must
// not be seen earlier than the state; both may be nil. An error that leaves open whether the edit is
// durable poisons the engine.
func (e *Engine) applyEdit(edit manifest.Edit, before, after func()) error {
	e.editMu.Lock()
	defer e.editMu.Unlock()
	if err := e.manifest.Apply(edit); err != nil {
		switch {
		case errors.Is(err, manifest.ErrPoisoned):
			return e.poison(fmt.Errorf("manifest: %w", err))
		case errors.Is(err, vfs.ErrNoSpace):
			e.noteDiskFull()
		}
		return err
	}
	e.mu.Lock()
	if before != nil {
		before()
	}
	e.installReadStateLocked()
	if after != nil {
		after()
	}
	e.mu.changed.Broadcast()
	e.mu.Unlock()
	e.updatePressure()
	return nil
}
