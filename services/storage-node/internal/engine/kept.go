package engine

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// The tables that ingest markers in the log name are kept until the log has forgotten the marker, so
// that the change feed can hand out what was ingested. Which these are is a fact of the node, made
// with the edit of the ingest; a table that the tree has given up meanwhile is deleted when the fact
// is.

// keeps reports whether a marker in the log names the table; then its file must stay.
func (t *tailState) keeps(num uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.kept[num] > 0
}

// keepObsolete is keeps for a table that the tree has given up: it is deleted with the marker.
func (t *tailState) keepObsolete(num uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.kept[num] == 0 {
		return false
	}
	t.obsolete[num] = true
	return true
}

func (t *tailState) addIngest(seq ikey.Seq, tables []uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ingests[seq] = tables
	for _, num := range tables {
		t.kept[num]++
	}
}

// forget drops the ingest and returns the tables that nobody needs any more.
func (t *tailState) forget(seq ikey.Seq) (garbage []uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, num := range t.ingests[seq] {
		if t.kept[num]--; t.kept[num] <= 0 {
			delete(t.kept, num)
			if t.obsolete[num] {
				delete(t.obsolete, num)
				garbage = append(garbage, num)
			}
		}
	}
	delete(t.ingests, seq)
	return garbage
}

// tablesOf returns the tables of an ingest whose marker is in the log.
func (t *tailState) tablesOf(seq ikey.Seq) ([]uint64, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	nums, ok := t.ingests[seq]
	return nums, ok
}

// loadKept reads which tables are kept for markers, before any file is deleted.
func (e *Engine) loadKept() (err error) {
	if e.tails.from, err = e.metaSeq(metaFeedFrom); err != nil {
		return err
	}
	ingests, err := keptIngests(e.manifest.NodeMeta())
	if err != nil {
		return err
	}
	for seq, nums := range ingests {
		for _, num := range nums {
			e.tails.obsoleteUnless(num, e.manifest)
		}
		e.tails.addIngest(seq, nums)
	}
	return nil
}

// keptIngests returns the ingests that the log may have markers of, with their tables.
func keptIngests(meta map[string]string) (map[ikey.Seq][]uint64, error) {
	out := make(map[ikey.Seq][]uint64)
	for key, value := range meta {
		text, ok := strings.CutPrefix(key, metaIngestAt)
		if !ok {
			continue
		}
		seq, err := strconv.ParseUint(text, 10, 56)
		if err != nil {
			return nil, fmt.Errorf("%w: manifest: %s: %w", ErrCorrupt, key, err)
		}
		for _, s := range strings.Split(value, ",") {
			num, err := strconv.ParseUint(s, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%w: manifest: %s: %w", ErrCorrupt, key, err)
			}
			out[ikey.Seq(seq)] = append(out[ikey.Seq(seq)], num)
		}
	}
	return out, nil
}

// keptForTail returns the tables that stay because an ingest marker in the log names them.
func keptForTail(meta map[string]string) (nums []uint64) {
	ingests, err := keptIngests(meta)
	if err != nil {
		return nil
	}
	for _, tables := range ingests {
		nums = append(nums, tables...)
	}
	return nums
}

// obsoleteUnless notes a kept table that is in no version.
func (t *tailState) obsoleteUnless(num uint64, set *manifest.Set) {
	v := set.Current()
	defer v.Unref()
	if found, _ := v.Find(num); found == nil {
		t.mu.Lock()
		t.obsolete[num] = true
		t.mu.Unlock()
	}
}

// ingestFact is the fact of the node that keeps the tables of an ingest.
func ingestFact(seq ikey.Seq, tables []uint64) (key, value string) {
	text := make([]string, len(tables))
	for i, num := range tables {
		text[i] = strconv.FormatUint(num, 10)
	}
	return metaIngestAt + strconv.FormatUint(uint64(seq), 10), strings.Join(text, ",")
}

// forgetMarkers forgets the ingests whose markers are in no segment any more.
func (e *Engine) forgetMarkers() {
	e.tails.mu.Lock()
	n := len(e.tails.ingests)
	e.tails.mu.Unlock()
	segments := e.log.Segments()
	if n == 0 || len(segments) == 0 {
		return
	}
	first, ok, err := e.firstSeq(segments[0].Number)
	if err != nil || !ok {
		return // the next flush tries again
	}
	e.tails.mu.Lock()
	var old []ikey.Seq
	for seq := range e.tails.ingests {
		if seq < first {
			old = append(old, seq)
		}
	}
	e.tails.mu.Unlock()
	if len(old) == 0 {
		return
	}
	// The facts go first: they say that the files must be there.
	edit := manifest.Edit{NodeMeta: map[string]string{metaFeedFrom: strconv.FormatUint(uint64(first), 10)}}
	for _, seq := range old {
		key, _ := ingestFact(seq, nil)
		edit.NodeMeta[key] = ""
	}
	if e.applyEdit(edit, nil, nil) != nil {
		return
	}
	e.tails.mu.Lock()
	e.tails.from = max(e.tails.from, first)
	e.tails.mu.Unlock()
	for _, seq := range old {
		for _, num := range e.tails.forget(seq) {
			e.removeTable(num)
		}
	}
}
