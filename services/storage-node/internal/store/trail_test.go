package store

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/stages"
)

// passed lists the stages of a trail in the order in which they began.
func passed(t *testing.T, trail *stages.Trail) (out []stages.Stage) {
	t.Helper()
	var at time.Duration
	for s := range stages.Count {
		p := trail.Passed(s)
		if p.Times == 0 {
			continue
		}
		require.GreaterOrEqual(t, p.Began, at, "%s begins before the stage in front of it", s)
		at = p.Began
		out = append(out, s)
	}
	return out
}

// The stages of a write and a read are what an operator sees of them: each one must be there, and in the
// order in which it happens.
func TestRequestsLeaveTheirStages(t *testing.T) {
	e := openReal(t, vfs.NewMem(), 1<<20)
	defer func() { require.NoError(t, e.Close()) }()
	s, err := New(realEngine{e}, Options{NodeID: "n1"})
	require.NoError(t, err)
	var trail stages.Trail
	begin := func() { trail.Begin(time.Now()) }
	ctx := stages.With(t.Context(), &trail)

	begin()
	_, err = s.Write(ctx, WriteRequest{Tenant: "t", Key: "k", Value: []byte("v"), IdempotencyKey: "once"})
	require.NoError(t, err)
	write := []stages.Stage{stages.Limits, stages.Lock, stages.Join, stages.Queue, stages.Log, stages.Memtable, stages.Sync}
	require.Equal(t, write, passed(t, &trail))

	begin()
	_, err = s.Write(ctx, WriteRequest{Tenant: "t", Key: "k", Value: []byte("v"), IdempotencyKey: "once"})
	require.NoError(t, err)
	require.NotContains(t, passed(t, &trail), stages.Log, "a repeat writes nothing")

	begin()
	_, err = s.BatchWrite(ctx, BatchWriteRequest{Tenant: "t", Ops: []Op{{Kind: Put, Key: "a"}, {Kind: Put, Key: "b"}}})
	require.NoError(t, err)
	require.Equal(t, write, passed(t, &trail))
	require.EqualValues(t, 1, trail.Passed(stages.Log).Times)

	begin()
	r, err := s.Read(ctx, "t", "k", nil)
	require.NoError(t, err)
	require.Equal(t, "v", string(r.Value))
	require.Equal(t, []stages.Stage{stages.Limits, stages.Read}, passed(t, &trail))
	l := trail.Lookups()
	require.EqualValues(t, 1, l.Rows+l.Memtables+l.Tables)

	begin()
	_, err = s.BatchRead(ctx, "t", []string{"k", "a", "absent"})
	require.NoError(t, err)
	require.Equal(t, []stages.Stage{stages.Limits, stages.Read}, passed(t, &trail))

	begin()
	_, err = s.Read(ctx, "t", "", nil)
	require.Error(t, err)
	_, err = s.Write(ctx, WriteRequest{Tenant: "t"})
	require.Error(t, err)
	require.Empty(t, passed(t, &trail))
}

// Whoever looks at nothing must pay for nothing.
func TestReadWithoutATrailAllocatesAsBefore(t *testing.T) {
	e := openReal(t, vfs.NewMem(), 1<<20)
	defer func() { require.NoError(t, e.Close()) }()
	s, err := New(realEngine{e}, Options{NodeID: "n1"})
	require.NoError(t, err)
	_, err = s.Write(t.Context(), WriteRequest{Tenant: "t", Key: "k", Value: []byte("v")})
	require.NoError(t, err)
	buf := make([]byte, 0, 256)
	var trail stages.Trail
	trail.Begin(time.Now())
	watched := stages.With(t.Context(), &trail)
	read := func(traced bool) float64 {
		ctx := t.Context()
		if traced {
			ctx = watched
		}
		return testing.AllocsPerRun(200, func() {
			if _, err := s.Read(ctx, "t", "k", buf); err != nil {
				t.Error(err)
			}
		})
	}
	require.Equal(t, read(false), read(true), "a trail makes no garbage")
}
