package tenant

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// State is where a tenant is in its life.
type State uint8

// The states in their order: none leads back but by a new generation.
const (
	Active State = iota + 1
	Dropping
	Dropped
)

// Policy says what readers see of concurrent writes.
type Policy uint8

// The policies.
const (
	KeepSiblings Policy = iota + 1
	LastWriterWins
)

// Quota bounds what a tenant may use of the node; 0 is no limit.
type Quota struct {
	// OperationsPerSecond counts keys, BytesPerSecond keys and values, read or written.
	OperationsPerSecond int64 `json:"operations_per_second,omitempty"`
	BytesPerSecond      int64 `json:"bytes_per_second,omitempty"`
	InFlight            int32 `json:"in_flight,omitempty"`
	StoredBytes         int64 `json:"stored_bytes,omitempty"`
}

// check refuses what is no quota.
func (q Quota) check() error {
	for _, limit := range []struct {
		name  string
		value int64
	}{
		{quotaOperations, q.OperationsPerSecond}, {quotaBytes, q.BytesPerSecond},
		{quotaInFlight, int64(q.InFlight)}, {quotaStored, q.StoredBytes},
	} {
		if limit.value < 0 {
			return refuse(store.ReasonQuota, "quota %s is %d: 0 is no limit, less is not possible", limit.name, limit.value)
		}
	}
	return nil
}

// The names of quotas, as on the wire.
const (
	quotaOperations = "operations_per_second"
	quotaBytes      = "bytes_per_second"
	quotaInFlight   = "in_flight"
	quotaStored     = "stored_bytes"
)

// Tenant is a tenant as operators see it.
type Tenant struct {
	Name string
	// Generation is 1 for the first life of the name.
	Generation uint64
	State      State
	Quota      Quota
	Conflicts  Policy
	CreatedAt  int64 // Unix seconds
	// StoredBytes is an estimate that lags behind, InFlight how many requests are worked on.
	StoredBytes int64
	InFlight    int
}

// formatVersion is that of stored records.
const formatVersion = 1

// stored is the value of a tenant's record.
type stored struct {
	Version    int    `json:"version"`
	Generation uint64 `json:"generation"`
	State      string `json:"state"`
	Quota      Quota  `json:"quota"`
	Conflicts  string `json:"conflicts"`
	CreatedAt  int64  `json:"created_at"`
}

var (
	stateNames  = [...]string{Active: "active", Dropping: "dropping", Dropped: "dropped"}
	policyNames = [...]string{KeepSiblings: "keep-siblings", LastWriterWins: "last-writer-wins"}
)

// String returns the word for a state.
func (s State) String() string { return stateNames[s] }

// String returns the word for a policy.
func (p Policy) String() string { return policyNames[p] }

func (t Tenant) encode() ([]byte, error) {
	return json.Marshal(stored{
		Version: formatVersion, Generation: t.Generation, State: t.State.String(), Quota: t.Quota,
		Conflicts: t.Conflicts.String(), CreatedAt: t.CreatedAt,
	})
}

func decode(name string, value []byte) (Tenant, error) {
	var s stored
	if err := json.Unmarshal(value, &s); err != nil {
		return Tenant{}, fmt.Errorf("record of tenant %q: %w", name, err)
	}
	if s.Version > formatVersion {
		return Tenant{}, fmt.Errorf("record of tenant %q has version %d: start a newer storage-node", name, s.Version)
	}
	t := Tenant{Name: name, Generation: s.Generation, Quota: s.Quota, CreatedAt: s.CreatedAt}
	for i, word := range stateNames {
		if word != "" && word == s.State {
			t.State = State(i)
		}
	}
	for i, word := range policyNames {
		if word != "" && word == s.Conflicts {
			t.Conflicts = Policy(i)
		}
	}
	if t.State == 0 || t.Conflicts == 0 || t.Generation == 0 || t.Quota.check() != nil {
		return Tenant{}, fmt.Errorf("record of tenant %q is not one: %.200q", name, value)
	}
	return t, nil
}

// resolve returns the tenant that the siblings of a record are together.
func resolve(name string, r causal.Record) (Tenant, error) {
	var all []Tenant
	newest := -1
	for i := range r.Siblings {
		if r.Siblings[i].Tombstone {
			continue // nobody deletes these records
		}
		t, err := decode(name, r.Siblings[i].Value)
		if err != nil {
			return Tenant{}, err
		}
		if i == causal.Winner(r.Siblings) {
			newest = len(all)
		}
		all = append(all, t)
	}
	var out Tenant
	for i, t := range all {
		if t.Generation > out.Generation || t.Generation == out.Generation && (t.State > out.State || t.State == out.State && i == newest) {
			out = t
		}
	}
	if out.Generation == 0 {
		return Tenant{}, fmt.Errorf("record of tenant %q has no value", name)
	}
	return out, nil
}

func refuse(r store.Reason, format string, args ...any) error {
	return &store.Error{Reason: r, Message: fmt.Sprintf(format, args...)}
}

// droppingRetry is when a drop that runs may have ended.
const droppingRetry = time.Second

func errDropping(name string) error {
	return &store.Error{Reason: store.ReasonTenantDropping, RetryAfter: droppingRetry,
		Message: fmt.Sprintf("tenant %q is being dropped: wait until that is done", name)}
}
