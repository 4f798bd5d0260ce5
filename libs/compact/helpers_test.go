package compact

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
)

// entry is a point entry or, with an end, a range delete.
type entry struct {
	k     ikey.Key
	value []byte
	end   string
}

// table is an input in a test.
type table struct {
	level   int
	entries []entry
}

// world is a memory file system with inputs, and an Env over it.
type world struct {
	fs   *vfs.MemFS
	env  Env
	done int64 // last Progress
	// How inputs are written.
	compression     sstable.Compression
	valueBlockBytes int
}

func newWorld() *world {
	w := &world{fs: vfs.NewMem(), compression: sstable.S2}
	w.env = Env{
		OpenInput: func(in Input) (vfs.File, error) { return w.fs.Open(TableName(in.Num)) },
		OpenOutput: func(index int) (vfs.File, error) {
			f, err := w.fs.Create(OutputName(index), 0o660) // as the node makes it
			if err != nil {
				return nil, err
			}
			if err := f.Close(); err != nil {
				return nil, err
			}
			return w.fs.OpenReadWrite(OutputName(index))
		},
		Progress: func(n int64) { w.done = n },
	}
	return w
}

// input writes a table.
func (w *world) input(t require.TestingT, num uint64, tab table) Input {
	f, err := w.fs.Create(TableName(num), 0o660)
	require.NoError(t, err)
	wr := sstable.NewWriter(f, sstable.WriterOptions{BlockBytes: 200, Compression: w.compression, ValueBlockBytes: w.valueBlockBytes,
		FilterBitsPerKey: 10, Inspect: causal.Inspect})
	slices.SortStableFunc(tab.entries, func(a, b entry) int { return ikey.Compare(a.k, b.k) })
	for _, e := range tab.entries {
		if e.end != "" {
			require.NoError(t, wr.AddRangeDelete(ikey.RangeDelete{Start: e.k.User, End: []byte(e.end), Seq: e.k.Seq()}))
		} else {
			require.NoError(t, wr.Add(e.k, e.value))
		}
	}
	m, err := wr.Finish()
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return Input{Num: num, Level: tab.level, Size: int64(m.Size), Digest: m.Digest, Smallest: m.Smallest, Largest: m.Largest}
}

// read returns what is in a table.
func (w *world) read(t require.TestingT, name string, level int) table {
	f, err := w.fs.Open(name)
	require.NoError(t, err)
	r, err := sstable.Open(f, sstable.ReaderOptions{Name: name})
	require.NoError(t, err)
	require.NoError(t, r.Verify(contextT(), nil))
	out := table{level: level}
	it := r.NewIter()
	for ok := it.First(); ok; ok = it.Next() {
		out.entries = append(out.entries, entry{k: it.Key().Clone(), value: slices.Clone(it.Value())})
	}
	require.NoError(t, it.Close())
	for _, d := range r.RangeDeletes() {
		out.entries = append(out.entries, entry{k: ikey.Make(d.Start, d.Seq, ikey.KindRangeDelete), end: string(d.End)})
	}
	require.NoError(t, r.Close())
	return out
}

// parseRecord reads siblings separated by |: dot, optional [clock], = value or - for a tombstone, @
// timestamp, ! expiry. For example n1:3[n2:4+n3:1]=foo@7!50
func parseRecord(s string) causal.Record {
	var sibs []causal.Sibling
	for _, part := range strings.Split(s, "|") {
		var sib causal.Sibling
		head, tail, _ := strings.Cut(part, "=")
		if dot, clock, ok := strings.Cut(head, "["); ok {
			head = dot
			for _, e := range strings.Split(strings.TrimSuffix(clock, "]"), "+") {
				d := parseDot(e)
				sib.Clock = append(sib.Clock, causal.Entry{Node: d.Node, Counter: d.Counter})
			}
		}
		if head != "" {
			sib.Dot = parseDot(head)
		}
		tail, expiry, _ := strings.Cut(tail, "!")
		value, ts, _ := strings.Cut(tail, "@")
		sib.ExpiresAt, _ = strconv.ParseInt(expiry, 10, 64)
		sib.Timestamp, _ = strconv.ParseUint(ts, 10, 64)
		if value == "-" {
			sib.Tombstone = true
		} else {
			sib.Value = []byte(value)
		}
		sibs = append(sibs, sib)
	}
	r, err := causal.NewRecord(sibs)
	if err != nil {
		panic(err)
	}
	return r
}

func parseDot(s string) causal.Dot {
	node, counter, _ := strings.Cut(s, ":")
	n, err := strconv.ParseUint(counter, 10, 64)
	if err != nil {
		panic(err)
	}
	return causal.Dot{Node: node, Counter: n}
}

func formatRecord(b []byte) string {
	r, err := causal.Decode(b)
	if err != nil {
		return err.Error()
	}
	var parts []string
	for _, s := range r.Siblings {
		p := ""
		if !s.Dot.IsZero() {
			p = fmt.Sprintf("%s:%d", s.Dot.Node, s.Dot.Counter)
		}
		if len(s.Clock) > 0 {
			var es []string
			for _, e := range s.Clock {
				es = append(es, fmt.Sprintf("%s:%d", e.Node, e.Counter))
			}
			p += "[" + strings.Join(es, "+") + "]"
		}
		if s.Tombstone {
			p += "=-"
		} else {
			p += "=" + string(s.Value)
		}
		if s.Timestamp != 0 {
			p += fmt.Sprintf("@%d", s.Timestamp)
		}
		if s.ExpiresAt != 0 {
			p += fmt.Sprintf("!%d", s.ExpiresAt)
		}
		parts = append(parts, p)
	}
	return strings.Join(parts, "|")
}

// shown prints an engine key as parseEntry reads it.
func shown(user []byte) string { return strings.ReplaceAll(string(user), "\x00", "/") }

// parseEntry reads "a#30 SET n1:3=foo", "a#20 DEL" or "b-d#20" (a range delete). A slash in a key is the
// separator of tenant and key.
func parseEntry(line string) entry {
	fields := strings.Fields(line)
	key, seqText, _ := strings.Cut(strings.ReplaceAll(fields[0], "/", "\x00"), "#")
	seq, err := strconv.ParseUint(seqText, 10, 56)
	if err != nil {
		panic(line)
	}
	if start, end, ok := strings.Cut(key, "-"); ok {
		return entry{k: ikey.Make([]byte(start), ikey.Seq(seq), ikey.KindRangeDelete), end: end}
	}
	switch fields[1] {
	case "DEL":
		return entry{k: ikey.Make([]byte(key), ikey.Seq(seq), ikey.KindDelete)}
	case "SET":
		return entry{k: ikey.Make([]byte(key), ikey.Seq(seq), ikey.KindSet), value: parseRecord(fields[2]).Encode(nil)}
	case "MERGE":
		return entry{k: ikey.Make([]byte(key), ikey.Seq(seq), ikey.KindMerge), value: parseRecord(fields[2]).Encode(nil)}
	}
	panic(line)
}

func (e entry) String() string {
	if e.end != "" {
		return fmt.Sprintf("%s-%s#%d", shown(e.k.User), shown([]byte(e.end)), e.k.Seq())
	}
	switch e.k.Kind() {
	case ikey.KindDelete:
		return fmt.Sprintf("%s#%d DEL", shown(e.k.User), e.k.Seq())
	case ikey.KindSet:
		return fmt.Sprintf("%s#%d SET %s", shown(e.k.User), e.k.Seq(), formatRecord(e.value))
	}
	return fmt.Sprintf("%s#%d MERGE %s", shown(e.k.User), e.k.Seq(), formatRecord(e.value))
}

func parseTables(text string) []table {
	var tables []table
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "":
		case line[0] == 'L':
			level, err := strconv.Atoi(line[1:])
			if err != nil {
				panic(line)
			}
			tables = append(tables, table{level: level})
		default:
			last := &tables[len(tables)-1]
			last.entries = append(last.entries, parseEntry(line))
		}
	}
	return tables
}
