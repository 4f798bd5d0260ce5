package crashfs

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"

	"github.com/pairdb/pairdb/libs/vfs/internal/sparse"
)

// Mode says what a power cut leaves of what was not synced.
type Mode uint8

const (
	// DropUnsynced leaves nothing of it.
	DropUnsynced Mode = iota
	// KeepAll leaves all of it.
	KeepAll
	// NamesWithoutData leaves all names and no bytes: files that were never synced are empty.
	NamesWithoutData
	// DataWithoutNames leaves all bytes and no names.
	DataWithoutNames
	// TornPrefix leaves, of each file and each directory, the operations up to some moment; the last
	// write is cut at a sector.
	TornPrefix
	// RandomSectors leaves any sectors of the writes, and names up to some moment.
	RandomSectors
	// ReorderedNames leaves any of the changes of names, and no bytes.
	ReorderedNames
	// RandomEverything leaves any sectors and any names.
	RandomEverything

	modeCount
)

var modeNames = [modeCount]string{"drop-unsynced", "keep-all", "names-without-data", "data-without-names",
	"torn-prefix", "random-sectors", "reordered-names", "random-everything"}

func (m Mode) String() string {
	if m < modeCount {
		return modeNames[m]
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// Modes returns all modes.
func Modes() []Mode {
	all := make([]Mode, modeCount)
	for i := range all {
		all[i] = Mode(i)
	}
	return all
}

// sectorBytes is what a disk writes as a whole.
const sectorBytes = 512

// CrashImage returns the file system as it might be found after a power cut now. It is independent of
// f, everything in it is durable, and nobody holds a lock.
func (f *FS) CrashImage(mode Mode, rng *rand.Rand) *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	im := &imager{mode: mode, rng: rng, to: New(), paths: map[*inode]string{}, kept: map[*nameChange]bool{}}
	im.chooseNames(f.root, map[*inode]bool{})
	im.directory(f.root, "/")
	if usage, err := f.mem.Usage("/"); err == nil {
		im.to.SetUsage(usage)
	}
	for _, n := range im.to.inodes {
		for _, c := range n.changes {
			n.apply(c)
		}
		for _, c := range n.names {
			c.apply()
		}
		n.changes, n.names = nil, nil
	}
	im.to.index = 0
	return im.to
}

type imager struct {
	mode  Mode
	rng   *rand.Rand
	to    *FS
	paths map[*inode]string // files that are in the image
	kept  map[*nameChange]bool
}

// chooseNames decides which changes of names survive, in n and every directory that may be below it.
func (im *imager) chooseNames(n *inode, seen map[*inode]bool) {
	if seen[n] {
		return
	}
	seen[n] = true
	prefix := im.rng.IntN(len(n.names) + 1)
	for i, c := range n.names {
		keep := false
		switch im.mode {
		case KeepAll, NamesWithoutData:
			keep = true
		case TornPrefix, RandomSectors:
			keep = i < prefix
		case ReorderedNames, RandomEverything:
			keep = im.rng.IntN(2) == 0
		}
		im.kept[c] = keep || im.kept[c] // another directory may need it
	}
	for i := len(n.names) - 1; i >= 0; i-- {
		im.keepRename(n.names, i)
	}
	for _, name := range slices.Sorted(maps.Keys(n.entries)) {
		if child := n.entries[name]; child.entries != nil {
			im.chooseNames(child, seen)
		}
	}
	for _, c := range n.names {
		if c.node != nil && c.node.entries != nil {
			im.chooseNames(c.node, seen)
		}
	}
}

// keepRename keeps what a surviving change needs, so that no file is lost under both names: the new
// name of a rename with the removal of the old one, and the whole rename with whatever took the old
// name afterwards.
func (im *imager) keepRename(names []*nameChange, i int) {
	c := names[i]
	if !im.kept[c] {
		return
	}
	if c.after != nil {
		im.kept[c.after] = true
	}
	for _, earlier := range names[:i] {
		if earlier.name == c.name && earlier.after != nil {
			im.kept[earlier], im.kept[earlier.after] = true, true
		}
	}
}

// directory writes the surviving content of a directory into the image.
func (im *imager) directory(n *inode, at string) {
	entries := maps.Clone(n.entries)
	for _, c := range n.names {
		switch {
		case c.done || !im.kept[c]:
		case c.node == nil:
			delete(entries, c.name)
		default:
			entries[c.name] = c.node
		}
	}
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		child, childPath := entries[name], path.Join(at, name)
		if child.entries == nil {
			im.file(child, childPath)
			continue
		}
		must(im.to.MkdirAll(childPath, child.mode.Perm()))
		im.directory(child, childPath)
	}
}

func (im *imager) file(n *inode, at string) {
	if first, ok := im.paths[n]; ok {
		must(im.to.Link(first, at))
		return
	}
	im.paths[n] = at
	content := im.content(n)
	out, err := im.to.Create(at, n.mode.Perm())
	must(err)
	content.Extents(func(p []byte, off int64) {
		_, err := out.WriteAt(p, off)
		must(err)
	})
	must(out.Truncate(content.Size()))
	must(out.Close())
}

// content is what survives of a file.
func (im *imager) content(n *inode) *sparse.Bytes {
	out := &inode{durable: *n.durable.Clone()}
	switch im.mode {
	case KeepAll, DataWithoutNames:
		for _, c := range n.changes {
			out.apply(c)
		}
	case TornPrefix:
		keep := im.rng.IntN(len(n.changes) + 1)
		for _, c := range n.changes[:keep] {
			out.apply(c)
		}
		if keep < len(n.changes) && n.changes[keep].data != nil {
			c := n.changes[keep]
			if end := im.sectorEnd(c); end > 0 {
				out.apply(change{off: c.off, data: c.data[:end]})
			}
		}
	case RandomSectors, RandomEverything:
		for _, c := range n.changes {
			im.sectors(out, c)
		}
	}
	return &out.durable
}

// sectorEnd picks where a torn write ends: at a sector of the file.
func (im *imager) sectorEnd(c change) int {
	end := im.rng.IntN(len(c.data) + 1)
	end -= int((c.off + int64(end)) % sectorBytes)
	return max(end, 0)
}

// sectors applies any of the sectors of a write, or a change of size or not.
func (im *imager) sectors(out *inode, c change) {
	if c.data == nil {
		if im.rng.IntN(2) == 0 {
			out.apply(c)
		}
		return
	}
	for at := 0; at < len(c.data); {
		n := min(len(c.data)-at, sectorBytes-int((c.off+int64(at))%sectorBytes))
		if im.rng.IntN(2) == 0 {
			out.apply(change{off: c.off + int64(at), data: c.data[at : at+n]})
		}
		at += n
	}
}

// must is for operations on the image, which can't fail unless this package is wrong.
func must(err error) {
	if err != nil {
		panic("crashfs: " + err.Error())
	}
}
