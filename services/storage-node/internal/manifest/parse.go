package manifest

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
)

// ParseTable reads a table from its line in a golden script:
//
//	5 a-c [seqs=1-9] [size=100] [entries=10] [merges=n] [rangedels=n] [tombstones=n] [oldest=n]
//	      [origin=flush] [quarantined]
//
// The bounds are engine keys; a largest one written with a closing parenthesis, as in a-c), is the
// end of a range delete. Sizes take the suffixes K, M and G.
func ParseTable(line string) (*Table, error) {
	words := strings.Fields(line)
	if len(words) < 2 {
		return nil, fmt.Errorf("table %q: number and bounds expected", line)
	}
	num, err := strconv.ParseUint(words[0], 10, 64)
	if err != nil {
		return nil, err
	}
	t := &Table{Num: num, Origin: OriginFlush}
	t.Size, t.Entries, t.MinSeq, t.MaxSeq, t.Digest = 100, 10, 1, 1, num*1000
	for _, word := range words[2:] {
		if err := t.parseWord(word); err != nil {
			return nil, fmt.Errorf("table %q: %w", line, err)
		}
	}
	t.Sets = t.Entries - t.Merges
	start, end, ok := strings.Cut(words[1], "-")
	if !ok {
		return nil, fmt.Errorf("table %q: bounds like a-c expected", line)
	}
	t.Smallest = ikey.Make([]byte(start), t.MaxSeq, ikey.KindSet)
	if e, exclusive := strings.CutSuffix(end, ")"); exclusive {
		t.Largest = sstable.RangeDeleteBound([]byte(e))
	} else {
		t.Largest = ikey.Make([]byte(end), t.MinSeq, ikey.KindSet)
	}
	return t, nil
}

func (t *Table) parseWord(word string) error {
	k, v, _ := strings.Cut(word, "=")
	numbers := map[string]*uint64{"size": &t.Size, "entries": &t.Entries, "merges": &t.Merges,
		"rangedels": &t.RangeDeletes, "tombstones": &t.Tombstones, "oldest": &t.OldestCollectible}
	var err error
	switch {
	case numbers[k] != nil:
		*numbers[k], err = ParseNumber(v)
	case k == "seqs":
		low, high, _ := strings.Cut(v, "-")
		var a, b uint64
		if a, err = ParseNumber(low); err == nil {
			b, err = ParseNumber(high)
		}
		t.MinSeq, t.MaxSeq = ikey.Seq(a), ikey.Seq(b)
	case k == "quarantined":
		t.Quarantined = true
	case k == "origin":
		for o := OriginFlush; o <= OriginLocal; o++ {
			if o.String() == v {
				t.Origin = o
			}
		}
	default:
		err = fmt.Errorf("unknown word %q", word)
	}
	return err
}

// ParseNumber reads a number with an optional suffix K, M or G.
func ParseNumber(s string) (uint64, error) {
	shift := 0
	if i := strings.IndexAny(s, "KMG"); i >= 0 && i == len(s)-1 {
		shift = 10 * (1 + strings.IndexByte("KMG", s[i]))
		s = s[:i]
	}
	n, err := strconv.ParseUint(s, 10, 64)
	return n << shift, err
}

// ParseVersion reads a version from a golden script: lines L0 … L6, each followed by the tables of that level.
func ParseVersion(text string) (*Version, error) {
	var levels [NumLevels][]*Table
	level := 0
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if l, ok := ParseLevel(line); ok {
			level = l
			continue
		}
		t, err := ParseTable(line)
		if err != nil {
			return nil, err
		}
		levels[level] = append(levels[level], t)
	}
	v := NewVersion(levels)
	return v, CheckInvariants(v)
}

// ParseLevel reads L0 … L6.
func ParseLevel(s string) (int, bool) {
	n, err := strconv.Atoi(strings.TrimPrefix(s, "L"))
	return n, err == nil && strings.HasPrefix(s, "L") && n >= 0 && n < NumLevels
}

// ParseEdit reads an edit from a golden script, a step on each line:
//
//	add L1 <table> · delete L1 5 · quarantine 5 · release 5 · log-floor 3 · next-file 9 · last-seq 9 · node k=v
//	move L0 L1 5 (v has the table)
func ParseEdit(text string, v *Version) (Edit, error) {
	e := Edit{}
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if err := e.parseStep(line, v); err != nil {
			return e, fmt.Errorf("%q: %w", line, err)
		}
	}
	return e, nil
}

func (e *Edit) parseStep(line string, v *Version) error {
	verb, rest, _ := strings.Cut(line, " ")
	words := strings.Fields(rest)
	if len(words) == 0 || verb == "move" && len(words) < 3 {
		return fmt.Errorf("too short")
	}
	last, numErr := strconv.ParseUint(words[len(words)-1], 10, 64)
	level, _ := ParseLevel(words[0])
	switch verb {
	case "add":
		t, err := ParseTable(strings.Join(words[1:], " "))
		e.Added = append(e.Added, Added{Level: level, Table: t})
		return err
	case "node":
		if e.NodeMeta == nil {
			e.NodeMeta = map[string]string{}
		}
		k, value, _ := strings.Cut(rest, "=")
		e.NodeMeta[k] = value
		return nil
	case "delete":
		e.Deleted = append(e.Deleted, Deleted{Level: level, Num: last})
	case "move":
		to, _ := ParseLevel(words[1])
		t, _ := v.Find(last)
		if t == nil {
			return fmt.Errorf("no such table")
		}
		e.Deleted = append(e.Deleted, Deleted{Level: level, Num: last})
		e.Added = append(e.Added, Added{Level: to, Table: t})
	case "quarantine":
		e.Quarantined = append(e.Quarantined, last)
	case "release":
		e.Released = append(e.Released, last)
	case "log-floor":
		e.LogFloor = last
	case "next-file":
		e.NextFile = last
	case "last-seq":
		e.LastSeq = ikey.Seq(last)
	default:
		return fmt.Errorf("unknown step")
	}
	return numErr
}
