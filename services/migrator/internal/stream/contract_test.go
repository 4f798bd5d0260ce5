package stream

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/causal"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
)

// old is a node that knows the established contract only.
type old struct {
	storagenodev1.UnimplementedStorageNodeServiceServer
	noRepair bool

	mu     sync.Mutex
	got    map[string]string // guarded by mu; key to what was called with which clock
	under  int               // guarded by mu
	most   int               // guarded by mu
	refuse string            // guarded by mu; of keys with this name
}

func (o *old) note(call, tenant, key string, value []byte, clock *storagenodev1.VectorClock) (bool, string) {
	o.mu.Lock()
	o.under++
	o.most = max(o.most, o.under)
	o.mu.Unlock()
	time.Sleep(time.Millisecond) // a sync
	o.mu.Lock()
	defer o.mu.Unlock()
	o.under--
	if key == o.refuse {
		return false, "disk full"
	}
	text := fmt.Sprintf("%s %s/%s=%s", call, tenant, key, value)
	for _, e := range clock.GetEntries() {
		text += fmt.Sprintf(" %s:%d", e.GetCoordinatorNodeId(), e.GetLogicalTimestamp())
	}
	o.got[key] = text
	return true, ""
}

func (o *old) Repair(_ context.Context, r *storagenodev1.RepairRequest) (*storagenodev1.RepairResponse, error) {
	if o.noRepair {
		return nil, status.Error(codes.Unimplemented, "")
	}
	ok, why := o.note("repair", r.GetTenantId(), r.GetKey(), r.GetValue(), r.GetVectorClock())
	return &storagenodev1.RepairResponse{Success: ok, ErrorMessage: why}, nil
}

func (o *old) Write(_ context.Context, r *storagenodev1.WriteRequest) (*storagenodev1.WriteResponse, error) {
	ok, why := o.note("write", r.GetTenantId(), r.GetKey(), r.GetValue(), r.GetVectorClock())
	return &storagenodev1.WriteResponse{Success: ok, ErrorMessage: why}, nil
}

func (o *old) Delete(_ context.Context, r *storagenodev1.DeleteRequest) (*storagenodev1.DeleteResponse, error) {
	ok, why := o.note("delete", r.GetTenantId(), r.GetKey(), nil, r.GetVectorClock())
	return &storagenodev1.DeleteResponse{Success: ok, ErrorMessage: why}, nil
}

func contract(t *testing.T, o *old, options Options) *Contract {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s, served := grpc.NewServer(), make(chan error, 1)
	storagenodev1.RegisterStorageNodeServiceServer(s, o)
	go func() { served <- s.Serve(l) }()
	conn, release, err := NewTargets().Dial(l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() {
		release()
		s.Stop()
		require.NoError(t, <-served)
	})
	c := OpenContract(t.Context(), storagenodev1.NewStorageNodeServiceClient(conn), options)
	t.Cleanup(c.Close)
	return c
}

// encoded adds a record.
func (r *Records) encoded(key string, s ...causal.Sibling) *Records {
	r.Append([]byte("t\x00"+key), causal.Record{Siblings: s}.Encode(nil))
	return r
}

// one returns a single record.
func one(key string, value []byte) *Records {
	var out Records
	out.Append([]byte(key), value)
	return &out
}

// A node that knows the established contract only must get values and deletions with their whole clocks,
// a few at a time, and a part counts when all of it was answered.
func TestContractSendsSiblingsWithTheirWholeClocks(t *testing.T) {
	value := causal.Sibling{Clock: causal.Clock{{Node: "a", Counter: 3}}, Dot: causal.Dot{Node: "b", Counter: 7}, Value: []byte("v"), Timestamp: 1}
	gone := causal.Sibling{Clock: causal.Clock{{Node: "a", Counter: 4}}, Tombstone: true, Timestamp: 2}
	for _, noRepair := range []bool{false, true} {
		o := &old{noRepair: noRepair, got: map[string]string{}}
		var acked []Mark
		c := contract(t, o, Options{Acked: func(m Mark) { acked = append(acked, m) }})
		part := new(Records).encoded("one", value).encoded("two", gone)
		for i := range 100 {
			part.encoded(fmt.Sprint("more-", i), value)
		}
		require.NoError(t, c.Send(t.Context(), part, Mark{Sequence: 9}))
		require.Equal(t, []Mark{{Sequence: 9, Records: 102, Bytes: part.Bytes()}}, acked)
		call := map[bool]string{false: "repair", true: "write"}[noRepair]
		require.Equal(t, call+" t/one=v a:3 b:7", o.got["one"])
		require.Equal(t, "delete t/two= a:4", o.got["two"])
		require.Len(t, o.got, 102)
		require.LessOrEqual(t, o.most, contractCalls)
		require.Greater(t, o.most, 1)
		require.NoError(t, c.Finish(t.Context()))
		require.NoError(t, c.Err())
	}
}

// An error in an answer is an error: taken for success, the record is lost. Damage is never sent on.
func TestContractCountsNothingThatWasRefused(t *testing.T) {
	value := causal.Sibling{Dot: causal.Dot{Node: "b", Counter: 7}, Value: []byte("v"), Timestamp: 1}
	o := &old{got: map[string]string{}, refuse: "bad"}
	c := contract(t, o, Options{Acked: func(Mark) { t.Error("acknowledged") }})
	err := c.Send(t.Context(), new(Records).encoded("good", value).encoded("bad", value), Mark{})
	require.ErrorIs(t, err, ErrContract)
	require.ErrorContains(t, err, "disk full")
	require.ErrorIs(t, c.Send(t.Context(), one("t\x00k", []byte("junk")), Mark{}), causal.ErrMalformed)
	require.Error(t, c.Send(t.Context(), one("no tenant", causal.Record{Siblings: []causal.Sibling{value}}.Encode(nil)), Mark{}))
	c.Close()
	require.ErrorIs(t, c.Send(t.Context(), new(Records).encoded("late", value), Mark{}), context.Canceled)
}
