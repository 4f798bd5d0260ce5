package node

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/memory"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
)

const (
	// defaultWatchEvery is how soon the node notices what happens to it.
	defaultWatchEvery = time.Second
	// stepEvery watches, caches change their size while memory is short, or comes back, and files are
	// counted: a collection of garbage has shown by then what the last step brought.
	stepEvery = 10
)

// watcher looks at the process and the machine, every n.watchEvery, and acts on what it finds. It belongs to
// one goroutine.
type watcher struct {
	n      *Node
	memory *memory.Reader
	limits memory.Thresholds
	// readFailed: memory can't be read, which was said.
	readFailed bool
	share      float64 // of their size that caches have
	looks      int
	steps      uint64 // of the engine's progress when it was last looked at
	told       told
}

// watchStage watches the node from its start to its end. It stops before the engine: what it writes into
// the data directory is written under the engine's lock.
func (n *Node) watchStage() service.Stage {
	stop := make(chan struct{})
	return service.Stage{
		Name: "watch", Limit: time.Second, // a test that hangs is left behind
		Run: func() error {
			probed := make(chan struct{})
			go func() {
				defer close(probed)
				n.probeLoop(stop)
			}()
			w := n.newWatcher()
			tick := time.NewTicker(n.watchEvery)
			defer tick.Stop()
			for {
				w.look(time.Now())
				select {
				case <-tick.C:
				case <-stop:
					<-probed
					return nil
				}
			}
		},
		Stop: func(context.Context) error { close(stop); return nil },
	}
}

func (n *Node) newWatcher() *watcher {
	return &watcher{
		n: n, memory: memory.NewReader(n.root), share: 1,
		limits: memory.Thresholds{High: n.cfg.MemoryHigh, Critical: n.cfg.MemoryCritical},
	}
}

// withEngine calls f with the engine while it is open; it can't be closed meanwhile. It reports whether
// there was one.
func (n *Node) withEngine(f func(*engine.Engine)) bool {
	return n.withStorage(func(s *storage) { f(s.engine) })
}

// withStorage is withEngine for all of the storage.
func (n *Node) withStorage(f func(*storage)) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.storage == nil {
		return false
	}
	f(n.storage)
	return true
}

// look is one round.
func (w *watcher) look(now time.Time) {
	n := w.n
	was, is := w.judgeMemory()
	shrunk := false
	open := n.withEngine(func(e *engine.Engine) {
		shrunk = w.useMemory(e, was, is)
		w.lookAtProgress(e.Progress(), now)
		disk, usage := e.Space()
		n.state.set(func(s *state) { s.disk, s.usage = disk, usage })
	})
	if !open {
		w.lookAtProgress(engine.Progress{}, now)
		w.lookAtDisk()
	}
	if shrunk {
		debug.FreeOSMemory() // what was given back counts until the kernel has it
	}
	goroutines := runtime.NumGoroutine()
	n.state.set(func(s *state) { s.goroutines = goroutines })
	if w.looks%stepEvery == 0 {
		files, limit := openFiles()
		n.state.set(func(s *state) { s.files, s.fileLimit = files, limit })
	}
	w.looks++
	n.withStorage(func(s *storage) { n.moveEvents.look(now, s.moves.View().Moves) })
	w.tell()
	if n.state.hung(now) {
		n.fail(service.WithExitCode(service.ExitDisk, fmt.Errorf(
			"no write has moved for %s (PAIRDB_STALL_LIMIT): the disk hangs", n.state.stalledFor(now).Round(time.Second))))
	}
}

// judgeMemory reads memory and notes its state. What can't be read counts as before.
func (w *watcher) judgeMemory() (was, is memory.State) {
	n := w.n
	r, err := w.memory.Read()
	if err != nil && !w.readFailed {
		n.log.Warn("memory can't be read", "error", err)
	}
	w.readFailed = err != nil
	n.state.set(func(s *state) {
		was, is = s.memory, s.memory
		if err == nil {
			is = w.limits.Judge(r, was)
			s.memory, s.reading = is, r
		}
	})
	if is != was {
		n.log.Warn("memory", "state", is.String(), "was", was.String(), "used_bytes", r.Used, "limit_bytes", r.Limit)
	}
	return was, is
}

// useMemory has the engine give memory back, or take it again, and reports whether caches shrank. They
// shrink when it gets worse, and take a step from time to time.
func (w *watcher) useMemory(e *engine.Engine, was, is memory.State) (shrunk bool) {
	e.SetMemory(engineMemory[is])
	if is <= was && w.looks%stepEvery != 0 {
		return false
	}
	share := memory.NextShare(is, w.share)
	if share == w.share {
		return false
	}
	e.ResizeCaches(share)
	shrunk = share < w.share
	w.share = share
	return shrunk
}

var engineMemory = map[memory.State]engine.MemoryState{
	memory.OK: engine.MemoryOK, memory.High: engine.MemoryHigh, memory.Critical: engine.MemoryCritical,
}

// lookAtDisk notes how full the disk is while the engine, which looks at it otherwise, is not open.
func (w *watcher) lookAtDisk() {
	n := w.n
	usage, err := n.fs.Usage(n.cfg.DataDir)
	if err != nil {
		return // not there yet
	}
	disk := n.diskOptions().JudgeSpace(usage)
	n.state.set(func(s *state) { s.disk, s.usage = disk, usage })
}

// lookAtProgress notices that writes which wait do not move: the disk hangs, whatever else answers.
func (w *watcher) lookAtProgress(p engine.Progress, now time.Time) {
	stands := p.Waiting > 0 && p.Steps == w.steps
	w.steps = p.Steps
	w.n.state.set(func(s *state) {
		switch {
		case !stands:
			s.stalled = time.Time{}
		case s.stalled.IsZero():
			s.stalled = now.Add(-w.n.watchEvery) // it has not moved since the last look
		}
	})
}

// openFiles returns how many files the process has open and how many it may have; 0 for what is not
// known.
func openFiles() (open, limit int) {
	if d, err := os.Open("/proc/self/fd"); err == nil {
		names, err := d.Readdirnames(-1)
		if err == nil {
			open = len(names) - 1 // the directory itself
		}
		d.Close() //nolint:errcheck // read only
	}
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err == nil {
		limit = int(min(r.Cur, 1<<31))
	}
	return open, limit
}

// setGoLimit sets the soft limit of the Go runtime. One that is derived stays within the container's: a
// limit that the runtime never reaches before the kernel kills it is none.
func (n *Node) setGoLimit() {
	wanted := n.cfg.MemoryLimit.Bytes()
	r, err := memory.NewReader(n.root).Read()
	if err != nil {
		n.log.Warn("memory can't be read", "error", err)
	}
	limit := memory.GoLimit(wanted, r)
	switch {
	case limit == wanted:
	case n.cfg.MemoryLimit.Auto():
		n.log.Warn("memory limit lowered to nine tenths of the container's: memtables and caches need more when they are full",
			"limit", service.Bytes(limit).String(), "wanted", service.Bytes(wanted).String(), "container_bytes", r.Limit)
	default:
		n.log.Warn("PAIRDB_MEMORY_LIMIT_BYTES is above nine tenths of the container's memory", "limit", service.Bytes(wanted).String(), "container_bytes", r.Limit)
		limit = wanted
	}
	debug.SetMemoryLimit(limit)
	n.log.Info("memory", "go_limit", service.Bytes(limit).String(), "used_bytes", r.Used, "limit_bytes", r.Limit, "container", r.Group)
}

// vitals is what NodeService tells of the node.
func (n *Node) vitals() server.Vitals {
	compactors, heard := n.refresh()
	now := time.Now()
	v := server.Vitals{
		NotLive: vitalReasons(n.state.notLive(now)), NotReady: vitalReasons(n.state.notReady(now)), Degraded: vitalReasons(n.state.degraded()),
		Stalled: n.state.stalledFor(now), Compactors: compactors, Sidecars: n.sidecars.Seen(now), OutboxLength: int64(n.publish.out.Status().Length),
	}
	if !heard.IsZero() {
		v.Sidecars = server.AddSeen(v.Sidecars, server.SidecarCompactor, now.Sub(heard))
	}
	n.state.mu.Lock()
	defer n.state.mu.Unlock()
	s := &n.state
	v.RecoveryProgress = s.progressLocked()
	v.Disk = server.DiskVitals{State: s.disk.String(), TotalBytes: s.usage.TotalBytes, FreeBytes: s.usage.FreeBytes, UsedPercent: usedPercent(s.usage)}
	v.Memory = server.MemoryVitals{State: s.memory.String(), UsedBytes: s.reading.Used, LimitBytes: s.reading.Limit}
	v.OpenFiles, v.OpenFilesLimit = s.files, s.fileLimit
	return v
}

func vitalReasons(rs []service.Reason) []server.Reason {
	out := make([]server.Reason, len(rs))
	for i, r := range rs {
		out[i] = server.Reason{Name: r.Name, Detail: r.Detail}
	}
	return out
}

// refresh notes what changes without an event, so that who asks for reasons gets those of now. It returns
// how many compactors there are and when one was last heard; zero for never.
func (n *Node) refresh() (compactors int, heard time.Time) {
	events := n.publish.problem()
	certificate := ""
	if n.certificates != nil {
		certificate = n.certificates.Problem()
	}
	if n.tokens != nil && certificate == "" {
		if err := n.tokens.Problem(); err != nil {
			certificate = err.Error() + "; the keys before stay in use"
		}
	}
	n.state.set(func(s *state) { s.events, s.certificate = events, certificate })
	n.withEngine(func(e *engine.Engine) {
		compactors, heard = e.Board().Compactors()
		quarantined := e.QuarantinedTables()
		n.state.set(func(s *state) { s.quarantined = quarantined })
	})
	n.withStorage(func(s *storage) {
		until := s.store.WritesRefused()
		n.state.set(func(s *state) { s.draining = until })
	})
	return compactors, heard
}

// degraded is state.degraded with what changes without an event.
func (n *Node) degraded() []service.Reason {
	n.refresh()
	return n.state.degraded()
}
