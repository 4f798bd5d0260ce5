package suite

import (
	"fmt"
	"time"

	"github.com/pairdb/pairdb/services/storage-node/bench/workload"
)

// Size is how much a run does.
type Size struct {
	Name string
	// Keys of 1 KiB in the large set, in the small one, and of 100 bytes.
	Keys, SmallKeys, ShortKeys uint64
	// Row is how long a row that is bounded by time runs, Warm the pass before a row of reads.
	Row, Warm time.Duration
	// FillLimit ends a fill or an overwrite that is not done; its rates are those of the part.
	FillLimit time.Duration
	// RecoveryBytes of keys and values are in the log when the process is killed: less than a
	// memtable.
	RecoveryBytes uint64
	Rounds        int
	// Repetitions of a measurement beside which the calibration loop was off. A machine that is busy for
	// longer is measured as it is, and the report says so. None for smoke, whose figures mean nothing.
	Repetitions int
}

// Sizes are those that --size names.
var Sizes = []Size{
	{Name: "smoke", Keys: 20_000, SmallKeys: 4_000, ShortKeys: 20_000, Row: 60 * time.Millisecond, Warm: 20 * time.Millisecond,
		FillLimit: 2 * time.Second, RecoveryBytes: 4 << 20, Rounds: 1},
	{Name: "default", Keys: 1_000_000, SmallKeys: 100_000, ShortKeys: 1_000_000, Row: 3 * time.Second, Warm: 2 * time.Second,
		FillLimit: 60 * time.Second, RecoveryBytes: 57_000_000, Rounds: 2, Repetitions: 3},
	{Name: "full", Keys: 4_000_000, SmallKeys: 100_000, ShortKeys: 4_000_000, Row: 15 * time.Second, Warm: 5 * time.Second,
		FillLimit: 10 * time.Minute, RecoveryBytes: 57_000_000, Rounds: 2, Repetitions: 3},
}

// SizeNamed returns the size of that name.
func SizeNamed(name string) (Size, error) {
	for _, s := range Sizes {
		if s.Name == name {
			return s, nil
		}
	}
	return Size{}, fmt.Errorf("unknown size %q: smoke, default or full expected", name)
}

// The data sets.
const (
	large = "large" // beyond the caches (at the default size)
	small = "small" // within them
	short = "short" // values of 100 bytes
)

// data returns a data set.
func (s Size) data(set string) workload.Data {
	switch set {
	case small:
		return workload.Data{Count: s.SmallKeys, ValueBytes: 1024}
	case short:
		return workload.Data{Count: s.ShortKeys, ValueBytes: 100}
	}
	return workload.Data{Count: s.Keys, ValueBytes: 1024}
}
