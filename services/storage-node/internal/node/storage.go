package node

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/vfs"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/antientropy"
	"github.com/pairdb/pairdb/services/storage-node/internal/config"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
	"github.com/pairdb/pairdb/services/storage-node/internal/jobs"
	"github.com/pairdb/pairdb/services/storage-node/internal/members"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
	"github.com/pairdb/pairdb/services/storage-node/internal/ownership"
	"github.com/pairdb/pairdb/services/storage-node/internal/replica"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
	"github.com/pairdb/pairdb/services/storage-node/internal/tenant"
)

// storage is everything that lives in the data directory.
type storage struct {
	engine    *engine.Engine
	store     *store.Store
	tenants   *tenant.Registry
	members   *members.Registry
	moves     *moves.Registry
	ownership *ownership.Registry
	equal     *antientropy.Registry
	snapshots *snapshots
	replica   *replica.Replica
}

// wallClock is the engine's time.
type wallClock struct{}

func (wallClock) Now() time.Time                         { return time.Now() }
func (wallClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// runStorage opens the data directory, serves it, and waits until it has to close.
func (n *Node) runStorage() (err error) {
	defer func() {
		if err != nil {
			n.why.Store(err.Error())
		}
	}()
	start := time.Now()
	s, err := n.openStorage()
	n.setStorage(s)
	close(n.openDone)
	if err != nil {
		return err
	}
	n.server.Open(server.Backend{
		Store: s.store, Engine: s.engine, Snapshots: s.snapshots, Tenants: s.tenants, Members: s.members, LocalMode: n.cfg.CompactionLocal,
		Moves: s.moves, Replica: s.replica, LetGo: n.letGo(s.replica, s.ownership), Settings: n.settings(s.equal), ReplicationFactor: n.cfg.ReplicationFactor, AntiEntropy: s.equal, Equality: s.equal,
		Ownership: s.ownership, ClusterID: n.cfg.ClusterID,
		Pipelined: n.request.pipelined, MaxWrites: n.cfg.MaxInFlight, Hot: n.hot,
	})
	close(n.opened)
	defer n.measureTenants(s.tenants)()
	defer n.followMembers(s)()
	if n.state.enter(server.StateServing, "") {
		n.health.SetServingStatus("", healthv1.HealthCheckResponse_SERVING)
		n.health.SetServingStatus(storagev1.StorageService_ServiceDesc.ServiceName, healthv1.HealthCheckResponse_SERVING)
		n.health.SetServingStatus(storagenodev1.StorageNodeService_ServiceDesc.ServiceName, healthv1.HealthCheckResponse_SERVING)
		n.log.Info("serving", "took", time.Since(start), "actor", s.store.Actor())
		n.publish.ready(time.Since(start))
	}
	select {
	case <-n.stop:
		return nil
	case err := <-n.failed:
		return err
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
	var e *engine.Engine
	equal, err := n.newEqual(func() ikey.Seq { return e.VisibleSeq() })
	if err != nil {
		return nil, err
	}
	options, err := n.engineOptions(equal)
	if err != nil {
		return nil, err
	}
	e, err = engine.Open(dir, options)
	if err != nil {
		return nil, openProblem(dir, err)
	}
	s, err := n.fillStorage(e, equal)
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return s, nil
}

// takeDirectory is called once the lock of the data directory is taken: from now on sidecars are told
// whose it is.
func (n *Node) takeDirectory() {
	if n.identity, n.claimErr = claim(n.fs, n.cfg.DataDir, n.cfg.NodeID, n.cfg.ClusterID); n.claimErr == nil {
		n.publish.started(n.started, n.identity.Incarnation)
		close(n.locked)
	}
}

// fillStorage adds to an open engine what needs it.
func (n *Node) fillStorage(e *engine.Engine, equal *antientropy.Registry) (*storage, error) {
	dir := n.cfg.DataDir
	if n.claimErr != nil {
		return nil, n.claimErr
	}
	tenants := tenant.New(tenant.Options{Strict: n.cfg.Tenants == config.TenantsStrict, Named: n.cfg.TenantMetrics})
	var records *replica.Replica
	owners := n.newOwnership(e, func(ctx context.Context, ranges []ring.HashRange) error {
		if records != nil {
			records.ForgetStanding()
		}
		return equal.Forget(ctx, ranges)
	})
	st, err := store.New(storeEngine{e}, store.Options{
		Tenants: tenants, Owners: owners, NodeID: n.cfg.NodeID, MaxClockSkew: n.cfg.MaxClockSkew, GCGrace: n.cfg.GCGrace, EngineBatchBytes: maxEngineBatchBytes,
		MayPrune: mayPrune(e, equal), AckBeforeDurable: n.cfg.Sync != engine.SyncGroup.String(),
	})
	if err != nil {
		return nil, err
	}
	if err := tenants.Open(context.Background(), st, storeEngine{e}); err != nil {
		return nil, err
	}
	if err := tenants.Damage(); err != nil {
		n.log.Error("tenants", "error", err)
		n.state.set(func(s *state) { s.tenants = err.Error() })
	}
	if err := equal.Open(context.Background(), st); err != nil {
		return nil, err
	}
	if err := n.openOwnership(owners, st); err != nil {
		return nil, err
	}
	known, err := n.openMembers(st)
	if err != nil {
		return nil, err
	}
	moving, err := n.openMoves(st, known)
	if err != nil {
		return nil, err
	}
	if n.rememberDrained(known.View(), moving); n.drained.Load() {
		return nil, n.identity.drained().checkOwner(dir, n.cfg.NodeID, n.cfg.ClusterID)
	}
	if err := n.await(e, owners, known, moving.Wanted()); err != nil {
		return nil, err
	}
	snaps := &snapshots{fs: n.fs, dir: dir, engine: e, seq: func() uint64 { return uint64(e.VisibleSeq()) }, now: time.Now, created: n.publish.snapshot}
	if err := openSnapshots(snaps); err != nil {
		return nil, fmt.Errorf("snapshots: %w", err)
	}
	records = n.newReplica(e, st, tenants, owners)
	n.sweepFences(owners, moving)
	if err := n.sweepPins(records, moving); err != nil {
		return nil, err
	}
	return &storage{engine: e, store: st, tenants: tenants, members: known, moves: moving, ownership: owners, equal: equal, snapshots: snaps, replica: records}, nil
}

// maxEngineBatchBytes holds the 16 MiB of an atomic batch of the wire with the clocks and siblings
// that are stored beside it; more does not fit into a frame of the commit log.
const maxEngineBatchBytes = 48 << 20

func (n *Node) engineOptions(equal *antientropy.Registry) (engine.Options, error) {
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
	o := n.diskOptions()
	o.FS, o.Clock, o.Rand, o.Events = n.fs, wallClock{}, rand.New(rand.NewChaCha8(seed)), n.handle
	o.Locked = n.takeDirectory
	o.Sync, o.SyncInterval = sync, c.SyncInterval
	o.MaxBatchBytes = maxEngineBatchBytes
	o.LogSegmentBytes = int64(c.LogSegmentBytes)
	o.MemtableBytes = int(c.MemtableBytes)
	o.TableBytes = int64(c.TableBytes)
	o.BlockCacheBytes, o.RowCacheBytes = orNone(c.BlockCacheBytes), orNone(c.RowCacheBytes)
	o.GCBefore, o.Cuts = equal.GCBefore, equal.Cuts
	o.Jobs = jobs.Options{
		Mode: mode, Rate: int64(c.CompactionRate), Session: n.session,
		// Another process, with memory of its own: what it wrote is read once before its inputs go.
		VerifyProbability: 1, AuditProbability: float64(c.CompactionAudit) / 100,
	}
	return o, nil
}

// diskOptions are those by which a disk is judged.
func (n *Node) diskOptions() engine.Options {
	c := n.cfg
	return engine.Options{
		ReserveBytes: orNone(c.DiskReserve), DiskWarningPercent: c.DiskWarning, DiskThrottledPercent: c.DiskThrottled, DiskFullPercent: c.DiskFull,
	}
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
	s.replica.Close()
	if err := s.engine.Close(); err != nil {
		return fmt.Errorf("close the engine: %w", err)
	}
	return nil
}
