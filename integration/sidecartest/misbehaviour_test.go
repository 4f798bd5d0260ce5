package sidecartest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/localpod"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/wire"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
)

// invalid stands for a call that is refused as such: the attempt is still the worker's.
const invalid = "INVALID_ARGUMENT"

// misbehaviour is what a compactor does instead of its work. It gets an honest report of an attempt whose
// files are right, and spoils the one or the other.
type misbehaviour struct {
	name string
	// code begins the reason of the rejection.
	code string
	do   func(h *hostile, j *compactionv1.Job, r *compactionv1.CompleteRequest)
}

// said spoils the report only.
func said(f func(r *compactionv1.CompleteRequest)) func(*hostile, *compactionv1.Job, *compactionv1.CompleteRequest) {
	return func(_ *hostile, _ *compactionv1.Job, r *compactionv1.CompleteRequest) { f(r) }
}

// spoilt spoils the file of the first output.
func spoilt(f func(h *hostile, file string)) func(*hostile, *compactionv1.Job, *compactionv1.CompleteRequest) {
	return func(h *hostile, j *compactionv1.Job, r *compactionv1.CompleteRequest) {
		f(h, h.output(j.GetKey(), int(r.Outputs[0].Index)))
	}
}

// instead puts something else in the place of the first output.
func instead(f func(h *hostile, file string)) func(*hostile, *compactionv1.Job, *compactionv1.CompleteRequest) {
	return spoilt(func(h *hostile, file string) {
		require.NoError(h, os.Chmod(filepath.Dir(file), 0o770))
		require.NoError(h, os.Remove(file))
		f(h, file)
	})
}

// entry is one of a table, its record decoded.
type entry struct {
	key    ikey.Key
	record causal.Record
}

// written writes a flawless table with other entries over an output, and reports it as if it were right. change
// says whether it found what it wanted to change.
func written(change func(entries []entry) ([]entry, bool)) func(*hostile, *compactionv1.Job, *compactionv1.CompleteRequest) {
	return func(h *hostile, j *compactionv1.Job, r *compactionv1.CompleteRequest) {
		for i := range slices.Backward(r.Outputs) {
			entries := h.entries(j, r, i)
			if changed, ok := change(slices.Clone(entries)); ok {
				h.rewrite(j, r, i, changed)
				return
			}
		}
		require.Fail(h, "no output has what is to be changed")
	}
}

// oneRecord changes the first record that suits.
func oneRecord(change func(r *causal.Record) bool) func([]entry) ([]entry, bool) {
	return func(entries []entry) ([]entry, bool) {
		for i := range entries {
			if change(&entries[i].record) {
				return entries, true
			}
		}
		return nil, false
	}
}

func deleted(r causal.Record) bool { return len(r.Siblings) == 1 && r.Siblings[0].Tombstone }

// withoutATombstone drops the first tombstone.
func withoutATombstone(entries []entry) ([]entry, bool) {
	i := slices.IndexFunc(entries, func(e entry) bool { return deleted(e.record) })
	if i < 0 {
		return nil, false
	}
	return slices.Delete(entries, i, i+1), true
}

var misbehaviours = []misbehaviour{
	// What it says.
	{"another digest", "DIGEST", said(func(r *compactionv1.CompleteRequest) { r.Outputs[0].Digest++ })},
	{"another size", "SIZE", said(func(r *compactionv1.CompleteRequest) { r.Outputs[0].SizeBytes++ })},
	{"other bounds", "BOUNDS", said(func(r *compactionv1.CompleteRequest) {
		r.Outputs[0].Smallest = slices.Concat([]byte("a"), r.Outputs[0].Smallest)
	})},
	{"other sequences", "SEQUENCE", said(func(r *compactionv1.CompleteRequest) { r.Outputs[0].MinSequence++ })},
	{"an output less", "FILES", said(func(r *compactionv1.CompleteRequest) { r.Outputs = r.Outputs[1:] })},
	{"an output twice", "COUNT", said(func(r *compactionv1.CompleteRequest) { r.Outputs[1] = r.Outputs[0] })},
	{"an output that is none", invalid, said(func(r *compactionv1.CompleteRequest) { r.Outputs[0].Index = -1 })},
	{"an output beyond those that were made", invalid, said(func(r *compactionv1.CompleteRequest) { r.Outputs[len(r.Outputs)-1].Index = 1 << 30 })},
	{"too many outputs", invalid, said(func(r *compactionv1.CompleteRequest) {
		for len(r.Outputs) <= compact.MaxOutputs {
			r.Outputs = append(r.Outputs, r.Outputs[0])
		}
	})},
	{"bounds that are no key", invalid, said(func(r *compactionv1.CompleteRequest) { r.Outputs[0].Smallest = []byte("../x") })},
	{"entries that vanish", "CONSERVATION", said(func(r *compactionv1.CompleteRequest) {
		r.Stats.EntriesIn--
		r.Stats.EntriesOut--
	})},
	{"counts of something else", "CONTENT", said(func(r *compactionv1.CompleteRequest) {
		r.Stats.Joined, r.Stats.Shadowed = r.Stats.Shadowed, r.Stats.Joined
	})},
	{"damaged inputs, and done all the same", "CORRUPT", func(_ *hostile, j *compactionv1.Job, r *compactionv1.CompleteRequest) {
		r.Corrupt = []*compactionv1.CorruptInput{{Number: j.GetInputs()[0].GetNumber(), Reason: "it says so"}}
	}},

	// The files.
	{"a truncated file", "SIZE", func(h *hostile, j *compactionv1.Job, r *compactionv1.CompleteRequest) {
		require.NoError(h, os.Truncate(h.output(j.GetKey(), int(r.Outputs[0].Index)), r.Outputs[0].SizeBytes/2))
	}},
	{"a truncated file, and said so", "CORRUPT", func(h *hostile, j *compactionv1.Job, r *compactionv1.CompleteRequest) {
		r.Outputs[0].SizeBytes /= 2
		require.NoError(h, os.Truncate(h.output(j.GetKey(), int(r.Outputs[0].Index)), r.Outputs[0].SizeBytes))
	}},
	{"an empty file", "SIZE", spoilt(func(h *hostile, file string) { require.NoError(h, os.Truncate(file, 0)) })},
	{"garbage of the right size", "CORRUPT", func(h *hostile, j *compactionv1.Job, r *compactionv1.CompleteRequest) {
		file := h.output(j.GetKey(), int(r.Outputs[0].Index))
		require.NoError(h, os.Truncate(file, 0))
		require.NoError(h, os.Truncate(file, r.Outputs[0].SizeBytes))
	}},
	{"three gigabytes", "CORRUPT", func(h *hostile, j *compactionv1.Job, r *compactionv1.CompleteRequest) {
		r.Outputs[0].SizeBytes = 3 << 30
		require.NoError(h, os.Truncate(h.output(j.GetKey(), int(r.Outputs[0].Index)), r.Outputs[0].SizeBytes))
	}},
	{"a flipped bit in a record", "CORRUPT", spoilt(func(h *hostile, file string) { h.flip(file, 5000) })},
	{"a flipped bit in the filter and index", "CORRUPT", spoilt(func(h *hostile, file string) { h.flip(file, -300) })},
	{"an input in the place of an output", "BOUNDS", func(h *hostile, j *compactionv1.Job, r *compactionv1.CompleteRequest) {
		in := j.GetInputs()[0]
		b, err := os.ReadFile(h.table(in.GetNumber()))
		require.NoError(h, err)
		require.NoError(h, os.WriteFile(h.output(j.GetKey(), int(r.Outputs[0].Index)), b, 0o660))
		r.Outputs[0].SizeBytes, r.Outputs[0].Digest = int64(len(b)), in.GetDigest()
	}},
	{"a link to an input", "FILES", func(h *hostile, j *compactionv1.Job, r *compactionv1.CompleteRequest) {
		instead(func(h *hostile, file string) {
			require.NoError(h, os.Symlink(h.table(j.GetInputs()[0].GetNumber()), file))
		})(h, j, r)
	}},
	{"a second name of an input", "SIZE", func(h *hostile, j *compactionv1.Job, r *compactionv1.CompleteRequest) {
		instead(func(h *hostile, file string) {
			require.NoError(h, os.Link(h.table(j.GetInputs()[0].GetNumber()), file))
		})(h, j, r)
	}},
	{"a pipe", "FILES", instead(func(h *hostile, file string) { require.NoError(h, unix.Mkfifo(file, 0o660)) })},
	{"a socket", "FILES", instead(func(h *hostile, file string) { require.NoError(h, unix.Mknod(file, unix.S_IFSOCK|0o660, 0)) })},
	{"a directory", "FILES", instead(func(h *hostile, file string) { require.NoError(h, os.Mkdir(file, 0o770)) })},
	{"no file", "FILES", instead(func(*hostile, string) {})},
	{"a file more", "FILES", spoilt(func(h *hostile, file string) {
		require.NoError(h, os.Chmod(filepath.Dir(file), 0o770))
		require.NoError(h, os.WriteFile(filepath.Join(filepath.Dir(file), "0099.sst"), nil, 0o660))
	})},
	{"an output still open", "STILL_OPEN", spoilt(func(h *hostile, file string) {
		f, err := os.OpenFile(file, os.O_RDWR, 0)
		require.NoError(h, err)
		h.Cleanup(func() { _ = f.Close() })
	})},

	// Tables without a flaw that hold something else.
	{"a key eaten", "CONTENT", written(func(e []entry) ([]entry, bool) { return slices.Delete(e, len(e)/2, len(e)/2+1), true })},
	{"another value", "CONTENT", written(oneRecord(func(r *causal.Record) bool {
		if len(r.Siblings) != 1 || r.Siblings[0].Tombstone {
			return false
		}
		r.Siblings[0].Value = append(bytes.Clone(r.Siblings[0].Value), '!')
		return true
	}))},
	{"a key brought back", "CONTENT", written(oneRecord(func(r *causal.Record) bool {
		if !deleted(*r) {
			return false
		}
		r.Siblings[0].Tombstone, r.Siblings[0].Value = false, []byte("back")
		return true
	}))},
	{"a sibling dropped", "CONTENT", written(oneRecord(func(r *causal.Record) bool {
		if len(r.Siblings) < 2 {
			return false
		}
		r.Siblings = r.Siblings[:1]
		return true
	}))},
	{"another clock", "CONTENT", written(oneRecord(func(r *causal.Record) bool { r.Siblings[0].Dot.Counter += 1000; return true }))},
	{"a later time", "CONTENT", written(oneRecord(func(r *causal.Record) bool { r.Siblings[0].Timestamp += 1 << 40; return true }))},
	{"a tombstone that went too early", "CONTENT", func(h *hostile, j *compactionv1.Job, r *compactionv1.CompleteRequest) {
		written(withoutATombstone)(h, j, r)
		r.Stats.Shadowed--
		r.Stats.Collected++
	}},
	{"an entry from the future", "SEQUENCE", written(func(e []entry) ([]entry, bool) {
		e[1].key = ikey.Make(e[1].key.User, ikey.MaxSeq-1, ikey.KindSet)
		return e, true
	})},
	{"an entry of an older time", "CONTENT", written(func(e []entry) ([]entry, bool) {
		if e[1].key.Trailer.Seq() == e[0].key.Trailer.Seq() {
			return nil, false
		}
		e[1].key = ikey.Make(e[1].key.User, e[0].key.Trailer.Seq(), ikey.KindSet)
		return e, true
	})},
	{"a key of nobody", "BOUNDS", written(func(e []entry) ([]entry, bool) {
		last := e[len(e)-1]
		last.key.User = append(bytes.Clone(last.key.User), "zzz"...)
		return append(e[:len(e)-1], last), true
	})},
	{"outputs in the wrong order", "ORDER", func(h *hostile, j *compactionv1.Job, r *compactionv1.CompleteRequest) {
		first, second := h.entries(j, r, 0), h.entries(j, r, 1)
		h.rewrite(j, r, 0, second)
		h.rewrite(j, r, 1, first)
	}},
	{"outputs that overlap", "ORDER", func(h *hostile, j *compactionv1.Job, r *compactionv1.CompleteRequest) {
		first, second := h.entries(j, r, 0), h.entries(j, r, 1)
		h.rewrite(j, r, 1, append(slices.Clone(first[len(first)-1:]), second[1:]...))
	}},
	{"a format of its own", "CORRUPT", spoilt(func(h *hostile, file string) { h.flip(file, 0) })},
}

func (h *hostile) table(number uint64) string {
	return filepath.Join(h.pod.DataDir, compact.TableDir, compact.TableName(number))
}

// flip changes one bit of a file; a place below 0 counts from its end.
func (h *hostile) flip(file string, at int64) {
	h.Helper()
	b, err := os.ReadFile(file)
	require.NoError(h, err)
	if at < 0 {
		at += int64(len(b))
	}
	b[at] ^= 4
	require.NoError(h, os.WriteFile(file, b, 0o660))
}

// entries reads the i-th output of a report.
func (h *hostile) entries(j *compactionv1.Job, r *compactionv1.CompleteRequest, i int) []entry {
	h.Helper()
	f, err := vfs.OS.Open(h.output(j.GetKey(), int(r.Outputs[i].Index)))
	require.NoError(h, err)
	table, err := sstable.Open(f, sstable.ReaderOptions{})
	require.NoError(h, err)
	defer func() { require.NoError(h, table.Close()) }()
	it := table.NewIter()
	var all []entry
	for ok := it.First(); ok; ok = it.Next() {
		record, err := causal.Decode(bytes.Clone(it.Value()))
		require.NoError(h, err)
		all = append(all, entry{ikey.Key{User: bytes.Clone(it.Key().User), Trailer: it.Key().Trailer}, record})
	}
	require.NoError(h, it.Close())
	require.Greater(h, len(all), 3)
	return all
}

// rewrite writes entries over the i-th output and makes the report fit, as far as a worker can.
func (h *hostile) rewrite(j *compactionv1.Job, r *compactionv1.CompleteRequest, i int, entries []entry) {
	h.Helper()
	index := int(r.Outputs[i].Index)
	f, err := vfs.OS.OpenReadWrite(h.output(j.GetKey(), index))
	require.NoError(h, err)
	require.NoError(h, f.Truncate(0))
	w := sstable.NewWriter(f, sstable.WriterOptions{FilterBitsPerKey: 10, Inspect: causal.Inspect})
	for _, e := range entries {
		require.NoError(h, w.Add(e.key, e.record.Encode(nil)))
	}
	meta, err := w.Finish()
	require.NoError(h, err)
	require.NoError(h, f.Close())
	before := r.Outputs[i].Entries
	out, err := wire.OutputsToProto([]compact.Output{{Index: index, Meta: meta}})
	require.NoError(h, err)
	r.Outputs[i] = out[0]
	r.Stats.EntriesOut += meta.Entries - before
	r.Stats.Shadowed -= meta.Entries - before
}

// shop is what the clients of a node have written, again and again over the same keys.
type shop struct {
	*testing.T
	c      *client.Client
	round  int
	values map[string][]byte // nil: deleted
}

const (
	shopKeys  = 1300 // of 4 KiB: five memtables
	twoValues = "two values"
)

// open writes all keys once more, deletes some, and leaves one key with two values.
func (s *shop) open() {
	s.Helper()
	s.round++
	var b client.Batch
	for i := range shopKeys {
		n := 4 * (s.round*shopKeys + i)
		value := slices.Concat(valueOf(n), valueOf(n+1), valueOf(n+2), valueOf(n+3))
		b.Put(spread(i), value)
		s.values[spread(i)] = value
		if b.Len() == 100 {
			require.NoError(s, s.c.Write(s.Context(), &b))
			b.Reset()
		}
	}
	for i := s.round % 40; i < shopKeys; i += 40 {
		b.Delete(spread(i))
		s.values[spread(i)] = nil
	}
	require.NoError(s, s.c.Write(s.Context(), &b))
	_, err := s.c.Put(s.Context(), twoValues, []byte("one"))
	require.NoError(s, err)
	_, err = s.c.Put(s.Context(), twoValues, []byte("two"), client.WithContext(nil))
	require.NoError(s, err)
	_, err = s.c.Admin().Flush(s.Context(), &adminv1.FlushRequest{})
	require.NoError(s, err)
}

// requireSame reads everything, and that the node still takes writes.
func (s *shop) requireSame(t *testing.T) {
	t.Helper()
	there := map[string]bool{}
	for rec, err := range s.c.Scan(t.Context(), "", "") {
		require.NoError(t, err)
		if rec.Key == twoValues {
			require.Len(t, rec.Siblings, 2)
			continue
		}
		value, live := client.Winner(rec)
		if !live {
			continue
		}
		there[rec.Key] = true
		require.True(t, bytes.Equal(s.values[rec.Key], value), "%s has another value", rec.Key)
	}
	for key, value := range s.values {
		require.Equal(t, value != nil, there[key], key)
	}
	s.values["served"] = fmt.Append(nil, t.Name())
	_, err := s.c.Put(t.Context(), "served", s.values["served"])
	require.NoError(t, err)
}

func TestMisbehavingCompactorsChangeNothing(t *testing.T) {
	// The compactor is another process, of another version, with bugs and a memory of its own: nothing that it
	// says or does may change what the node answers, and the next one that behaves gets the work done.
	pods, log := podtest.Start(t, localpod.Options{Env: append([]string{"PAIRDB_COMPACTION_AUDIT_PERCENT=100"}, small...), NoCompactor: true, NoMigrator: true, NoHealthAgent: true})
	pod := pods.All()[0]
	s := &shop{T: t, c: podtest.Client(t, pod.Addr, client.Options{}), values: map[string][]byte{}}
	socket := newHostile(t, pod)
	require.GreaterOrEqual(t, len(misbehaviours), 25)
	for _, m := range misbehaviours {
		t.Run(m.name, func(t *testing.T) {
			h := &hostile{T: t, pod: pod, client: socket.client}
			s.open()
			j := h.lease()
			before := status(t, s.c).GetCompaction()
			honest := h.work(j)
			require.Greater(t, len(honest.GetOutputs()), 1)
			r := proto.CloneOf(honest)
			m.do(h, j, r)
			v, err := h.client.Complete(t.Context(), r)
			if m.code == invalid {
				require.Equal(t, codes.InvalidArgument, grpcstatus.Code(err), "%v", err)
				s.requireSame(t)
				require.Equal(t, installed, h.complete(honest).GetVerdict(), "the attempt is still good")
				s.requireSame(t)
				return
			}
			require.NoError(t, err)
			if v.GetVerdict() == installed && m.code == "STILL_OPEN" {
				require.NotEqual(t, "true", os.Getenv("CI"), "CI must run where files have leases")
				t.Skip("the file system of temporary directories has no leases: the output was copied")
			}
			require.Equal(t, rejected, v.GetVerdict())
			require.True(t, strings.HasPrefix(v.GetReason(), m.code+": "), "%s", v.GetReason())
			podtest.Eventually(t, 30*time.Second, "the node says why", func() bool { return strings.Contains(log.String(), m.code+": ") })
			require.NoDirExists(t, filepath.Dir(h.output(j.GetKey(), 1)), "the attempt is wiped")
			require.Equal(t, fenced, h.complete(honest).GetVerdict(), "its key is of no use any more")
			after := status(t, s.c).GetCompaction()
			require.Equal(t, before.GetRejected()+1, after.GetRejected())
			require.Equal(t, before.GetInstalledExternal(), after.GetInstalledExternal())
			require.Zero(t, after.GetQuarantined())
			s.requireSame(t)

			again := h.lease()
			require.Equal(t, j.GetKey().GetId(), again.GetKey().GetId())
			good := h.work(again)
			require.Equal(t, installed, h.complete(good).GetVerdict(), "one that behaves")
			require.Equal(t, alreadyInstalled, h.complete(good).GetVerdict())
			s.requireSame(t)
		})
	}
	verify, err := s.c.Admin().Verify(t.Context(), &adminv1.VerifyRequest{})
	require.NoError(t, err)
	for finished := false; !finished; {
		p, err := verify.Recv()
		require.NoError(t, err)
		require.Empty(t, p.GetCorrupt())
		finished = p.GetFinished()
	}
	require.NoError(t, pod.Node.Kill())
	require.NoError(t, pods.Ready(t.Context()))
	s.requireSame(t)
}

func TestFloodOfCallsTakesNothingFromClients(t *testing.T) {
	// A worker in a loop, with keys that are nobody's.
	pods, _ := podtest.Start(t, localpod.Options{Env: small, NoCompactor: true, NoMigrator: true, NoHealthAgent: true})
	pod := pods.All()[0]
	s := &shop{T: t, c: podtest.Client(t, pod.Addr, client.Options{}), values: map[string][]byte{}}
	s.open()
	h := newHostile(t, pod)
	j := h.lease()
	work := h.work(j)
	before := status(t, s.c).GetCompaction()

	var flood sync.WaitGroup
	for i := range 16 {
		flood.Go(func() {
			for n := range 200 {
				key := &compactionv1.JobKey{Session: j.Key.Session, Id: j.Key.Id, Epoch: j.Key.Epoch}
				switch (i + n) % 4 {
				case 0:
					key.Session++
				case 1:
					key.Id += uint64(n + 1)
				case 2:
					key.Epoch++
				case 3:
					key.Epoch = 0
				}
				v, err := h.client.Complete(t.Context(), &compactionv1.CompleteRequest{Key: key, Outputs: work.Outputs, Stats: work.Stats})
				if err != nil || v.GetVerdict() != fenced {
					t.Errorf("a key of nobody: %v %v", v, err)
				}
				b, err := h.client.Heartbeat(t.Context(), &compactionv1.HeartbeatRequest{Key: key, DoneBytes: 1 << 62})
				if err != nil || b.GetVerdict() != compactionv1.HeartbeatResponse_VERDICT_STOP {
					t.Errorf("a key of nobody: %v %v", b, err)
				}
				_, err = h.client.Abandon(t.Context(), &compactionv1.AbandonRequest{Key: key, Reason: compactionv1.AbandonRequest_REASON_CORRUPT_INPUT})
				if err != nil {
					t.Errorf("abandon: %v", err)
				}
			}
		})
	}
	for range 20 {
		s.requireSame(t)
	}
	flood.Wait()
	after := status(t, s.c).GetCompaction()
	require.Equal(t, before.GetInstalledExternal(), after.GetInstalledExternal())
	require.Equal(t, before.GetRejected(), after.GetRejected())

	// One report from many at once is installed once.
	verdicts := make(chan compactionv1.CompleteResponse_Verdict, 16)
	for range cap(verdicts) {
		flood.Go(func() {
			v, err := h.client.Complete(t.Context(), work)
			if err != nil {
				t.Errorf("complete: %v", err)
			}
			verdicts <- v.GetVerdict()
		})
	}
	flood.Wait()
	close(verdicts)
	count := map[compactionv1.CompleteResponse_Verdict]int{}
	for v := range verdicts {
		count[v]++
	}
	require.Equal(t, 1, count[installed])
	require.Equal(t, cap(verdicts)-1, count[alreadyInstalled])
	s.requireSame(t)
}

func TestDamageThatIsNoneIsNotBelieved(t *testing.T) {
	// A worker with bad memory must not have healthy tables set aside.
	pods, _ := podtest.Start(t, localpod.Options{Env: small, NoCompactor: true, NoMigrator: true, NoHealthAgent: true})
	pod := pods.All()[0]
	s := &shop{T: t, c: podtest.Client(t, pod.Addr, client.Options{}), values: map[string][]byte{}}
	s.open()
	h := newHostile(t, pod)
	j := h.lease()
	claim := &compactionv1.AbandonRequest{Key: j.Key, Reason: compactionv1.AbandonRequest_REASON_CORRUPT_INPUT, Detail: "bad block"}
	for _, in := range j.GetInputs() {
		claim.Corrupt = append(claim.Corrupt, &compactionv1.CorruptInput{Number: in.GetNumber(), Reason: "bad block"})
	}
	_, err := h.client.Abandon(t.Context(), claim)
	require.NoError(t, err)
	require.Equal(t, installed, h.complete(h.work(h.lease())).GetVerdict())
	require.Empty(t, status(t, s.c).GetQuarantined())
	s.requireSame(t)
}

func TestCompactorOfAnotherFormatGetsNoWork(t *testing.T) {
	pods, _ := podtest.Start(t, localpod.Options{Env: small, NoCompactor: true, NoMigrator: true, NoHealthAgent: true})
	pod := pods.All()[0]
	s := &shop{T: t, c: podtest.Client(t, pod.Addr, client.Options{}), values: map[string][]byte{}}
	s.open()
	h := newHostile(t, pod)
	podtest.Eventually(t, 20*time.Second, "there is work", func() bool { return len(status(t, s.c).GetJobs()) > 0 })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	r, err := h.client.Lease(ctx, &compactionv1.LeaseRequest{Worker: "w", FreeSlots: 1, TotalSlots: 1, Formats: []uint32{99}})
	if err == nil {
		require.Empty(t, r.GetJobs())
	}
	require.Equal(t, installed, h.complete(h.work(h.lease())).GetVerdict())
	s.requireSame(t)
}
