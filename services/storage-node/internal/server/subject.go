package server

import (
	"strings"

	"go.opentelemetry.io/otel/attribute"

	"github.com/pairdb/pairdb/libs/ikey"
	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// subject is what a request is about, for logs and spans.
type subject struct {
	// known: it is a request for the keys of a tenant. Calls of operators and sidecars are not, and take
	// as long as they like.
	known       bool
	tenant, key string // key is the first one, or where a range starts
	keys, bytes int    // bytes of values
}

// subjectOf looks at the messages of a call; resp is nil after an error.
func subjectOf(req, resp any) subject {
	switch r := req.(type) {
	case *storagev1.ReadRequest:
		return one(r.GetTenant(), r.GetKey(), answerBytes(resp))
	case *storagev1.BatchReadRequest:
		s := subject{known: true, tenant: r.GetTenant(), keys: len(r.GetKeys()), bytes: answerBytes(resp)}
		if s.keys > 0 {
			s.key = r.GetKeys()[0]
		}
		return s
	case *storagev1.WriteRequest:
		return one(r.GetTenant(), r.GetKey(), len(r.GetValue()))
	case *storagev1.DeleteRequest:
		return one(r.GetTenant(), r.GetKey(), 0)
	case *storagev1.RepairRequest:
		s := one(r.GetRecord().GetTenant(), r.GetRecord().GetKey(), 0)
		for _, sibling := range r.GetRecord().GetSiblings() {
			s.bytes += len(sibling.GetValue())
		}
		return s
	case *storagev1.BatchWriteRequest:
		s := subject{known: true, tenant: r.GetTenant(), keys: len(r.GetOps())}
		for i, op := range r.GetOps() {
			s.bytes += len(op.GetPut().GetValue())
			if i == 0 {
				s.key = op.GetKey()
			}
		}
		return s
	case *storagev1.GetKeyRangeRequest:
		s := one(r.GetTenant(), r.GetRange().GetStart(), 0)
		if page, ok := resp.(*storagev1.GetKeyRangeResponse); ok {
			s.keys = len(page.GetKeys())
		}
		return s
	}
	return subjectOfContract(req, resp)
}

// subjectOfContract is subjectOf for the calls of existing coordinators.
func subjectOfContract(req, resp any) subject {
	switch r := req.(type) {
	case *storagenodev1.ReadRequest:
		s := one(r.GetTenantId(), r.GetKey(), 0)
		if answer, ok := resp.(*storagenodev1.ReadResponse); ok {
			s.bytes = len(answer.GetValue())
		}
		return s
	case *storagenodev1.WriteRequest:
		return one(r.GetTenantId(), r.GetKey(), len(r.GetValue()))
	case *storagenodev1.DeleteRequest:
		return one(r.GetTenantId(), r.GetKey(), 0)
	case *storagenodev1.RepairRequest:
		return one(r.GetTenantId(), r.GetKey(), len(r.GetValue()))
	case *storagenodev1.GetKeyRangeRequest:
		s := one(r.GetTenantId(), r.GetKeyRangeStart(), 0)
		if page, ok := resp.(*storagenodev1.GetKeyRangeResponse); ok {
			s.keys = len(page.GetKeys())
		}
		return s
	}
	return subject{}
}

// clipped is what may be said of a text that nobody has checked yet.
func clipped(text string, limit int) string {
	return strings.ToValidUTF8(text[:min(len(text), limit)], "?")
}

func one(tenant, key string, bytes int) subject {
	return subject{known: true, tenant: tenant, key: key, keys: 1, bytes: bytes}
}

// answerBytes returns how many bytes of values an encoded answer has.
func answerBytes(resp any) int {
	if e, ok := resp.(*Encoded); ok && e != nil {
		return e.ValueBytes
	}
	return 0
}

// attributes lists what a subject is for a span: a span never has a key or a value.
func (s subject) attributes() []attribute.KeyValue {
	if !s.known {
		return nil
	}
	out := []attribute.KeyValue{
		attribute.String("pairdb.tenant", clipped(s.tenant, store.MaxTenantBytes)),
		attribute.Int("pairdb.keys", s.keys), attribute.Int("pairdb.value_bytes", s.bytes),
	}
	if s.key != "" {
		out = append(out, attribute.String("pairdb.key_hash", ikey.KeyHash(s.key)))
	}
	return out
}
