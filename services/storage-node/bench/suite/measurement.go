package suite

import (
	"time"

	"github.com/pairdb/pairdb/services/storage-node/bench/measure"
)

// Measurement is what one engine did once in one row.
type Measurement struct {
	// Name is that of the row, with "+settle" for the part that counts the work left behind.
	Name string
	// Ops are the operations in Seconds; for the latencies see P50.
	Ops     uint64
	Seconds float64
	// P50, P99, P999 and Max are the times of single operations in microseconds. 0 where there is
	// none, as after settling.
	P50, P99, P999, Max float64
	// CPU is microseconds of processor per operation, of all threads.
	CPU float64
	// Allocs are Go allocations per operation; negative for an engine that is not in Go.
	Allocs float64
	// Written is bytes to the disk per byte of keys and values put; 0 where nothing is put.
	Written float64
	// Space is bytes on the disk per byte of keys and values that are there; 0 where it was not
	// looked at.
	Space float64
	// Note says what else is worth knowing.
	Note string
}

// Rate returns operations per second.
func (m Measurement) Rate() float64 {
	if m.Seconds == 0 {
		return 0
	}
	return float64(m.Ops) / m.Seconds
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// cost fills in what ops operations that put userBytes have used.
func (m *Measurement) cost(used measure.Resources, inGo bool, userBytes uint64) {
	n := float64(max(m.Ops, 1))
	m.CPU = micros(used.CPU) / n
	m.Allocs = -1
	if inGo {
		m.Allocs = float64(used.Mallocs) / n
	}
	if userBytes > 0 {
		m.Written = float64(used.WrittenBytes) / float64(userBytes)
	}
}
