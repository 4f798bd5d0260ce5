package ring_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"testing"

	"github.com/pairdb/pairdb/libs/ring"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// Danger: another hash than the coordinators' moves the wrong keys.
func TestTokenIsTheCoordinatorsHash(t *testing.T) {
	// printf 'shop:cart-1' | sha256sum
	sum := sha256.Sum256([]byte("shop:cart-1"))
	require.Equal(t, binary.BigEndian.Uint64(sum[:8]), ring.Token("shop", "cart-1"))
	require.Equal(t, ring.Token("shop", "cart-1"), ring.TokenOf(nil, []byte("shop"), []byte("cart-1")))
	require.Zero(t, testing.AllocsPerRun(100, func() { ring.Token("shop", "cart-1") }))
}

// Danger: a key at a boundary belongs to two ranges or to none.
func TestHashRangeIsHalfOpenAndWraps(t *testing.T) {
	const top = math.MaxUint64
	for _, c := range []struct {
		r    ring.HashRange
		tok  uint64
		want bool
	}{
		{ring.HashRange{Start: 10, End: 20}, 9, false},
		{ring.HashRange{Start: 10, End: 20}, 10, true},
		{ring.HashRange{Start: 10, End: 20}, 19, true},
		{ring.HashRange{Start: 10, End: 20}, 20, false},
		{ring.HashRange{Start: 20, End: 10}, 20, true},
		{ring.HashRange{Start: 20, End: 10}, top, true},
		{ring.HashRange{Start: 20, End: 10}, 0, true},
		{ring.HashRange{Start: 20, End: 10}, 9, true},
		{ring.HashRange{Start: 20, End: 10}, 10, false},
		{ring.HashRange{Start: 20, End: 10}, 19, false},
		{ring.HashRange{Start: 20, End: 0}, top, true},
		{ring.HashRange{Start: 20, End: 0}, 0, false},
		{ring.HashRange{}, 0, true},
		{ring.HashRange{Start: 7, End: 7}, 6, true},
		{ring.HashRange{Start: 7, End: 7}, top, true},
	} {
		require.Equal(t, c.want, c.r.Contains(c.tok), "%+v contains %d", c.r, c.tok)
	}
}

// Danger: cutting a range in two loses or doubles a token.
func TestCuttingARangeKeepsEveryTokenOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := ring.HashRange{Start: rapid.Uint64().Draw(t, "start"), End: rapid.Uint64().Draw(t, "end")}
		cut := rapid.Uint64().Draw(t, "cut")
		if !r.Contains(cut) || cut == r.Start {
			return
		}
		tok := rapid.Uint64().Draw(t, "token")
		n := 0
		for _, part := range []ring.HashRange{{Start: r.Start, End: cut}, {Start: cut, End: r.End}} {
			if part.Contains(tok) {
				n++
			}
		}
		require.Equal(t, r.Contains(tok), n == 1)
		require.LessOrEqual(t, n, 1)
	})
}

func ExampleHashRange_Contains() {
	r := ring.HashRange{Start: 1 << 63, End: 0}
	fmt.Println(r.Contains(1<<63), r.Contains(0))
	// Output: true false
}
