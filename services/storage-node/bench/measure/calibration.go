package measure

import (
	"hash/crc32"
	"time"
)

// Calibration is a fixed amount of work that needs nothing but a processor and memory. How long it
// takes beside a figure says whether the machine was the same for all figures: it is shared, and
// now and then somebody else computes.
type Calibration struct {
	from, to []byte
	table    *crc32.Table
	sum      uint32
}

const calibrationBytes = 4 << 20 // beyond most second-level caches

// NewCalibration returns one with its memory touched.
func NewCalibration() *Calibration {
	c := &Calibration{
		from: make([]byte, calibrationBytes), to: make([]byte, calibrationBytes),
		table: crc32.MakeTable(crc32.Castagnoli),
	}
	for i := range c.from {
		c.from[i] = byte(i * 7)
	}
	c.once()
	return c
}

func (c *Calibration) once() {
	c.sum ^= crc32.Checksum(c.from, c.table)
	copy(c.to, c.from)
	c.to[0] = byte(c.sum)
}

// Run does the work, about 20 ms, and returns the time it took.
func (c *Calibration) Run() time.Duration {
	start := time.Now()
	for range 20 {
		c.once()
	}
	return time.Since(start)
}
