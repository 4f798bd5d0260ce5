package commitlog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"

	"github.com/pairdb/pairdb/libs/record"
	"github.com/pairdb/pairdb/libs/vfs"
)

// Recovered is what Replay found.
type Recovered struct {
	// Segments are those of the log, ascending; the last is the head. Those below the floor that
	// are still there come first; they were not read.
	Segments []Segment
	// End is where the log ends: the head and where it is cut. Zero: the log is empty.
	End Position
	// Clean says that the log was closed.
	Clean bool
	// TornBytes were cut from the head: written before a crash, never acknowledged.
	TornBytes int64
	// Frames and Bytes count the frames that were visited, and their payloads.
	Frames, Bytes int64

	synced int64    // proven by the head
	next   uint64   // larger than every number in the directory
	unused []uint64 // files that do not count
}

// Segment is a file of the log.
type Segment struct {
	Number uint64
	// Bytes is its length up to its last frame, not its size on disk.
	Bytes int64
}

// Replay reads the log in dir from segment floor on and hands every frame to visit, in order; the
// payload is valid during the call. floor must be a segment of the log; 0 and 1 stand for the whole
// log and accept an empty one. It changes nothing. progress, if not nil, is told the bytes done and
// their total (an upper bound, until they are equal).
//
// Damage is an ErrCorrupt with file and offset. Frames may have been visited before it is found: the
// caller throws them away.
func Replay(fsys vfs.FS, dir string, floor uint64, visit func(Frame) error, progress func(done, total int64)) (Recovered, error) {
	c := &chain{fs: fsys, dir: dir, floor: max(floor, 1)}
	if err := c.find(); err != nil {
		return Recovered{}, err
	}
	p := &pass{chain: c, visit: visit, progress: progress}
	for _, l := range c.links {
		if l.number >= c.floor {
			p.total += l.length
		}
	}
	for i, l := range c.links {
		if l.number < c.floor {
			p.found.Segments = append(p.found.Segments, Segment{Number: l.number, Bytes: l.length})
			continue
		}
		if err := p.read(l, i == len(c.links)-1); err != nil {
			return Recovered{}, err
		}
	}
	if p.progress != nil {
		p.progress(p.total, p.total)
	}
	p.found.next, p.found.unused = c.next, c.unused
	return p.found, nil
}

// link is a segment of the chain. length is known from the next one's header; the head's is its size.
type link struct {
	header
	length int64
}

// chain finds the segments that count (package comment, 3).
type chain struct {
	fs     vfs.FS
	dir    string
	floor  uint64
	next   uint64
	unused []uint64
	links  []link // ascending
}

func (c *chain) find() error {
	numbers, err := listSegments(c.fs, c.dir)
	if err != nil {
		return err
	}
	c.next = c.floor
	if len(numbers) > 0 {
		c.next = max(c.next, numbers[len(numbers)-1]+1)
	}
	// The head: the newest with a header.
	for i := len(numbers) - 1; i >= 0 && numbers[i] >= c.floor && len(c.links) == 0; i-- {
		if err := c.add(numbers[i], 0, true); err != nil {
			return err
		}
	}
	if err := c.follow(); err != nil {
		return err
	}
	slices.Reverse(c.links)
	if err := c.reachesFloor(); err != nil {
		return err
	}
	for _, n := range numbers {
		if !slices.ContainsFunc(c.links, func(l link) bool { return l.number == n }) {
			c.unused = append(c.unused, n)
		}
	}
	return nil
}

// follow adds the segments before the head. Those below the floor are wanted by nobody but followers:
// there the chain may end anywhere.
func (c *chain) follow() error {
	for len(c.links) > 0 {
		l := c.links[len(c.links)-1]
		if l.prev == 0 {
			return nil
		}
		err := c.add(l.prev, l.prevLength, false)
		if err != nil && l.prev < c.floor && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrCorrupt)) {
			return nil
		}
		if errors.Is(err, fs.ErrNotExist) {
			return c.corrupt(l.prev, 0, fmt.Sprintf("the file is missing; %s continues it", FileName(l.number)))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// add reads the header of a segment and adds it to the chain. Without one, a candidate for the head is
// passed over; any other segment is damaged. length 0: that of the file.
func (c *chain) add(number uint64, length int64, candidate bool) (err error) {
	f, size, err := openSized(c.fs, path.Join(c.dir, FileName(number)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if length == 0 {
		length = size
	}
	if length > size {
		return c.corrupt(number, size, fmt.Sprintf("the file ends here, its successor says at %d", length))
	}
	o := record.Options{File: path.Join(c.dir, FileName(number)), Epoch: uint32(number), Positions: true, Sealed: !candidate}
	h, payload, err := record.NewFileReader(f, length, o).Next()
	if candidate && (err == io.EOF || errors.Is(err, record.ErrTorn)) {
		return nil
	}
	if err != nil {
		return c.readError(number, 0, err)
	}
	head, err := decodeHeader(h.Type, payload, number)
	if errors.Is(err, ErrCorrupt) {
		return c.corrupt(number, 0, err.Error())
	}
	if err != nil {
		return fmt.Errorf("%s: %w", o.File, err)
	}
	c.links = append(c.links, link{header: head, length: length})
	return nil
}

// reachesFloor checks that nothing is missing between the floor and the first segment.
func (c *chain) reachesFloor() error {
	if c.floor == 1 || len(c.links) > 0 && (c.links[0].number <= c.floor || c.links[0].prev != 0) {
		return nil
	}
	return c.corrupt(c.floor, 0, "the log must begin with this segment, which is not there")
}

func (c *chain) corrupt(number uint64, offset int64, what string) error {
	return &CorruptionError{File: path.Join(c.dir, FileName(number)), Offset: offset, What: what}
}

// readError dresses an error of record.Reader that is no end.
func (c *chain) readError(number uint64, offset int64, err error) error {
	var bad *record.CorruptError
	switch {
	case errors.As(err, &bad):
		return c.corrupt(number, bad.Offset, bad.What)
	case err == io.EOF || errors.Is(err, record.ErrTorn) || errors.Is(err, io.ErrUnexpectedEOF):
		return c.corrupt(number, offset, "the segment ends too early")
	}
	return err
}

// pass visits the frames of the chain.
type pass struct {
	*chain
	visit       func(Frame) error
	progress    func(done, total int64)
	done, total int64
	found       Recovered
}

// progressBytes is how often progress is told: a hundred times in a segment or so.
const progressBytes = 1 << 20

func (p *pass) read(l link, isHead bool) (err error) {
	name := path.Join(p.dir, FileName(l.number))
	f, err := p.fs.Open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	r := record.NewFileReader(f, l.length, record.Options{File: name, Epoch: uint32(l.number), Positions: true, Sealed: !isHead})
	told, closed := int64(0), false
	for !closed {
		start := r.Offset()
		h, payload, err := r.Next()
		if err == io.EOF || isHead && errors.Is(err, record.ErrTorn) {
			break
		}
		if err != nil {
			return p.readError(l.number, start, err)
		}
		if closed, err = p.frame(l, h, payload, start, r.Offset()); err != nil {
			return err
		}
		if r.Offset()-told >= progressBytes && p.progress != nil {
			told = r.Offset()
			p.progress(p.done+told, p.total)
		}
	}
	if closed && !isHead && r.Offset() != l.length {
		return p.corrupt(l.number, r.Offset(), "frames behind the end of the segment")
	}
	p.done += l.length
	p.found.Segments = append(p.found.Segments, Segment{Number: l.number, Bytes: r.Offset()})
	if isHead {
		p.found.End = Position{Segment: l.number, Offset: r.Offset()}
		p.found.Clean, p.found.TornBytes, p.found.synced = closed, r.TornBytes(), r.Synced()
	}
	return nil
}

// frame handles one frame; closed says that it is the last.
func (p *pass) frame(l link, h record.Header, payload []byte, start, end int64) (closed bool, err error) {
	switch {
	case start == 0:
		again, err := decodeHeader(h.Type, payload, l.number)
		if err != nil || again != l.header {
			return false, p.corrupt(l.number, 0, "the header has changed while it was read")
		}
		return false, nil
	case h.Type == typeClose:
		return true, nil
	case h.Type == 0 || h.Type > MaxOwnerType:
		return false, fmt.Errorf("%w: %s: offset %d: frame of type %d: use a newer release",
			ErrUnknownFormat, path.Join(p.dir, FileName(l.number)), start, h.Type)
	}
	p.found.Frames++
	p.found.Bytes += int64(len(payload))
	return false, p.visit(Frame{
		Type: h.Type, Payload: payload,
		Start: Position{l.number, start}, End: Position{l.number, end},
	})
}

// listSegments returns the numbers of the segment files in dir, ascending; none if there is no dir.
func listSegments(fsys vfs.FS, dir string) ([]uint64, error) {
	names, err := fsys.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var numbers []uint64
	for _, name := range names {
		if n, ok := ParseFileName(name); ok {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers) // names with more digits sort differently
	return numbers, err
}

func openSized(fsys vfs.FS, name string) (vfs.File, int64, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}
