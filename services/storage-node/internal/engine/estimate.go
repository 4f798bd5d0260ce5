package engine

import (
	"bytes"
	"sort"
)

// ApproximateBytes returns about how much of the live tables belongs to keys in [start, end):
// tables in the range count whole, those at its ends by their indexes, which know where a data block
// begins: that is within 256 KiB, the most that a block has with its values. What is in memtables does
// not count, what was removed and is not merged away does.
func (e *Engine) ApproximateBytes(start, end []byte) (uint64, error) {
	s, err := e.acquireFixed()
	if err != nil {
		return 0, err
	}
	defer s.unref()
	var sum uint64
	for level, tables := range s.levels {
		if level > 0 {
			tables = tables[sort.Search(len(tables), func(i int) bool { return bytes.Compare(tables[i].Largest.User, start) >= 0 }):]
		}
		for i := range tables {
			t := &tables[i]
			if bytes.Compare(t.Smallest.User, end) >= 0 {
				if level > 0 {
					break
				}
				continue
			}
			if bytes.Compare(t.Largest.User, start) < 0 {
				continue
			}
			n, err := t.approximateBytes(start, end)
			if err != nil {
				return 0, err
			}
			sum += n
		}
	}
	return sum, nil
}

// approximateBytes is ApproximateBytes of one table, which overlaps the range.
func (t *liveTable) approximateBytes(start, end []byte) (uint64, error) {
	if bytes.Compare(t.Smallest.User, start) >= 0 && bytes.Compare(t.Largest.User, end) < 0 {
		return t.Size, nil
	}
	r, err := t.slot.acquire()
	if err != nil {
		return 0, err
	}
	defer r.release()
	from, to := r.ApproximateOffset(start), r.ApproximateOffset(end)
	return max(to, from) - from, nil
}
