package wire

import (
	"bytes"
	"time"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/libs/sstable"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
)

// Key names one attempt of one job.
type Key struct {
	Session, ID uint64
	Epoch       uint32
}

// Grant is a job as it is leased.
type Grant struct {
	Key Key
	Job compact.Job
	// Lease is how long it holds without a heartbeat, Heartbeat how often to send one.
	Lease, Heartbeat time.Duration
}

// KeyToProto converts a key.
func KeyToProto(k Key) *compactionv1.JobKey {
	return &compactionv1.JobKey{Session: k.Session, Id: k.ID, Epoch: k.Epoch}
}

// KeyFromProto converts a key. A missing one is the zero key, which nothing is leased under.
func KeyFromProto(k *compactionv1.JobKey) Key {
	return Key{Session: k.GetSession(), ID: k.GetId(), Epoch: k.GetEpoch()}
}

var (
	kindToProto = map[compact.Kind]compactionv1.JobKind{
		compact.Merge: compactionv1.JobKind_JOB_KIND_MERGE,
		compact.Scrub: compactionv1.JobKind_JOB_KIND_SCRUB,
	}
	kindFromProto = map[compactionv1.JobKind]compact.Kind{
		compactionv1.JobKind_JOB_KIND_MERGE:   compact.Merge,
		compactionv1.JobKind_JOB_KIND_SCRUB:   compact.Scrub,
		compactionv1.JobKind_JOB_KIND_CLEANUP: compact.Merge,
	}
)

// GrantToProto converts a leased job.
func GrantToProto(g Grant) (*compactionv1.Job, error) {
	if err := checkGrant(g); err != nil {
		return nil, err
	}
	j := g.Job
	p := &compactionv1.Job{
		Key: KeyToProto(g.Key), Kind: kindToProto[j.Kind], OutputLevel: int32(j.OutputLevel),
		MaxOutputs: int32(j.MaxOutputs), MaxBytesPerSecond: j.MaxBytesPerSecond,
		LeaseMs: g.Lease.Milliseconds(), HeartbeatMs: g.Heartbeat.Milliseconds(),
		Table: &compactionv1.TableOptions{
			Format: j.Table.Format, TargetBytes: int64(j.Table.TargetBytes), BlockBytes: int32(j.Table.BlockBytes),
			Compression: int32(j.Table.Compression), FilterBitsPerKey: int32(j.Table.FilterBits), ValueBlockBytes: int64(j.Table.ValueBlockBytes),
		},
	}
	if len(j.Drop) > 0 {
		p.Kind, p.Drop = compactionv1.JobKind_JOB_KIND_CLEANUP, cutsToProto(j.Drop)
	}
	if j.CutsInForce {
		p.CollectByRange = &compactionv1.CollectByRange{GcBefore: j.GCBefore, Cuts: cutsToProto(j.Cuts)}
	} else {
		p.GcBefore = j.GCBefore
	}
	for _, in := range j.Inputs {
		p.Inputs = append(p.Inputs, &compactionv1.Input{
			Number: in.Num, Level: int32(in.Level), SizeBytes: in.Size, Digest: in.Digest,
			Smallest: in.Smallest.Append(nil), Largest: in.Largest.Append(nil),
		})
	}
	for _, s := range j.Snapshots {
		p.Snapshots = append(p.Snapshots, uint64(s))
	}
	for _, r := range j.Bottommost {
		p.Bottommost = append(p.Bottommost, &compactionv1.EngineRange{Start: r.Start, End: r.End})
	}
	return p, nil
}

// GrantFromProto converts a leased job.
func GrantFromProto(p *compactionv1.Job) (Grant, error) {
	if n := len(p.GetInputs()); n > MaxInputs {
		return Grant{}, invalid("%d inputs, at most %d", n, MaxInputs)
	}
	if n := len(p.GetSnapshots()); n > MaxSnapshots {
		return Grant{}, invalid("%d snapshots, at most %d", n, MaxSnapshots)
	}
	if n := len(p.GetBottommost()); n > MaxRanges {
		return Grant{}, invalid("%d ranges, at most %d", n, MaxRanges)
	}
	kind, ok := kindFromProto[p.GetKind()]
	if !ok {
		return Grant{}, invalid("unknown kind of job %d", p.GetKind())
	}
	if cleanup := p.GetKind() == compactionv1.JobKind_JOB_KIND_CLEANUP; cleanup != (len(p.GetDrop()) > 0) {
		return Grant{}, invalid("kind %s with %d drops", p.GetKind(), len(p.GetDrop()))
	}
	by := p.GetCollectByRange()
	if len(by.GetCuts()) > MaxHashCuts || len(p.GetDrop()) > MaxHashCuts {
		return Grant{}, invalid("%d cuts and %d drops, at most %d", len(by.GetCuts()), len(p.GetDrop()), MaxHashCuts)
	}
	if by != nil && p.GetGcBefore() != 0 {
		return Grant{}, invalid("collection with cuts and without")
	}
	t := p.GetTable()
	if t.GetCompression() < 0 || t.GetCompression() > 255 {
		return Grant{}, invalid("compression %d", t.GetCompression())
	}
	g := Grant{
		Key:   KeyFromProto(p.GetKey()),
		Lease: milliseconds(p.GetLeaseMs()), Heartbeat: milliseconds(p.GetHeartbeatMs()),
		Job: compact.Job{
			ID: p.GetKey().GetId(), Kind: kind, OutputLevel: int(p.GetOutputLevel()),
			GCBefore: max(p.GetGcBefore(), by.GetGcBefore()), CutsInForce: by != nil, Cuts: cutsFromProto(by.GetCuts()), Drop: cutsFromProto(p.GetDrop()),
			MaxOutputs: int(p.GetMaxOutputs()), MaxBytesPerSecond: p.GetMaxBytesPerSecond(),
			Table: compact.TableOptions{
				Format: t.GetFormat(), TargetBytes: t.GetTargetBytes(), BlockBytes: int(t.GetBlockBytes()),
				Compression: sstable.Compression(t.GetCompression()), FilterBits: int(t.GetFilterBitsPerKey()), ValueBlockBytes: int(t.GetValueBlockBytes()),
			},
		},
	}
	for _, in := range p.GetInputs() {
		smallest, err := decodeKey(in.GetSmallest())
		if err != nil {
			return Grant{}, err
		}
		largest, err := decodeKey(in.GetLargest())
		if err != nil {
			return Grant{}, err
		}
		g.Job.Inputs = append(g.Job.Inputs, compact.Input{
			Num: in.GetNumber(), Level: int(in.GetLevel()), Size: in.GetSizeBytes(), Digest: in.GetDigest(),
			Smallest: smallest, Largest: largest,
		})
	}
	for _, s := range p.GetSnapshots() {
		g.Job.Snapshots = append(g.Job.Snapshots, ikey.Seq(s))
	}
	for _, r := range p.GetBottommost() {
		g.Job.Bottommost = append(g.Job.Bottommost, compact.Range{Start: r.GetStart(), End: r.GetEnd()})
	}
	return g, checkGrant(g)
}

// milliseconds converts without overflow; a day is longer than any lease.
func milliseconds(n int64) time.Duration {
	const day = 24 * 60 * 60 * 1000
	return time.Duration(min(max(n, 0), day)) * time.Millisecond
}

func decodeKey(b []byte) (ikey.Key, error) {
	if len(b) > MaxKeyBytes {
		return ikey.Key{}, invalid("a key of %d bytes, at most %d", len(b), MaxKeyBytes)
	}
	k, err := ikey.Decode(b)
	if err != nil {
		return ikey.Key{}, invalid("%v", err)
	}
	return k, nil
}

// checkGrant holds for every job that is sent or received.
func checkGrant(g Grant) error {
	j := g.Job
	switch {
	case g.Key.ID == 0 || g.Key.Session == 0 || g.Key.Epoch == 0 || g.Key.ID != j.ID:
		return invalid("key %+v of job %d", g.Key, j.ID)
	case kindToProto[j.Kind] == 0:
		return invalid("unknown kind of job %d", j.Kind)
	case len(j.Inputs) == 0 || len(j.Inputs) > MaxInputs:
		return invalid("%d inputs, 1 to %d expected", len(j.Inputs), MaxInputs)
	case j.OutputLevel < 0 || j.OutputLevel > maxLevel:
		return invalid("output level %d", j.OutputLevel)
	case j.MaxOutputs < 0 || j.MaxOutputs > MaxOutputs || j.Kind == compact.Merge && j.MaxOutputs == 0:
		return invalid("%d outputs, at most %d", j.MaxOutputs, MaxOutputs)
	case len(j.Snapshots) > MaxSnapshots || len(j.Bottommost) > MaxRanges:
		return invalid("%d snapshots and %d ranges, at most %d and %d", len(j.Snapshots), len(j.Bottommost), MaxSnapshots, MaxRanges)
	case g.Heartbeat <= 0 || g.Lease <= g.Heartbeat:
		return invalid("lease %v with heartbeat %v", g.Lease, g.Heartbeat)
	case j.MaxBytesPerSecond < 0 || j.Table.TargetBytes < 0 || j.Table.BlockBytes < 0 || j.Table.FilterBits < 0 || j.Table.ValueBlockBytes < 0:
		return invalid("negative option of job %d", j.ID)
	}
	for i, s := range j.Snapshots {
		if s > ikey.MaxSeq || i > 0 && s <= j.Snapshots[i-1] {
			return invalid("snapshots are not ascending")
		}
	}
	for _, r := range j.Bottommost {
		if len(r.Start) > MaxKeyBytes || len(r.End) > MaxKeyBytes || len(r.End) > 0 && bytes.Compare(r.Start, r.End) >= 0 {
			return invalid("range from %s to %s", ikey.Hash(r.Start), ikey.Hash(r.End))
		}
	}
	if !j.CutsInForce && len(j.Cuts) > 0 || j.Kind != compact.Merge && len(j.Drop) > 0 {
		return invalid("%d cuts and %d drops of job %d", len(j.Cuts), len(j.Drop), j.ID)
	}
	if err := compact.CheckCuts(j.Cuts); err != nil {
		return invalid("cuts: %v", err)
	}
	if err := compact.CheckCuts(j.Drop); err != nil {
		return invalid("drops: %v", err)
	}
	return checkInputs(j.Inputs)
}

func cutsToProto(cuts []compact.HashCut) []*compactionv1.HashCut {
	out := make([]*compactionv1.HashCut, len(cuts))
	for i, c := range cuts {
		out[i] = &compactionv1.HashCut{Start: c.Range.Start, End: c.Range.End, Sequence: uint64(c.Seq)}
	}
	return out
}

func cutsFromProto(cuts []*compactionv1.HashCut) []compact.HashCut {
	if len(cuts) == 0 {
		return nil
	}
	out := make([]compact.HashCut, len(cuts))
	for i, c := range cuts {
		out[i] = compact.HashCut{Range: ring.HashRange{Start: c.GetStart(), End: c.GetEnd()}, Seq: ikey.Seq(c.GetSequence())}
	}
	return out
}

const maxLevel = 63

func checkInputs(inputs []compact.Input) error {
	seen := make(map[uint64]bool, len(inputs))
	for _, in := range inputs {
		switch {
		case in.Num == 0 || seen[in.Num]:
			return invalid("table %d as an input, or twice", in.Num)
		case in.Level < 0 || in.Level > maxLevel || in.Size <= 0:
			return invalid("table %d at level %d with %d bytes", in.Num, in.Level, in.Size)
		case len(in.Smallest.User)+ikey.TrailerLen > MaxKeyBytes || len(in.Largest.User)+ikey.TrailerLen > MaxKeyBytes:
			return invalid("table %d with a key above %d bytes", in.Num, MaxKeyBytes)
		case ikey.Compare(in.Smallest, in.Largest) > 0:
			return invalid("table %d ends before it begins", in.Num)
		}
		seen[in.Num] = true
	}
	return nil
}
