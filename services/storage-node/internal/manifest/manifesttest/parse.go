// Package manifesttest reads versions and edits from the text of golden scripts. It is never part of
// a binary.
//
// A table is one line:
//
//	5 a-c [seqs=1-9] [size=100] [entries=10] [merges=n] [rangedels=n] [tombstones=n] [oldest=n]
//	      [origin=flush] [quarantined]
//
// The bounds are engine keys; a largest one written with a closing parenthesis, as in a-c), is the
// end of a range delete. Sizes take the suffixes K, M and G.
package manifesttest

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

// Table reads the line of a table.
func Table(line string) (*manifest.Table, error) {
	words := strings.Fields(line)
	if len(words) < 2 {
		return nil, fmt.Errorf("table %q: number and bounds expected", line)
	}
	num, err := strconv.ParseUint(words[0], 10, 64)
	if err != nil {
		return nil, err
	}
	t := &manifest.Table{Num: num, Origin: manifest.OriginFlush}
	t.Size, t.Entries, t.MinSeq, t.MaxSeq, t.Digest = 100, 10, 1, 1, num*1000
	for _, word := range words[2:] {
		if err := option(t, word); err != nil {
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

func option(t *manifest.Table, word string) error {
	k, v, _ := strings.Cut(word, "=")
	numbers := map[string]*uint64{"size": &t.Size, "entries": &t.Entries, "merges": &t.Merges,
		"rangedels": &t.RangeDeletes, "tombstones": &t.Tombstones, "oldest": &t.OldestCollectible}
	var err error
	switch {
	case numbers[k] != nil:
		*numbers[k], err = Number(v)
	case k == "seqs":
		low, high, _ := strings.Cut(v, "-")
		var a, b uint64
		if a, err = Number(low); err == nil {
			b, err = Number(high)
		}
		t.MinSeq, t.MaxSeq = ikey.Seq(a), ikey.Seq(b)
	case k == "quarantined":
		t.Quarantined = true
	case k == "origin":
		for o := manifest.OriginFlush; o <= manifest.OriginLocal; o++ {
			if o.String() == v {
				t.Origin = o
			}
		}
	default:
		err = fmt.Errorf("unknown word %q", word)
	}
	return err
}

// Number reads a number with an optional suffix K, M or G.
func Number(s string) (uint64, error) {
	shift := 0
	if i := strings.IndexAny(s, "KMG"); i >= 0 && i == len(s)-1 {
		shift = 10 * (1 + strings.IndexByte("KMG", s[i]))
		s = s[:i]
	}
	n, err := strconv.ParseUint(s, 10, 64)
	return n << shift, err
}

// Version reads a version: lines L0 … L6, each followed by the tables of that level.
func Version(text string) (*manifest.Version, error) {
	var levels [manifest.NumLevels][]*manifest.Table
	level := 0
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if l, ok := Level(line); ok {
			level = l
			continue
		}
		t, err := Table(line)
		if err != nil {
			return nil, err
		}
		levels[level] = append(levels[level], t)
	}
	v := manifest.NewVersion(levels)
	return v, manifest.CheckInvariants(v)
}

// Level reads L0 … L6.
func Level(s string) (int, bool) {
	n, err := strconv.Atoi(strings.TrimPrefix(s, "L"))
	return n, err == nil && strings.HasPrefix(s, "L") && n >= 0 && n < manifest.NumLevels
}

// Edit reads an edit, a step on each line:
//
//	add L1 <table> · delete L1 5 · quarantine 5 · release 5 · log-floor 3 · next-file 9 · last-seq 9 · node k=v
//	move L0 L1 5 (v has the table)
func Edit(text string, v *manifest.Version) (manifest.Edit, error) {
	e := manifest.Edit{}
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if err := step(&e, line, v); err != nil {
			return e, fmt.Errorf("%q: %w", line, err)
		}
	}
	return e, nil
}

func step(e *manifest.Edit, line string, v *manifest.Version) error {
	verb, rest, _ := strings.Cut(line, " ")
	words := strings.Fields(rest)
	last, numErr := strconv.ParseUint(words[len(words)-1], 10, 64)
	level, _ := Level(words[0])
	switch verb {
	case "add":
		t, err := Table(strings.Join(words[1:], " "))
		e.Added = append(e.Added, manifest.Added{Level: level, Table: t})
		return err
	case "node":
		if e.NodeMeta == nil {
			e.NodeMeta = map[string]string{}
		}
		k, value, _ := strings.Cut(rest, "=")
		e.NodeMeta[k] = value
		return nil
	case "delete":
		e.Deleted = append(e.Deleted, manifest.Deleted{Level: level, Num: last})
	case "move":
		to, _ := Level(words[1])
		t, _ := v.Find(last)
		if t == nil {
			return fmt.Errorf("no such table")
		}
		e.Deleted = append(e.Deleted, manifest.Deleted{Level: level, Num: last})
		e.Added = append(e.Added, manifest.Added{Level: to, Table: t})
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
