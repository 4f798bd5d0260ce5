package nemesis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/integration/cluster"
	"github.com/pairdb/pairdb/libs/compact"
	"github.com/pairdb/pairdb/libs/sidecar"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/wire"
	compactionv1 "github.com/pairdb/pairdb/proto/pairdb/compaction/v1"
)

// Output is the path of an output of a job, in the data directory of its node.
func Output(dataDir string, k *compactionv1.JobKey, index int) string {
	return filepath.Join(dataDir, compact.StagingDir, compact.AttemptName(k.GetId(), k.GetEpoch()), compact.OutputName(index))
}

// Work does a merge as it should be done and returns the report.
func Work(ctx context.Context, dataDir string, j *compactionv1.Job) (*compactionv1.CompleteRequest, error) {
	g, err := wire.GrantFromProto(j)
	if err != nil {
		return nil, err
	}
	outs, stats, _, err := compact.Run(ctx, g.Job, compact.Env{
		OpenInput: func(in compact.Input) (vfs.File, error) {
			return vfs.OS.Open(filepath.Join(dataDir, compact.TableDir, compact.TableName(in.Num)))
		},
		OpenOutput: func(i int) (vfs.File, error) { return vfs.OS.OpenReadWrite(Output(dataDir, j.GetKey(), i)) },
	})
	if err != nil {
		return nil, err
	}
	ps, err := wire.OutputsToProto(outs)
	if err != nil {
		return nil, err
	}
	return &compactionv1.CompleteRequest{Key: wire.KeyToProto(g.Key), Outputs: ps, Stats: wire.StatsToProto(stats)}, nil
}

// errTrusted says that the node took what it must not take.
var errTrusted = errors.New("the node installed what a lying compactor reported")

// falsify changes a report, or what it is about, so that it must be refused.
func falsify(random *rand.Rand, dataDir string, r *compactionv1.CompleteRequest) (lie string, err error) {
	first := r.Outputs[0]
	switch random.IntN(4) {
	case 0:
		first.Digest++
		return "another digest", nil
	case 1:
		r.Outputs = r.Outputs[1:]
		return "an output less", nil
	case 2:
		r.Stats.EntriesIn--
		r.Stats.EntriesOut--
		return "entries that vanish", nil
	}
	return "a truncated file", os.Truncate(Output(dataDir, r.GetKey(), int(first.GetIndex())), first.GetSizeBytes()/2)
}

// lyingCompactor takes the place of the compactor and reports what is not so.
func lyingCompactor(s *scene) error {
	return s.replaceCompactor(func(ctx context.Context, c compactionv1.CompactionServiceClient, j *compactionv1.Job) error {
		r, err := Work(ctx, s.node.DataDir(), j)
		if err != nil || len(r.GetOutputs()) == 0 {
			return nil // the job, or the node, is gone; or nothing can be said that is not true
		}
		lie, err := falsify(s.random, s.node.DataDir(), r)
		if err != nil {
			return nil // the attempt is gone already
		}
		v, err := c.Complete(ctx, r)
		s.n.say("lying compactor of %s: %s: %s %v", s.node.Name(), lie, v.GetVerdict(), err)
		if err == nil && v.GetVerdict() == compactionv1.CompleteResponse_VERDICT_INSTALLED {
			return fmt.Errorf("%w: %s of job %v", errTrusted, lie, j.GetKey())
		}
		return nil
	})
}

// stalledCompactor takes the place of the compactor, and takes jobs that it never does.
func stalledCompactor(s *scene) error {
	return s.replaceCompactor(func(context.Context, compactionv1.CompactionServiceClient, *compactionv1.Job) error { return nil })
}

// replaceCompactor has do get the jobs of a node for a while.
func (s *scene) replaceCompactor(do func(context.Context, compactionv1.CompactionServiceClient, *compactionv1.Job) error) (err error) {
	real := s.node.Process(cluster.Compactor)
	real.Halt()
	defer func() { err = errors.Join(err, real.Start()) }()
	var conn *grpc.ClientConn
	if conn, err = sidecar.Dial(s.node.Socket()); err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(s.ctx, 3*s.hold) // merges are not there at any moment
	defer cancel()
	c := compactionv1.NewCompactionServiceClient(conn)
	for ctx.Err() == nil {
		r, err := c.Lease(ctx, &compactionv1.LeaseRequest{Worker: "nemesis", FreeSlots: 1, TotalSlots: 1, Formats: []uint32{1}})
		if err != nil {
			pause(ctx, 100*time.Millisecond) // the node is away
			continue
		}
		for _, j := range r.GetJobs() {
			if j.GetKind() != compactionv1.JobKind_JOB_KIND_MERGE {
				continue
			}
			if err := do(ctx, c, j); err != nil {
				return err
			}
		}
	}
	return nil
}
