package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pairdb/pairdb/libs/service"
)

// memoryLimit is a size, or "auto".
type memoryLimit struct {
	auto  bool
	bytes service.Bytes
}

// Auto reports whether the limit is derived.
func (m memoryLimit) Auto() bool { return m.auto }

// Bytes returns the limit; Config.Complete has replaced auto.
func (m memoryLimit) Bytes() int64 { return int64(m.bytes) }

func (m *memoryLimit) UnmarshalText(text []byte) error {
	if string(text) == "auto" {
		*m = memoryLimit{auto: true}
		return nil
	}
	m.auto = false
	return m.bytes.UnmarshalText(text)
}

func (m memoryLimit) MarshalText() ([]byte, error) { return m.bytes.MarshalText() }

// SocketServices are the words for services on the socket.
var SocketServices = []string{"node", "compaction", "migration", "replica", "admin", "storage", "all"}

// SocketUIDs says which uid may call which services on the socket; "all" stands for every one.
type SocketUIDs map[uint32][]string

// maxSocketUIDs bounds the table; a pod has a handful of containers.
const maxSocketUIDs = 64

// UnmarshalText parses uid=service+service,uid=service.
func (s *SocketUIDs) UnmarshalText(text []byte) error {
	*s = SocketUIDs{}
	if len(text) == 0 {
		return nil
	}
	entries := strings.Split(string(text), ",")
	if len(entries) > maxSocketUIDs {
		return fmt.Errorf("%d uids, at most %d", len(entries), maxSocketUIDs)
	}
	for _, entry := range entries {
		id, services, ok := strings.Cut(strings.TrimSpace(entry), "=")
		uid, err := strconv.ParseUint(id, 10, 32)
		if !ok || err != nil {
			return fmt.Errorf("%q is not uid=service+service", entry)
		}
		if _, twice := (*s)[uint32(uid)]; twice {
			return fmt.Errorf("uid %d is listed twice", uid)
		}
		for name := range strings.SplitSeq(services, "+") {
			if !slices.Contains(SocketServices, name) {
				return fmt.Errorf("unknown service %q of uid %d: %s", name, uid, strings.Join(SocketServices, ", "))
			}
			(*s)[uint32(uid)] = append((*s)[uint32(uid)], name)
		}
	}
	return nil
}

// MarshalText prints the table in the form that UnmarshalText reads, by uid.
func (s SocketUIDs) MarshalText() ([]byte, error) {
	uids := make([]uint32, 0, len(s))
	for uid := range s {
		uids = append(uids, uid)
	}
	slices.Sort(uids)
	var entries []string
	for _, uid := range uids {
		entries = append(entries, fmt.Sprintf("%d=%s", uid, strings.Join(s[uid], "+")))
	}
	return []byte(strings.Join(entries, ",")), nil
}
