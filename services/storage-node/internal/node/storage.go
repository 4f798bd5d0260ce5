package node

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/vfs"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/config"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
	"github.com/pairdb/pairdb/services/storage-node/internal/tenant"
)

// storage is everything that lives in the data directory.
type storage struct {
	engine    *engine.Engine
	store     *store.Store
	tenants   *tenant.Registry
	snapshots *snapshots
}

// wallClock is the engine's time.
type wallClock struct{}

func (wallClock) Now() time.Time                         { return time.Now() }
func (wallClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// runStorage opens the data directory, serves it, and waits until it has to close.
func (n *Node) runStorage() error {
	start := time.Now()
	s, err := n.openStorage()
	n.setStorage(s)
	close(n.openDone)
	if err != nil {
		return err
	}
	n.server.Open(server.Backend{
		Store: s.store, Engine: s.engine, Snapshots: s.snapshots, Tenants: s.tenants, LocalMode: n.cfg.CompactionLocal,
		Pipelined: n.request.pipelined, MaxWrites: n.cfg.MaxInFlight,
	})
	close(n.opened)
	defer n.measureTenants(s.tenants)()
	if n.state.enter(server.StateServing, "") {
		n.health.SetServingStatus("", healthv1.HealthCheckResponse_SERVING)
		n.health.SetServingStatus(storagev1.StorageService_ServiceDesc.ServiceName, healthv1.HealthCheckResponse_SERVING)
		n.health.SetServingStatus(storagenodev1.StorageNodeService_ServiceDesc.ServiceName, healthv1.HealthCheckResponse_SERVING)
		n.log.Info("serving", "took", time.Since(start), "actor", s.store.Actor())
	}
	watch := time.NewTicker(time.Second)
	defer watch.Stop()
	var last uint64
	for {
		select {
		case <-n.stop:
			return nil
		case err := <-n.failed:
			return err
		case now := <-watch.C:
			last = n.watchDurability(s.engine, last, now)
		}
	}
}

// measureTenants keeps the sizes of tenants current until the function that it returns is called, which
// waits for the end.
func (n *Node) measureTenants(r *tenant.Registry) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// watchDurability notices that applied writes do not become durable: the disk hangs.
func (n *Node) watchDurability(e *engine.Engine, last uint64, now time.Time) uint64 {
	visible := uint64(e.VisibleSeq())
	waiting := uint64(e.AppliedSeq()) > visible && visible == last
	n.state.set(func(s *state) {
		switch {
		case !waiting:
			s.stalled = time.Time{}
		case s.stalled.IsZero():
			s.stalled = now
		}
	})
	return visible
}

// openStorage opens the data directory: whose it is is checked before anything is touched, and
// written under the engine's lock.
func (n *Node) openStorage() (*storage, error) {
	dir := n.cfg.DataDir
	if err := n.fs.MkdirAll(dir, 0o770); err != nil {
		return nil, service.WithExitCode(service.ExitDisk, fmt.Errorf("data directory %s (PAIRDB_DATA_DIR): %w", dir, err))
	}
	id, ok, err := readIdentity(n.fs, dir)
	if err != nil {
		return nil, err
	}
	if ok {
		if err := id.checkOwner(dir, n.cfg.NodeID, n.cfg.ClusterID); err != nil {
			return nil, err
		}
	}
	options, err := n.engineOptions()
	if err != nil {
		return nil, err
	}
	e, err := engine.Open(dir, options)
	if err != nil {
		return nil, openProblem(dir, err)
	}
	s, err := n.fillStorage(e)
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return s, nil
}

// fillStorage adds to an open engine what needs it.
func (n *Node) fillStorage(e *engine.Engine) (*storage, error) {
	dir := n.cfg.DataDir
	if err := claim(n.fs, dir, n.cfg.NodeID, n.cfg.ClusterID); err != nil {
		return nil, err
	}
	tenants := tenant.New(tenant.Options{Strict: n.cfg.Tenants == config.TenantsStrict, Named: n.cfg.TenantMetrics})
	st, err := store.New(storeEngine{e}, store.Options{
		Tenants: tenants, NodeID: n.cfg.NodeID, MaxClockSkew: n.cfg.MaxClockSkew, GCGrace: n.cfg.GCGrace, EngineBatchBytes: maxEngineBatchBytes,
		AckBeforeDurable: n.cfg.Sync != engine.SyncGroup.String(),
	})
	if err != nil {
		return nil, err
	}
	if err := tenants.Open(context.Background(), st, storeEngine{e}); err != nil {
		return nil, err
	}
	if err := tenants.Damage(); err != nil {
		n.log.Error("tenants", "error", err)
	}
	snaps := &snapshots{fs: n.fs, dir: dir, engine: e, seq: func() uint64 { return uint64(e.VisibleSeq()) }, now: time.Now}
	if err := openSnapshots(snaps); err != nil {
		return nil, fmt.Errorf("snapshots: %w", err)
	}
	return &storage{engine: e, store: st, tenants: tenants, snapshots: snaps}, nil
}

// maxEngineBatchBytes holds the 16 MiB of an atomic batch of the wire with the clocks and siblings
// that are stored beside it; more does not fit into a frame of the commit log.
const maxEngineBatchBytes = 48 << 20

func (n *Node) engineOptions() (engine.Options, error) {
	c := n.cfg
	sync, err := engine.ParseSyncMode(c.Sync)
	if err != nil {
		return engine.Options{}, err
	}
	mode, err := jobs.ParseMode(c.CompactionLocal)
	if err != nil {
		return engine.Options{}, err
	}
	var seed [32]byte
	if _, err := crand.Read(seed[:]); err != nil {
		return engine.Options{}, err
	}
	return engine.Options{
		FS: n.fs, Clock: wallClock{}, Rand: rand.New(rand.NewChaCha8(seed)), Events: n.events.handle,
		Sync: sync, SyncInterval: c.SyncInterval,
		MaxBatchBytes:   maxEngineBatchBytes,
		MemtableBytes:   int(c.MemtableBytes),
		TableBytes:      int64(c.TableBytes),
		BlockCacheBytes: orNone(c.BlockCacheBytes),
		RowCacheBytes:   orNone(c.RowCacheBytes),
		ReserveBytes:    orNone(c.DiskReserve),
		GCBefore:        func() uint64 { return causal.Timestamp(time.Now().Add(-c.GCGrace)) },
		Jobs:            jobs.Options{Mode: mode, Rate: int64(c.CompactionRate)},
	}, nil
}

// orNone turns 0, which is none in the configuration, into what the engine takes for none.
func orNone(b service.Bytes) int64 {
	if b == 0 {
		return -1
	}
	return int64(b)
}

// openProblem says what to do about a directory that can't be opened, and which exit code it is.
func openProblem(dir string, err error) error {
	switch {
	case errors.Is(err, vfs.ErrLocked):
		return service.WithExitCode(service.ExitLocked, fmt.Errorf(
			"data directory %s is in use by another process: stop it, or set PAIRDB_DATA_DIR to another directory: %w", dir, err))
	case errors.Is(err, engine.ErrNewerFormat):
		return service.WithExitCode(service.ExitCorrupt, fmt.Errorf("data directory %s: start a newer storage-node: %w", dir, err))
	case errors.Is(err, engine.ErrCorrupt):
		return service.WithExitCode(service.ExitCorrupt, fmt.Errorf(
			"data directory %s is damaged: run `storage-node check %s`, then restore a snapshot or let the other replicas repair it: %w", dir, dir, err))
	}
	return fmt.Errorf("open data directory %s: %w", dir, err)
}

// closeStorage makes everything durable and gives the directory back. An open that is under way is
// waited for: within the limit of the stage, beyond it what it does is as safe as a crash.
func (n *Node) closeStorage(ctx context.Context) error {
	n.once.Do(func() { close(n.stop) })
	select {
	case <-n.openDone:
	case <-ctx.Done():
		return ctx.Err()
	}
	s := n.setStorage(nil)
	if s == nil {
		return nil
	}
	if err := s.engine.Close(); err != nil {
		return fmt.Errorf("close the engine: %w", err)
	}
	return nil
}
