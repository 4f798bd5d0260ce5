package engine

import (
	"errors"
	"fmt"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// quarantine marks a table as damaged: reads that need it fail and say so, compactions leave it
// alone, the file stays for whoever repairs the range. It is called from readers, so the edit is
// left to a goroutine; the mark is there when a later read of the table finds its damage again.
func (e *Engine) quarantine(num uint64, cause error) {
	e.mu.Lock()
	if e.mu.closing || e.mu.quarantining[num] {
		e.mu.Unlock()
		return
	}
	e.mu.quarantining[num] = true
	e.background.Add(1)
	e.mu.Unlock()
	go func() {
		defer e.background.Done()
		e.markQuarantined(num, cause)
		e.mu.Lock()
		delete(e.mu.quarantining, num)
		e.mu.Unlock()
	}()
}

// markQuarantined makes the mark durable. A mark that can't be written is tried again when the
// damage is next seen.
func (e *Engine) markQuarantined(num uint64, cause error) {
	v := e.manifest.Current()
	t, _ := v.Find(num)
	known := t == nil || t.Quarantined
	v.Unref()
	if known {
		return
	}
	err := e.applyEdit(manifest.Edit{Quarantined: []uint64{num}}, nil, nil)
	if errors.Is(err, manifest.ErrInvalidEdit) {
		return // compacted away meanwhile, or marked by somebody else
	}
	e.stats.quarantined.Add(1)
	e.emit(Event{Kind: EventQuarantined, Table: num, Reason: compact.TableName(num), Err: errors.Join(cause, err)})
}

// ReleaseQuarantine takes the mark off a table again, for an operator who repaired the file.
func (e *Engine) ReleaseQuarantine(num uint64) error {
	v := e.manifest.Current()
	t, _ := v.Find(num)
	v.Unref()
	if t == nil || !t.Quarantined {
		return fmt.Errorf("release %s: it is not in quarantine", compact.TableName(num))
	}
	return e.applyEdit(manifest.Edit{Released: []uint64{num}}, nil, nil)
}
