package engine

import "github.com/pairdb/pairdb/libs/ikey"

// WaitDurable returns when everything up to seq is durable, whatever the engine's sync mode. seq is
// one that Submit or GetLatest returned: an answer that rests on a read of what was applied waits
// for it. On an error it is not known whether it ever will be.
func (e *Engine) WaitDurable(seq ikey.Seq) error {
	if e.opts.Sync == SyncGroup && ikey.Seq(e.visible.Load()) >= seq {
		return nil // readers see only what is durable
	}
	return e.waitDurable(seq)
}
