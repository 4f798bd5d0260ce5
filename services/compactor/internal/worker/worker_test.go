package worker

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/wire"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
)

func TestWorkerMergesAndReportsClosedFiles(t *testing.T) {
	// An output that is still open when the report arrives is refused.
	inPod(t, 2, nil, func(t *testing.T, p *pod) {
		sealed := 0
		p.node.onComplete = func(r *compactionv1.CompleteRequest) (*compactionv1.CompleteResponse, error) {
			for _, o := range r.GetOutputs() {
				f, err := p.fs.OpenForeign(path.Join(testDir, compact.StagingDir, "000001.e1", compact.OutputName(int(o.GetIndex()))), true)
				require.NoError(t, err)
				table, err := sstable.Open(f, sstable.ReaderOptions{FileNum: 1})
				require.NoError(t, err)
				require.NoError(t, table.Verify(t.Context(), func(int64) {}))
				require.Equal(t, o.GetDigest(), table.Meta().Digest)
				require.Equal(t, o.GetEntries(), table.Meta().Entries)
				require.NoError(t, table.Close())
				sealed++
			}
			return &compactionv1.CompleteResponse{Verdict: compactionv1.CompleteResponse_VERDICT_INSTALLED}, nil
		}
		p.node.give(p.simple(1, 500))
		synctest.Wait()
		require.Len(t, p.node.completes, 1)
		require.Equal(t, 1, sealed)
		s := p.node.completes[0].GetStats()
		require.Equal(t, uint64(1000), s.GetEntriesIn())
		require.Equal(t, uint64(500), s.GetEntriesOut())
		require.Equal(t, uint64(500), s.GetShadowed())
		require.Empty(t, p.node.abandons)
		require.Equal(t, 1.0, testutil.ToFloat64(p.w.o.Metrics.jobs.WithLabelValues("merge", "installed")))
		require.Zero(t, testutil.ToFloat64(p.w.o.Metrics.running))
		require.Empty(t, p.w.Unreachable())
		require.Equal(t, int32(2), p.node.leases[0].GetTotalSlots())
		require.Equal(t, Formats, p.node.leases[0].GetFormats())
	})
}

// slow is a file system whose Open waits until the gate opens.
type slow struct {
	vfs.FS
	gate chan struct{}
	mu   sync.Mutex
	open int
	max  int
}

func (s *slow) Open(name string) (vfs.File, error) {
	s.mu.Lock()
	s.open++
	s.max = max(s.max, s.open)
	s.mu.Unlock()
	<-s.gate
	s.mu.Lock()
	s.open--
	s.mu.Unlock()
	return s.FS.Open(name)
}

// slowly makes the inputs slow.
func slowly(s *slow) func(*Options) {
	return func(o *Options) {
		s.gate = make(chan struct{}) // in the bubble of the test
		s.FS = o.FS
		o.FS = s
	}
}

func TestNoMoreJobsThanSlots(t *testing.T) {
	var s slow
	inPod(t, 3, slowly(&s), func(t *testing.T, p *pod) {
		for id := range uint64(10) {
			p.node.give(p.simple(id+1, 5))
		}
		synctest.Wait()
		require.Equal(t, 3, s.max)
		require.Equal(t, 7, len(p.node.queue))
		require.Zero(t, p.node.polling, "no poll without a free slot")
		close(s.gate)
		synctest.Wait()
		require.Equal(t, 3, s.max)
		require.Len(t, p.node.completes, 10)
		require.Equal(t, 1, p.node.polling)
	})
}

func TestHeartbeatsGoOnWhileTheDiskHangs(t *testing.T) {
	// A heartbeat that waits for a read makes a slow disk look like a dead worker.
	var s slow
	inPod(t, 1, slowly(&s), func(t *testing.T, p *pod) {
		p.node.give(p.simple(1, 5))
		time.Sleep(61 * time.Second)
		synctest.Wait()
		require.Len(t, p.node.heartbeats, 12)
		require.Equal(t, 12.0, testutil.ToFloat64(p.w.o.Metrics.heartbeats.WithLabelValues("continue")))
		close(s.gate)
		synctest.Wait()
		require.Len(t, p.node.completes, 1)
	})
}

func TestWorkerObeysStop(t *testing.T) {
	// The job is somebody else's now: every byte more is wasted, every report would be a lie.
	inPod(t, 1, nil, func(t *testing.T, p *pod) {
		j := p.simple(1, 20_000)
		j.MaxBytesPerSecond = 64 << 10
		p.node.onHeartbeat = func(r *compactionv1.HeartbeatRequest) (*compactionv1.HeartbeatResponse, error) {
			if r.GetDoneBytes() == 0 {
				return nil, status.Error(codes.Internal, "no progress after five seconds")
			}
			return &compactionv1.HeartbeatResponse{Verdict: compactionv1.HeartbeatResponse_VERDICT_STOP, Reason: "fenced"}, nil
		}
		p.node.give(j)
		time.Sleep(6 * time.Second)
		synctest.Wait()
		require.Equal(t, 1, p.node.polling, "the slot is free again")
		require.Empty(t, p.node.completes)
		require.Empty(t, p.node.abandons)
		for i := 1; i <= 4; i++ { // nothing is held open, nothing was removed
			f, err := p.fs.OpenForeign(path.Join(testDir, compact.StagingDir, "000001.e1", compact.OutputName(i)), true)
			require.NoError(t, err)
			require.NoError(t, f.Close())
		}
		m := p.w.o.Metrics
		require.Equal(t, 1.0, testutil.ToFloat64(m.jobs.WithLabelValues("merge", "stopped")))
		require.Equal(t, 1.0, testutil.ToFloat64(m.heartbeats.WithLabelValues("stop")))
		require.Equal(t, 1.0, testutil.ToFloat64(m.leases))
		require.Equal(t, 1.0, testutil.ToFloat64(m.polls.WithLabelValues("jobs")))
		require.Positive(t, testutil.ToFloat64(m.throttled), "the rate was in the way")
	})
}

func TestRateIsKeptAndChangedByHeartbeats(t *testing.T) {
	inPod(t, 1, nil, func(t *testing.T, p *pod) {
		j := p.simple(1, 20_000)
		bytes := j.GetInputs()[0].GetSizeBytes() + j.GetInputs()[1].GetSizeBytes()
		const rate = 256 << 10
		j.MaxBytesPerSecond = rate
		p.node.onHeartbeat = func(*compactionv1.HeartbeatRequest) (*compactionv1.HeartbeatResponse, error) {
			return &compactionv1.HeartbeatResponse{Verdict: compactionv1.HeartbeatResponse_VERDICT_CONTINUE, MaxBytesPerSecond: rate}, nil
		}
		done := make(chan time.Time, 1)
		p.node.onComplete = func(*compactionv1.CompleteRequest) (*compactionv1.CompleteResponse, error) {
			done <- time.Now()
			return &compactionv1.CompleteResponse{Verdict: compactionv1.CompleteResponse_VERDICT_INSTALLED}, nil
		}
		start := time.Now()
		p.node.give(j)
		took := (<-done).Sub(start)
		least := time.Duration((bytes-burstBytes)/rate) * time.Second
		require.GreaterOrEqual(t, took, least)
		require.Less(t, took, 4*least+10*time.Second)
		synctest.Wait()

		// Without a limit from the first heartbeat on, the rest takes no (virtual) time.
		p.node.onHeartbeat = nil
		j = p.simple(2, 20_000)
		j.MaxBytesPerSecond = 1 << 10
		start = time.Now()
		p.node.give(j)
		require.LessOrEqual(t, (<-done).Sub(start), 7*time.Second)
	})
}

func TestLostNodeStopsTheAttemptAfterALease(t *testing.T) {
	// A node that restarted has given the job to somebody else; a worker that goes on wastes the disk.
	inPod(t, 1, nil, func(t *testing.T, p *pod) {
		j := p.simple(1, 20_000)
		j.MaxBytesPerSecond = 1 << 10
		p.node.give(j)
		time.Sleep(time.Second)
		p.stopNode()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		require.NotEmpty(t, p.w.Unreachable())
		require.Equal(t, 1.0, testutil.ToFloat64(p.w.o.Metrics.jobs.WithLabelValues("merge", "stopped")))
		require.Zero(t, testutil.ToFloat64(p.w.o.Metrics.connected))
		require.Positive(t, testutil.ToFloat64(p.w.o.Metrics.polls.WithLabelValues("error")))
		require.Positive(t, testutil.ToFloat64(p.w.o.Metrics.heartbeats.WithLabelValues("error")))

		p.startNode()
		time.Sleep(5 * time.Minute) // the connection's own back-off is two minutes at most
		p.node.give(p.simple(2, 10))
		synctest.Wait()
		require.Len(t, p.node.completes, 1)
		require.Empty(t, p.w.Unreachable())
	})
}

func TestReportIsRepeatedUntilThereIsAVerdict(t *testing.T) {
	// The answer got lost, or the node restarts: only it knows whether the report was taken.
	for _, last := range []compactionv1.CompleteResponse_Verdict{
		compactionv1.CompleteResponse_VERDICT_ALREADY_INSTALLED, compactionv1.CompleteResponse_VERDICT_FENCED,
		compactionv1.CompleteResponse_VERDICT_REJECTED, compactionv1.CompleteResponse_VERDICT_UNSPECIFIED,
	} {
		inPod(t, 1, nil, func(t *testing.T, p *pod) {
			n := 0
			p.node.onComplete = func(*compactionv1.CompleteRequest) (*compactionv1.CompleteResponse, error) {
				if n++; n < 4 {
					return nil, status.Error(codes.Unavailable, "restarting")
				}
				return &compactionv1.CompleteResponse{Verdict: last, Reason: "so it is"}, nil
			}
			p.node.give(p.simple(1, 10))
			time.Sleep(10 * time.Second)
			synctest.Wait()
			require.Equal(t, 4, n)
			require.Equal(t, 1, p.node.polling)
			require.Empty(t, p.node.abandons)
		})
	}
}

func TestShutdownGivesJobsBack(t *testing.T) {
	// A rolling restart must cost no attempt and no lease's time.
	inPod(t, 2, nil, func(t *testing.T, p *pod) {
		for id := range uint64(2) {
			j := p.simple(id+1, 5000)
			j.MaxBytesPerSecond = 1 << 10
			p.node.give(j)
		}
		time.Sleep(time.Second)
		start := time.Now()
		p.stop()
		require.NoError(t, <-p.ended)
		require.Less(t, time.Since(start), time.Second)
		require.Len(t, p.node.abandons, 2)
		require.Equal(t, 2.0, testutil.ToFloat64(p.w.o.Metrics.abandons.WithLabelValues("shutdown")))
		for _, a := range p.node.abandons {
			require.Equal(t, compactionv1.AbandonRequest_REASON_SHUTDOWN, a.GetReason())
		}
	})
}

func TestShutdownEndsWithoutANode(t *testing.T) {
	inPod(t, 1, nil, func(t *testing.T, p *pod) {
		j := p.simple(1, 5000)
		j.MaxBytesPerSecond = 1 << 10
		p.node.give(j)
		time.Sleep(time.Second)
		p.stopNode()
		start := time.Now()
		p.stop()
		require.NoError(t, <-p.ended)
		require.LessOrEqual(t, time.Since(start), abandonTimeout)
	})
}

// faulty is a file system that fails where a test says.
type faulty struct {
	vfs.FS
	onWrite error
	onOpen  func(name string)
}

func (f *faulty) Open(name string) (vfs.File, error) {
	if f.onOpen != nil {
		f.onOpen(name)
	}
	return f.FS.Open(name)
}

func (f *faulty) OpenReadWrite(name string) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name)
	if err != nil {
		return nil, err
	}
	return faultyFile{file, f.onWrite}, nil
}

type faultyFile struct {
	vfs.File
	err error
}

func (f faultyFile) Write(b []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return f.File.Write(b)
}

func (f faultyFile) WriteAt(b []byte, off int64) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return f.File.WriteAt(b, off)
}

func TestFailuresAreNamedToTheNode(t *testing.T) {
	// Full disks are waited for, damaged inputs are looked at, everything else costs an attempt.
	for _, c := range []struct {
		name   string
		faulty faulty
		job    func(p *pod) *compactionv1.Job
		want   compactionv1.AbandonRequest_Reason
		damage []uint64
	}{
		{"full disk", faulty{onWrite: fmt.Errorf("write: %w", vfs.ErrNoSpace)}, nil, compactionv1.AbandonRequest_REASON_NO_SPACE, nil},
		{"broken disk", faulty{onWrite: errors.New("input/output error")}, nil, compactionv1.AbandonRequest_REASON_IO_ERROR, nil},
		{"panic", faulty{onOpen: func(string) { panic("a bug") }}, nil, compactionv1.AbandonRequest_REASON_IO_ERROR, nil},
		{"missing input", faulty{}, func(p *pod) *compactionv1.Job {
			j := p.simple(1, 10)
			j.Inputs[0].Number = 999
			return j
		}, compactionv1.AbandonRequest_REASON_IO_ERROR, nil},
		{"missing outputs", faulty{}, func(p *pod) *compactionv1.Job {
			j := p.simple(1, 10)
			require.NoError(p, p.fs.RemoveAll(path.Join(testDir, compact.StagingDir, "000001.e1")))
			return j
		}, compactionv1.AbandonRequest_REASON_IO_ERROR, nil},
		{"damaged input", faulty{}, func(p *pod) *compactionv1.Job {
			j := p.simple(1, 1000)
			name := path.Join(testDir, compact.TableDir, compact.TableName(11))
			damage(p, name)
			return j
		}, compactionv1.AbandonRequest_REASON_CORRUPT_INPUT, []uint64{11}},
		{"another table under the name", faulty{}, func(p *pod) *compactionv1.Job {
			j := p.simple(1, 10)
			j.Inputs[0].Digest++
			return j
		}, compactionv1.AbandonRequest_REASON_CORRUPT_INPUT, []uint64{12}},
		{"unknown kind", faulty{}, func(p *pod) *compactionv1.Job {
			j := p.simple(1, 10)
			j.Kind = 99
			return j
		}, compactionv1.AbandonRequest_REASON_UNSUPPORTED_FORMAT, nil},
		{"newer format", faulty{}, func(p *pod) *compactionv1.Job {
			j := p.simple(1, 10)
			j.Table.Format = 99
			return j
		}, compactionv1.AbandonRequest_REASON_UNSUPPORTED_FORMAT, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			inPod(t, 1, func(o *Options) { c.faulty.FS = o.FS; o.FS = &c.faulty }, func(t *testing.T, p *pod) {
				if c.job == nil {
					c.job = func(p *pod) *compactionv1.Job { return p.simple(1, 10) }
				}
				p.node.give(c.job(p))
				synctest.Wait()
				require.Empty(t, p.node.completes)
				require.Len(t, p.node.abandons, 1)
				a := p.node.abandons[0]
				require.Equal(t, c.want, a.GetReason(), a.GetDetail())
				require.NotEmpty(t, a.GetDetail())
				var damaged []uint64
				for _, d := range a.GetCorrupt() {
					damaged = append(damaged, d.GetNumber())
				}
				require.Equal(t, c.damage, damaged)

				// The worker goes on.
				c.faulty.onOpen, c.faulty.onWrite = nil, nil
				p.node.give(p.simple(2, 10))
				synctest.Wait()
				require.Len(t, p.node.completes, 1)
			})
		})
	}
}

func damage(p *pod, name string) {
	b := []byte{0xff, 0xee, 0xdd}
	// The table is 0440: what changes it is not a process.
	require.NoError(p, p.fs.Rename(name, name+".old"))
	old, err := p.fs.Open(name + ".old")
	require.NoError(p, err)
	info, err := old.Stat()
	require.NoError(p, err)
	content := make([]byte, info.Size())
	_, err = old.ReadAt(content, 0)
	require.NoError(p, err)
	require.NoError(p, old.Close())
	copy(content[100:], b)
	f, err := p.fs.Create(name, fs.FileMode(0o440))
	require.NoError(p, err)
	_, err = f.Write(content)
	require.NoError(p, err)
	require.NoError(p, f.Close())
}

func TestScrubReportsDamagedTables(t *testing.T) {
	inPod(t, 1, nil, func(t *testing.T, p *pod) {
		j := p.job(1, 1, p.table(1, 1000, 9), p.table(2, 1000, 9))
		j.Kind, j.MaxOutputs = compactionv1.JobKind_JOB_KIND_SCRUB, 0
		damage(p, path.Join(testDir, compact.TableDir, compact.TableName(2)))
		p.node.give(j)
		synctest.Wait()
		require.Len(t, p.node.completes, 1)
		require.Len(t, p.node.completes[0].GetCorrupt(), 1)
		require.Equal(t, uint64(2), p.node.completes[0].GetCorrupt()[0].GetNumber())
		require.LessOrEqual(t, len(p.node.completes[0].GetCorrupt()[0].GetReason()), wire.MaxReasonBytes)
	})
}

func TestWorkerThatMayNotAskEnds(t *testing.T) {
	// A wrong uid does not get better by asking again; the log would fill.
	for _, code := range []codes.Code{codes.PermissionDenied, codes.Unauthenticated, codes.InvalidArgument} {
		inPod(t, 1, func(o *Options) { o.Client = refusing{o.Client, code} }, func(t *testing.T, p *pod) {
			require.Equal(t, code, status.Code(errors.Unwrap(<-p.ended)))
		})
	}
}

func TestMoreJobsThanAskedForAreRefused(t *testing.T) {
	inPod(t, 1, func(o *Options) { o.Client = generous{o.Client} }, func(t *testing.T, p *pod) {
		time.Sleep(time.Minute)
		require.Contains(t, p.w.Unreachable(), "2 jobs for 1 slots")
		require.Empty(t, p.node.completes)
	})
}

func TestNodeCountsAsReachedBeforeThereIsWork(t *testing.T) {
	// A long poll says nothing for 20 s: a compactor that is idle would not become ready.
	inPod(t, 1, nil, func(t *testing.T, p *pod) {
		synctest.Wait()
		require.Equal(t, 1, p.node.polling)
		require.Empty(t, p.w.Unreachable())
	})
	// Where the table of users lets the worker lease and nothing else, it works all the same.
	inPod(t, 1, nil, func(t *testing.T, p *pod) {
		p.stopNode()
		synctest.Wait() // no call of the first node is under way
		p.node.stranger = status.Error(codes.PermissionDenied, "no")
		p.startNode()
		p.node.give(p.simple(1, 10))
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Len(t, p.node.completes, 1)
		require.Empty(t, p.w.Unreachable())
	})
}
