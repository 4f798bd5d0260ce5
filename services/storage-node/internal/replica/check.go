package replica

import (
	"bytes"
	"fmt"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// maxRecordBytes bounds a record: what the engine takes in one batch, with its key.
const maxRecordBytes = 48<<20 - 4<<10

// checker validates records from elsewhere. It is for one goroutine.
type checker struct {
	clock Clock
	actor []byte

	tenant string // of the last record; it was valid
}

func newChecker(c Clock) *checker { return &checker{clock: c, actor: []byte(c.Actor())} }

// check refuses what no node stores. It returns the tenant and the latest timestamp of the record.
func (c *checker) check(rec *Record) (tenant string, latest uint64, err error) {
	if err := c.checkKey(rec.Key); err != nil {
		return "", 0, err
	}
	if len(rec.Value) > maxRecordBytes {
		return "", 0, refuse(store.ReasonIngest, "record of key %s has %d bytes, at most %d allowed", ikey.Hash(rec.Key), len(rec.Value), maxRecordBytes)
	}
	sum, err := causal.Summarize(rec.Value, 0)
	if err == nil && (sum.Siblings != 1 || bytes.Contains(rec.Value, c.actor)) {
		// The order of siblings needs their values; whoever claims to have seen writes of this process
		// must be right.
		var full causal.Record
		if full, err = causal.Decode(rec.Value); err == nil {
			if len(full.Siblings) == 0 {
				err = fmt.Errorf("no siblings")
			} else {
				err = c.clock.CheckRecord(full)
			}
		}
	}
	if err != nil {
		return "", 0, refuse(store.ReasonIngest, "record of key %s: %v", ikey.Hash(rec.Key), err)
	}
	return c.tenant, sum.MaxTimestamp, nil
}

// checkKey sets tenant.
func (c *checker) checkKey(key []byte) error {
	tenant, user, err := ikey.SplitEngineKey(key)
	if err != nil {
		return refuse(store.ReasonIngest, "a key of %d bytes has no tenant", len(key))
	}
	if string(tenant) != c.tenant {
		name := string(tenant)
		if err := store.CheckTenant(name); err != nil {
			return refuse(store.ReasonIngest, "tenant of a record: %v", err)
		}
		c.tenant = name
	}
	if len(user) == 0 || len(user) > store.MaxKeyBytes || !plain(user) {
		if err := store.CheckKey(string(user)); err != nil {
			return refuse(store.ReasonIngest, "key %s: %v", ikey.Hash(key), err)
		}
	}
	return nil
}

// plain reports whether all bytes are printable ASCII: then a key needs no closer look.
func plain(b []byte) bool {
	for _, c := range b {
		if c < 0x20 || c > 0x7e {
			return false
		}
	}
	return true
}
