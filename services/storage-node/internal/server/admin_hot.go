package server

import (
	"context"
	"fmt"
	"math"

	"github.com/pairdb/pairdb/libs/ikey"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	"github.com/pairdb/pairdb/services/storage-node/internal/hot"
)

// defaultHotKeys is the length of a list when the request names none.
const defaultHotKeys = 20

// Hot lists the keys asked for most and the largest values of the last minutes.
func (a adminService) Hot(_ context.Context, r *adminv1.HotRequest) (*adminv1.HotResponse, error) {
	b, err := a.s.backend()
	if err != nil {
		return nil, err
	}
	limit := int(r.GetLimit())
	if limit < 0 || limit > hot.MaxKeys {
		return nil, fmt.Errorf("%w: limit is %d, 0 to %d allowed", errLimit, limit, hot.MaxKeys)
	}
	if limit == 0 {
		limit = defaultHotKeys
	}
	report := b.Hot.Top(limit)
	return &adminv1.HotResponse{
		WindowSeconds: int64(math.Ceil(report.Covers.Seconds())),
		Reads:         hotToProto(report.Reads, r.GetRevealKeys()),
		Writes:        hotToProto(report.Writes, r.GetRevealKeys()),
		Largest:       hotToProto(report.Largest, r.GetRevealKeys()),
	}, nil
}

func hotToProto(keys []hot.Key, reveal bool) []*adminv1.HotKey {
	out := make([]*adminv1.HotKey, len(keys))
	for i, k := range keys {
		name := k.Key
		if !reveal {
			name = ikey.KeyHash(k.Key)
		}
		out[i] = &adminv1.HotKey{Tenant: k.Tenant, Key: name, Requests: int64(k.Operations), ValueBytes: int64(k.ValueBytes)}
	}
	return out
}
