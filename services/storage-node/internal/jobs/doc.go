// Package jobs is the job board: what the storage node wants merged or scrubbed, who holds it, and
// whether to believe what comes back. It never edits the manifest, names a table or deletes one;
// the engine does, through Installer.
//
// # Life of a job
//
//	          Offer             Lease: epoch+1                  Complete → verify → Installer.Install
//	engine ──────────▶ QUEUED ─────────────────▶ LEASED ──────────────▶ VERIFYING ──▶ INSTALLED
//	                     ▲                         │ expired · stalled · abandoned · rejected
//	                     └───── attempts < 3 ──────┤
//	                                               └ attempts = 3 ─▶ LOCAL ─▶ INSTALLED | QUARANTINED
//	CANCELLED: range dropped, plan obsolete, shutdown. Terminal states call Installer.Release.
//
// Every attempt has its own directory staging/<id>.e<epoch>, made by the board together with the
// empty files that the worker may fill, and removed by the board when the attempt ends. Leases are
// not persisted: a board begins with a new session and an empty staging directory, so every key of
// an earlier process is fenced.
//
// # Why a worker can do no harm
//
//  1. It acts by key only. A key names one attempt; when the attempt ends its key is fenced for
//     ever, because epochs rise and sessions are random.
//  2. It writes into its attempt's directory only, by numbers that the board turns into names.
//  3. Before a file is looked at it is sealed: nobody has it open for writing, and nobody can open
//     it so again. Where the file system can't promise that, the board copies the file and looks
//     at the copy. So what was verified is what is installed.
//  4. All is verified by the node's own reading of the files; what the worker says only has to
//     agree. Nothing is installed unless all of it passes.
//     The limit of this: counts prove that no entry was forgotten or invented by mistake. A worker
//     that is bent on it can swap values and keep the accounts; it is as trusted as the node.
//  5. Damage that a worker reports of inputs counts only after the node has seen it itself.
//
// # Use by the engine
//
//	b, err := jobs.NewBoard(o)            // wipes staging/, starts the sweeper and the executor
//	id, err := b.Offer(plan)              // plan's pins held by the engine until Release
//	n := b.Cancel(func(p *Plan) bool, reason)
//	b.Holds(number)                       // a table that is an input of a live job: never delete
//	b.SetUrgent(true)                     // soft level-0 limit: the local executor joins in
//	b.SetRate(bytesPerSecond)             // for external jobs, reaches them with a heartbeat
//	s := b.Status()                       // workers, jobs, totals
//	b.Close()                             // cancels everything, waits
//
// # Use by workers, in this process or not
//
//	leases, err := b.Lease(ctx, worker)   // long poll
//	d := b.Heartbeat(key, doneBytes)
//	v := b.Complete(ctx, key, report)
//	b.Abandon(key, reason, detail, corrupt)
//
// Locks: Board.mu guards all state and is never held over disk operations or calls of Installer.
// Callers of the board must not hold a lock that their Installer or their Options.Events takes.
package jobs
