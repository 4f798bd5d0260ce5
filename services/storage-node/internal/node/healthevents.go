package node

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/service"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	eventv1 "github.com/pairdb/pairdb/proto/pairdb/event/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
)

// diskEvents are the kinds that tell of the states of a disk.
var diskEvents = map[engine.SpaceState]string{
	engine.SpaceOK: event.DiskRecovered, engine.SpaceWarning: event.DiskWarning,
	engine.SpaceThrottled: event.DiskThrottled, engine.SpaceFull: event.DiskFull,
}

// settleLooks is for how many looks of the watch the names of reasons must stay the same before they are
// told, five seconds: what comes and goes with a compaction is no news.
const settleLooks = 5

// told is what was told of the node's health.
type told struct {
	disk     engine.SpaceState
	degraded []string // names that were told, ascending
	seen     []string // those of the last look
	since    int      // looks for which they are the same
}

// tell hands what has changed to n.onHealth. It is called by the watch, one call at a time, without any
// lock; onHealth must return at once.
func (w *watcher) tell() {
	n := w.n
	reasons := n.degraded()
	if n.onHealth == nil {
		return
	}
	n.state.mu.Lock()
	disk, usage := n.state.disk, n.state.usage
	n.state.mu.Unlock()
	if disk != w.told.disk {
		w.told.disk = disk
		n.onHealth(diskEvents[disk], &eventv1.DiskChanged{
			TotalBytes: int64(usage.TotalBytes), FreeBytes: int64(usage.FreeBytes), UsedPercent: usedPercent(usage),
		})
	}
	if w.told.changed(reasons) {
		n.onHealth(event.NodeDegraded, degradedPayload(reasons))
	}
}

// changed reports whether other reasons than the ones that were told have held for long enough, and notes
// that they are told now. Details change all the time and do not count.
func (t *told) changed(reasons []service.Reason) bool {
	names := make([]string, len(reasons))
	for i, r := range reasons {
		names[i] = r.Name
	}
	slices.Sort(names)
	if t.since++; !slices.Equal(names, t.seen) {
		t.seen, t.since = names, 0
	}
	if slices.Equal(names, t.degraded) || t.since < settleLooks {
		return false
	}
	t.degraded = names
	return true
}

func degradedPayload(reasons []service.Reason) proto.Message {
	p := &eventv1.NodeDegraded{}
	for _, r := range reasons {
		p.Reasons = append(p.Reasons, &clusterv1.Reason{Name: r.Name, Detail: r.Detail})
	}
	return p
}
