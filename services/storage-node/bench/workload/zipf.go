package workload

import "math"

// Theta is YCSB's constant: of a million keys, the most wanted hundred get a third of the requests.
const Theta = 0.99

// Zipfian draws numbers in [0, n) so that the k-th rank is drawn in proportion to 1/(k+1)^Theta. The
// algorithm is that of Gray et al., "Quickly generating billion-record synthetic databases" (1994),
// as YCSB uses it. It is immutable: a random source is brought to each draw.
type Zipfian struct {
	n                 float64
	alpha, zetan, eta float64
	second            float64 // below it in zetan: rank 1
}

// NewZipfian returns a distribution over n ranks; it takes n steps.
func NewZipfian(n uint64) *Zipfian {
	zeta := func(n uint64) (sum float64) {
		for i := uint64(1); i <= n; i++ {
			sum += math.Pow(float64(i), -Theta)
		}
		return sum
	}
	z := &Zipfian{n: float64(n), alpha: 1 / (1 - Theta), zetan: zeta(n), second: 1 + math.Pow(0.5, Theta)}
	z.eta = (1 - math.Pow(2/z.n, 1-Theta)) / (1 - zeta(2)/z.zetan)
	return z
}

// Rank draws a rank; 0 is the most wanted.
func (z *Zipfian) Rank(r *Random) uint64 {
	u := r.Float()
	switch uz := u * z.zetan; {
	case uz < 1:
		return 0
	case uz < z.second:
		return 1
	}
	return min(uint64(z.n*math.Pow(z.eta*u-z.eta+1, z.alpha)), uint64(z.n)-1)
}
