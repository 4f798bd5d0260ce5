package jobs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/pairdb/pairdb/libs/compact"
)

// complete checks o and fills its defaults in.
func (o *Options) complete() error {
	switch {
	case o.FS == nil, o.Now == nil, o.After == nil, o.Rand == nil, o.Installer == nil:
		return errors.New("job board: FS, Now, After, Rand and Installer are required")
	case o.VerifyProbability < 0 || o.VerifyProbability > 1:
		return fmt.Errorf("job board: verify probability %v is not within 0 and 1", o.VerifyProbability)
	case o.AuditProbability < 0 || o.AuditProbability > 1:
		return fmt.Errorf("job board: audit probability %v is not within 0 and 1", o.AuditProbability)
	case o.Mode > ModeAlways:
		return fmt.Errorf("job board: unknown mode %d", o.Mode)
	}
	defaultTo(&o.Lease, 15*time.Second)
	defaultTo(&o.Heartbeat, 5*time.Second)
	defaultTo(&o.Stall, 60*time.Second)
	defaultTo(&o.Poll, 20*time.Second)
	defaultTo(&o.MaxAttempt, time.Hour)
	defaultTo(&o.Attempts, 3)
	defaultTo(&o.MaxQueued, 1024)
	defaultTo(&o.MaxInputBytes, compact.MaxInputBytes)
	defaultTo(&o.MaxOutputs, compact.MaxOutputs)
	defaultTo(&o.LocalAfter, 30*time.Second)
	defaultTo(&o.LocalRate, 32<<20)
	defaultTo(&o.ScrubInterval, 60*time.Second)
	defaultTo(&o.ScrubRate, 8<<20)
	if len(o.Formats) == 0 {
		o.Formats = []uint32{1}
	}
	if o.MaxOutputs > compact.MaxOutputs || o.MaxInputBytes > compact.MaxInputBytes {
		return fmt.Errorf("job board: jobs of %d bytes and %d outputs, at most %d and %d",
			o.MaxInputBytes, o.MaxOutputs, int64(compact.MaxInputBytes), compact.MaxOutputs)
	}
	o.Rand = rand.New(rand.NewPCG(o.Rand.Uint64(), o.Rand.Uint64()))
	if o.Heartbeat >= o.Lease {
		return fmt.Errorf("job board: heartbeat %v is not shorter than the lease %v", o.Heartbeat, o.Lease)
	}
	return nil
}

func defaultTo[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}
