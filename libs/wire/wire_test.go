package wire_test

import (
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/ring"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/wire"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
)

func key(s string, seq ikey.Seq) ikey.Key { return ikey.Make([]byte(s), seq, ikey.KindSet) }

func someGrant() wire.Grant {
	return wire.Grant{
		Key: wire.Key{Session: 9, ID: 3, Epoch: 2}, Lease: 15 * time.Second, Heartbeat: 5 * time.Second,
		Job: compact.Job{
			ID: 3, Kind: compact.Merge, OutputLevel: 2, Snapshots: []ikey.Seq{4, 7}, GCBefore: 1 << 40,
			Inputs: []compact.Input{
				{Num: 11, Level: 0, Size: 100, Digest: math.MaxUint64, Smallest: key("a", 5), Largest: key("c", 1)},
				{Num: 12, Level: 2, Size: 1 << 30, Digest: 1, Smallest: key("b", 3), Largest: sstable.RangeDeleteBound([]byte("z"))},
			},
			Bottommost: []compact.Range{{Start: []byte("a"), End: []byte("b")}, {Start: []byte("c")}},
			Table:      compact.TableOptions{Format: 1, TargetBytes: 64 << 20, BlockBytes: 4096, Compression: sstable.Zstd, FilterBits: 10},
			MaxOutputs: 64, MaxBytesPerSecond: 1 << 20,
		},
	}
}

// sent is what arrives of a grant.
func sent(t require.TestingT, g wire.Grant) (wire.Grant, error) {
	p, err := wire.GrantToProto(g)
	require.NoError(t, err)
	b, err := proto.Marshal(p)
	require.NoError(t, err)
	q := &compactionv1.Job{}
	require.NoError(t, proto.Unmarshal(b, q))
	return wire.GrantFromProto(q)
}

func TestGrantArrivesAsItWasSent(t *testing.T) {
	// A field that is forgotten here is a merge that keeps, or drops, what it should not.
	got, err := sent(t, someGrant())
	require.NoError(t, err)
	require.Equal(t, len(someGrant().Job.Inputs), len(got.Job.Inputs))
	want := someGrant()
	want.Job.Bottommost[1].End = []byte{} // proto does not tell nil from empty
	got.Job.Bottommost[1].End = []byte{}
	require.Equal(t, want, got)
}

func TestAnyGrantArrivesAsItWasSent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := someGrant()
		g.Key.Epoch = rapid.Uint32Range(1, math.MaxUint32).Draw(t, "epoch")
		g.Key.Session = rapid.Uint64Range(1, math.MaxUint64).Draw(t, "session")
		g.Job.GCBefore = rapid.Uint64().Draw(t, "gc")
		g.Job.Kind = rapid.SampledFrom([]compact.Kind{compact.Merge, compact.Scrub}).Draw(t, "kind")
		g.Job.OutputLevel = rapid.IntRange(0, 6).Draw(t, "level")
		if g.Job.CutsInForce = rapid.Bool().Draw(t, "in force"); g.Job.CutsInForce {
			g.Job.Cuts = genCuts(t, "cuts")
		}
		if g.Job.Kind == compact.Merge {
			g.Job.Drop = genCuts(t, "drop")
		}
		g.Job.Inputs = nil
		for i := range rapid.IntRange(1, 20).Draw(t, "inputs") {
			user := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "user")
			seq := ikey.Seq(rapid.Uint64Range(0, uint64(ikey.MaxSeq)).Draw(t, "seq"))
			g.Job.Inputs = append(g.Job.Inputs, compact.Input{
				Num: uint64(i + 1), Level: i % 7, Size: rapid.Int64Range(1, math.MaxInt64).Draw(t, "size"),
				Digest: rapid.Uint64().Draw(t, "digest"), Smallest: ikey.Make(user, seq, ikey.KindMerge),
				Largest: ikey.Make(append(user[:len(user):len(user)], 'x'), seq, ikey.KindDelete),
			})
		}
		got, err := sent(t, g)
		require.NoError(t, err)
		got.Job.Bottommost, g.Job.Bottommost = nil, nil
		for i := range got.Job.Inputs {
			require.Zero(t, ikey.Compare(g.Job.Inputs[i].Smallest, got.Job.Inputs[i].Smallest))
			require.Zero(t, ikey.Compare(g.Job.Inputs[i].Largest, got.Job.Inputs[i].Largest))
			got.Job.Inputs[i].Smallest, got.Job.Inputs[i].Largest = g.Job.Inputs[i].Smallest, g.Job.Inputs[i].Largest
		}
		require.Equal(t, g, got)
	})
}

func genCuts(t *rapid.T, label string) []compact.HashCut {
	return compact.UniteCuts(rapid.SliceOfN(rapid.Custom(func(t *rapid.T) compact.HashCut {
		return compact.HashCut{
			Range: ring.HashRange{Start: rapid.Uint64().Draw(t, "start"), End: rapid.Uint64().Draw(t, "end")},
			Seq:   ikey.Seq(rapid.Uint64Range(0, uint64(ikey.MaxSeq)).Draw(t, "cut")),
		}
	}), 0, 5).Draw(t, label))
}

func cut(start, end uint64, seq ikey.Seq) compact.HashCut {
	return compact.HashCut{Range: ring.HashRange{Start: start, End: end}, Seq: seq}
}

// Danger: a worker that is older than the cuts collects by age alone, and so a delete that a replica does
// not have; or it takes a clean-up for a merge, and the node believes that it is done.
func TestWorkersThatDoNotKnowCutsCollectNothing(t *testing.T) {
	g := someGrant()
	g.Job.CutsInForce, g.Job.Cuts = true, []compact.HashCut{cut(5, 0, 7)}
	p, err := wire.GrantToProto(g)
	require.NoError(t, err)
	require.Zero(t, p.GetGcBefore())
	require.Equal(t, g.Job.GCBefore, p.GetCollectByRange().GetGcBefore())
	got, err := wire.GrantFromProto(p)
	require.NoError(t, err)
	require.Equal(t, g.Job.Cuts, got.Job.Cuts)
	require.True(t, got.Job.CutsInForce)

	g = someGrant()
	g.Job.CutsInForce = true // nothing was equal yet
	got, err = sent(t, g)
	require.NoError(t, err)
	require.True(t, got.Job.CutsInForce)
	require.Equal(t, g.Job.GCBefore, got.Job.GCBefore)

	g = someGrant()
	g.Job.Drop = []compact.HashCut{cut(5, 0, 7)}
	p, err = wire.GrantToProto(g)
	require.NoError(t, err)
	require.Equal(t, compactionv1.JobKind_JOB_KIND_CLEANUP, p.GetKind())
}

func TestGrantsOutOfLimitsAreNeitherSentNorTaken(t *testing.T) {
	// A worker trusts a job with its memory and its disk.
	for name, change := range map[string]func(g *wire.Grant){
		"no id":               func(g *wire.Grant) { g.Key.ID = 0; g.Job.ID = 0 },
		"other id":            func(g *wire.Grant) { g.Job.ID = 4 },
		"no epoch":            func(g *wire.Grant) { g.Key.Epoch = 0 },
		"no session":          func(g *wire.Grant) { g.Key.Session = 0 },
		"kind":                func(g *wire.Grant) { g.Job.Kind = 9 },
		"no inputs":           func(g *wire.Grant) { g.Job.Inputs = nil },
		"many inputs":         func(g *wire.Grant) { g.Job.Inputs = make([]compact.Input, wire.MaxInputs+1) },
		"one input twice":     func(g *wire.Grant) { g.Job.Inputs[1].Num = 11 },
		"table 0":             func(g *wire.Grant) { g.Job.Inputs[0].Num = 0 },
		"negative size":       func(g *wire.Grant) { g.Job.Inputs[0].Size = -1 },
		"level":               func(g *wire.Grant) { g.Job.OutputLevel = 64 },
		"negative level":      func(g *wire.Grant) { g.Job.Inputs[0].Level = -1 },
		"bounds":              func(g *wire.Grant) { g.Job.Inputs[0].Smallest = key("d", 1) },
		"huge key":            func(g *wire.Grant) { g.Job.Inputs[0].Largest = key(strings.Repeat("z", wire.MaxKeyBytes), 1) },
		"outputs":             func(g *wire.Grant) { g.Job.MaxOutputs = 65 },
		"no outputs":          func(g *wire.Grant) { g.Job.MaxOutputs = 0 },
		"rate":                func(g *wire.Grant) { g.Job.MaxBytesPerSecond = -1 },
		"lease":               func(g *wire.Grant) { g.Lease = time.Second },
		"heartbeat":           func(g *wire.Grant) { g.Heartbeat = 0 },
		"snapshots unsorted":  func(g *wire.Grant) { g.Job.Snapshots = []ikey.Seq{7, 4} },
		"one snapshot twice":  func(g *wire.Grant) { g.Job.Snapshots = []ikey.Seq{4, 4} },
		"snapshot too large":  func(g *wire.Grant) { g.Job.Snapshots = []ikey.Seq{ikey.MaxSeq + 1} },
		"many snapshots":      func(g *wire.Grant) { g.Job.Snapshots = make([]ikey.Seq, wire.MaxSnapshots+1) },
		"many ranges":         func(g *wire.Grant) { g.Job.Bottommost = make([]compact.Range, wire.MaxRanges+1) },
		"range that is empty": func(g *wire.Grant) { g.Job.Bottommost[0].End = []byte("a") },
		"target":              func(g *wire.Grant) { g.Job.Table.TargetBytes = -1 },
		"cuts not in force":   func(g *wire.Grant) { g.Job.Cuts = []compact.HashCut{cut(1, 2, 3)} },
		"cuts unsorted": func(g *wire.Grant) {
			g.Job.CutsInForce, g.Job.Cuts = true, []compact.HashCut{cut(5, 6, 3), cut(1, 2, 3)}
		},
		"many cuts": func(g *wire.Grant) {
			g.Job.CutsInForce, g.Job.Cuts = true, make([]compact.HashCut, wire.MaxHashCuts+1)
		},
		"drops that overlap": func(g *wire.Grant) { g.Job.Drop = []compact.HashCut{cut(1, 6, 3), cut(5, 9, 3)} },
		"drop too large":     func(g *wire.Grant) { g.Job.Drop = []compact.HashCut{cut(1, 6, ikey.MaxSeq+1)} },
		"drops of a scrub": func(g *wire.Grant) {
			g.Job.Kind, g.Job.Drop = compact.Scrub, []compact.HashCut{cut(1, 6, 3)}
		},
	} {
		g := someGrant()
		change(&g)
		_, err := wire.GrantToProto(g)
		require.ErrorIs(t, err, wire.ErrInvalid, name)
	}
	for name, change := range map[string]func(p *compactionv1.Job){
		"empty":            func(p *compactionv1.Job) { proto.Reset(p) },
		"no key":           func(p *compactionv1.Job) { p.Key = nil },
		"unspecified kind": func(p *compactionv1.Job) { p.Kind = 0 },
		"kind of tomorrow": func(p *compactionv1.Job) { p.Kind = 77 },
		"short key":        func(p *compactionv1.Job) { p.Inputs[0].Smallest = []byte("short") },
		"no largest":       func(p *compactionv1.Job) { p.Inputs[0].Largest = nil },
		"huge key":         func(p *compactionv1.Job) { p.Inputs[0].Largest = make([]byte, wire.MaxKeyBytes+1) },
		"nil input":        func(p *compactionv1.Job) { p.Inputs[0] = nil },
		"compression":      func(p *compactionv1.Job) { p.Table.Compression = 256 },
		"negative":         func(p *compactionv1.Job) { p.Table.Compression = -1 },
		"level":            func(p *compactionv1.Job) { p.OutputLevel = -1 },
		"outputs":          func(p *compactionv1.Job) { p.MaxOutputs = -1 },
		"lease":            func(p *compactionv1.Job) { p.LeaseMs = -5 },
		"many inputs":      func(p *compactionv1.Job) { p.Inputs = make([]*compactionv1.Input, wire.MaxInputs+1) },
		"many snapshots":   func(p *compactionv1.Job) { p.Snapshots = make([]uint64, wire.MaxSnapshots+1) },
		"many ranges":      func(p *compactionv1.Job) { p.Bottommost = make([]*compactionv1.EngineRange, wire.MaxRanges+1) },
		"nothing to clean": func(p *compactionv1.Job) { p.Kind = compactionv1.JobKind_JOB_KIND_CLEANUP },
		"merge that drops": func(p *compactionv1.Job) { p.Drop = []*compactionv1.HashCut{{Start: 1, End: 2}} },
		"two collections":  func(p *compactionv1.Job) { p.CollectByRange = &compactionv1.CollectByRange{GcBefore: 7} },
		"many drops": func(p *compactionv1.Job) {
			p.Kind, p.Drop = compactionv1.JobKind_JOB_KIND_CLEANUP, make([]*compactionv1.HashCut, wire.MaxHashCuts+1)
		},
		"many cuts": func(p *compactionv1.Job) {
			p.GcBefore = 0
			p.CollectByRange = &compactionv1.CollectByRange{Cuts: make([]*compactionv1.HashCut, wire.MaxHashCuts+1)}
		},
		"empty cut": func(p *compactionv1.Job) {
			p.GcBefore = 0
			p.CollectByRange = &compactionv1.CollectByRange{Cuts: []*compactionv1.HashCut{{Start: 2, End: 2}}}
		},
	} {
		p, err := wire.GrantToProto(someGrant())
		require.NoError(t, err)
		change(p)
		_, err = wire.GrantFromProto(p)
		require.ErrorIs(t, err, wire.ErrInvalid, name)
	}
}

func TestReportArrivesAsItWasSent(t *testing.T) {
	outs := []compact.Output{
		{Index: 1, Meta: sstable.Meta{Size: 7, Digest: math.MaxUint64, Smallest: key("a", 3), Largest: key("b", 2), MinSeq: 2, MaxSeq: 9, Entries: 4}},
		{Index: 64, Meta: sstable.Meta{Size: 1 << 40, Digest: 1, Smallest: key("c", 3), Largest: sstable.RangeDeleteBound([]byte("d")), Entries: 1}},
	}
	ps, err := wire.OutputsToProto(outs)
	require.NoError(t, err)
	got, err := wire.OutputsFromProto(ps)
	require.NoError(t, err)
	require.Equal(t, outs, got)

	stats := compact.Stats{EntriesIn: 1, EntriesOut: 2, Shadowed: 3, Joined: 4, Collected: 5, BytesRead: 6, BytesWritten: 7, Dropped: 8, DropLeft: 9}
	require.Equal(t, stats, wire.StatsFromProto(wire.StatsToProto(stats)))
	require.Equal(t, compact.Stats{}, wire.StatsFromProto(nil))

	corrupt := []compact.CorruptInput{{Num: 3, Reason: "bad block"}}
	cs, err := wire.CorruptToProto(corrupt)
	require.NoError(t, err)
	gotCorrupt, err := wire.CorruptFromProto(cs)
	require.NoError(t, err)
	require.Equal(t, corrupt, gotCorrupt)
}

func TestReportsOutOfLimitsAreNotTaken(t *testing.T) {
	good := func() *compactionv1.Output {
		ps, err := wire.OutputsToProto([]compact.Output{{Index: 1, Meta: sstable.Meta{Size: 7, Smallest: key("a", 3), Largest: key("b", 2)}}})
		require.NoError(t, err)
		return ps[0]
	}
	for name, change := range map[string]func(o *compactionv1.Output){
		"index 0":       func(o *compactionv1.Output) { o.Index = 0 },
		"index -1":      func(o *compactionv1.Output) { o.Index = -1 },
		"index 65":      func(o *compactionv1.Output) { o.Index = 65 },
		"no size":       func(o *compactionv1.Output) { o.SizeBytes = 0 },
		"negative size": func(o *compactionv1.Output) { o.SizeBytes = math.MinInt64 },
		"short key":     func(o *compactionv1.Output) { o.Smallest = []byte{1} },
		"huge key":      func(o *compactionv1.Output) { o.Largest = make([]byte, wire.MaxKeyBytes+1) },
	} {
		o := good()
		change(o)
		_, err := wire.OutputsFromProto([]*compactionv1.Output{o})
		require.ErrorIs(t, err, wire.ErrInvalid, name)
	}
	_, err := wire.OutputsFromProto(make([]*compactionv1.Output, 65))
	require.ErrorIs(t, err, wire.ErrInvalid)
	_, err = wire.OutputsToProto(make([]compact.Output, 65))
	require.ErrorIs(t, err, wire.ErrInvalid)
	_, err = wire.CorruptFromProto(make([]*compactionv1.CorruptInput, wire.MaxInputs+1))
	require.ErrorIs(t, err, wire.ErrInvalid)
	_, err = wire.CorruptToProto(make([]compact.CorruptInput, wire.MaxInputs+1))
	require.ErrorIs(t, err, wire.ErrInvalid)
	_, err = wire.CorruptFromProto([]*compactionv1.CorruptInput{{Reason: strings.Repeat("x", wire.MaxReasonBytes+1)}})
	require.ErrorIs(t, err, wire.ErrInvalid)
	require.Equal(t, wire.Key{}, wire.KeyFromProto(nil))
}

func TestTextIsAlwaysFitForTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := string(rapid.SliceOfN(rapid.Byte(), 0, 2000).Draw(t, "bytes"))
		if rapid.Bool().Draw(t, "text") {
			s = rapid.StringN(0, 600, 2000).Draw(t, "string")
		}
		got := wire.Text(s)
		require.True(t, utf8.ValidString(got))
		require.LessOrEqual(t, len(got), wire.MaxReasonBytes)
		if len(s) <= wire.MaxReasonBytes && utf8.ValidString(s) {
			require.Equal(t, s, got)
		}
	})
}

func FuzzGrantFromProto(f *testing.F) {
	p, err := wire.GrantToProto(someGrant())
	require.NoError(f, err)
	b, err := proto.Marshal(p)
	require.NoError(f, err)
	f.Add(b)
	g := someGrant()
	g.Job.CutsInForce, g.Job.Cuts, g.Job.Drop = true, []compact.HashCut{cut(1, 5, 7), cut(9, 0, 3)}, []compact.HashCut{cut(0, 0, 9)}
	p, err = wire.GrantToProto(g)
	require.NoError(f, err)
	b, err = proto.Marshal(p)
	require.NoError(f, err)
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		p := &compactionv1.Job{}
		if proto.Unmarshal(b, p) != nil {
			return
		}
		g, err := wire.GrantFromProto(p)
		if err != nil {
			require.ErrorIs(t, err, wire.ErrInvalid)
			return
		}
		_, err = sent(t, g) // what is taken can be sent on
		require.NoError(t, err)
	})
}

func FuzzOutputsFromProto(f *testing.F) {
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		p := &compactionv1.CompleteRequest{}
		if proto.Unmarshal(b, p) != nil {
			return
		}
		outs, err := wire.OutputsFromProto(p.GetOutputs())
		if err == nil {
			_, err = wire.OutputsToProto(outs)
		}
		if err != nil {
			require.ErrorIs(t, err, wire.ErrInvalid)
		}
	})
}
