package engine

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/vfs"
)

// A quota that counts a neighbour's bytes refuses who is within it.
func TestApproximateBytesAreThoseOfTheRange(t *testing.T) {
	e := mustOpen(t, quietOptions(vfs.NewMem()))
	of := func(tenant string) int {
		t.Helper()
		start, end := ikey.TenantBounds(tenant)
		n, err := e.ApproximateBytes(start, end)
		require.NoError(t, err)
		return int(n)
	}
	require.Zero(t, of("a"))
	for level := range 2 {
		for i := range 200 {
			for _, tenant := range []string{"a", "b", "b2"} {
				put(t, e, fmt.Appendf(nil, "%s\x00%d%04d", tenant, level, i), strings.Repeat("v", 100))
			}
		}
		require.NoError(t, e.Flush(context.Background()))
		if level == 0 {
			require.NoError(t, e.Compact(context.Background(), nil, nil, nil))
		}
	}
	tables, err := e.Tables()
	require.NoError(t, err)
	total, levels := 0, map[int]bool{}
	for _, x := range tables {
		total, levels[x.Level] = total+int(x.Size), true
	}
	require.Len(t, levels, 2)
	for _, tenant := range []string{"a", "b", "b2"} {
		require.InDelta(t, total/3, of(tenant), float64(total)/10, tenant)
	}
	for _, nobody := range []string{"", "A", "b1", "c"} {
		require.LessOrEqual(t, of(nobody), 4<<10, nobody) // at most a block
	}
	require.NoError(t, e.Close())
	_, err = e.ApproximateBytes([]byte("a"), []byte("b"))
	require.ErrorIs(t, err, ErrClosed)
}
