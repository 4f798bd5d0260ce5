package server

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// More must never be in work than there are places, whoever gives up waiting meanwhile, and none may get
// lost.
func TestPlacesAreNeitherDoubledNorLost(t *testing.T) {
	const all = 10
	p := newPlaces(all)
	var inWork atomic.Int64
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(g)))
			for range 2000 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rng.IntN(50))*time.Microsecond)
				n, err := p.take(ctx, 1+rng.IntN(2*all))
				cancel()
				if err != nil {
					continue
				}
				if now := inWork.Add(int64(n)); now > all || n > all {
					t.Errorf("%d in work", now)
				}
				inWork.Add(-int64(n))
				p.give(n)
			}
		})
	}
	wg.Wait()
	require.Zero(t, p.taken)
	require.Empty(t, p.waiting)
	n, ok := p.try(all + 1)
	require.True(t, ok)
	require.Equal(t, all, n)
}
