package iterator

import (
	"slices"

	"github.com/pairdb/pairdb/libs/ikey"
)

// Entry is a key with its value.
type Entry struct {
	Key   ikey.Key
	Value []byte
}

// Slice walks entries that are in memory and sorted. It keeps entries.
func Slice(entries []Entry) Iterator { return &slice{entries: entries, at: -1} }

type slice struct {
	entries []Entry
	at      int
}

func (s *slice) land(at int) bool {
	s.at = at
	return s.Valid()
}

func (s *slice) search(k ikey.Key) int {
	i, _ := slices.BinarySearchFunc(s.entries, k, func(e Entry, k ikey.Key) int { return ikey.Compare(e.Key, k) })
	return i
}

func (s *slice) First() bool            { return s.land(0) }
func (s *slice) Last() bool             { return s.land(len(s.entries) - 1) }
func (s *slice) SeekGE(k ikey.Key) bool { return s.land(s.search(k)) }
func (s *slice) SeekLT(k ikey.Key) bool { return s.land(s.search(k) - 1) }
func (s *slice) Next() bool             { return s.Valid() && s.land(s.at+1) }
func (s *slice) Prev() bool             { return s.Valid() && s.land(s.at-1) }
func (s *slice) Valid() bool            { return s.at >= 0 && s.at < len(s.entries) }
func (s *slice) Key() ikey.Key          { return s.entries[s.at].Key }
func (s *slice) Value() []byte          { return s.entries[s.at].Value }
func (s *slice) Err() error             { return nil }
func (s *slice) Close() error           { s.at = -1; return nil }

// Fail returns an iterator without entries that reports err: for a source that could not be opened.
func Fail(err error) Iterator { return failed{err} }

type failed struct{ err error }

func (f failed) First() bool          { return false }
func (f failed) Last() bool           { return false }
func (f failed) SeekGE(ikey.Key) bool { return false }
func (f failed) SeekLT(ikey.Key) bool { return false }
func (f failed) Next() bool           { return false }
func (f failed) Prev() bool           { return false }
func (f failed) Valid() bool          { return false }
func (f failed) Key() ikey.Key        { return ikey.Key{} }
func (f failed) Value() []byte        { return nil }
func (f failed) Err() error           { return f.err }
func (f failed) Close() error         { return f.err }
