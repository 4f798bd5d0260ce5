package manifest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"path"

	"github.com/pairdb/pairdb/libs/record"
	"github.com/pairdb/pairdb/libs/vfs"
)

// A manifest file is a header of 32 bytes, then frames of libs/record whose epoch is the number of
// the file and that are bound to their positions.
const (
	headerBytes   = 32
	headerMagic   = "pdbmanif"
	formatVersion = 1

	frameEdit = 1
	frameSeal = 2 // nothing but the proof that what stands before it was durable

	maxFileBytes = 1 << 30
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendHeader(dst []byte, number uint64) []byte {
	at := len(dst)
	dst = append(dst, headerMagic...)
	dst = binary.LittleEndian.AppendUint32(dst, formatVersion)
	dst = binary.LittleEndian.AppendUint32(dst, 0) // key id: 0 is not encrypted
	dst = binary.LittleEndian.AppendUint64(dst, number)
	dst = binary.LittleEndian.AppendUint32(dst, 0)
	return binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[at:], castagnoli))
}

func checkHeader(b []byte, number uint64) error {
	if len(b) < headerBytes {
		return corrupt(fileName(number), 0, fmt.Errorf("%d bytes, no header", len(b)))
	}
	b = b[:headerBytes]
	if string(b[:8]) != headerMagic || crc32.Checksum(b[:28], castagnoli) != binary.LittleEndian.Uint32(b[28:]) {
		return corrupt(fileName(number), 0, errors.New("bad header"))
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != formatVersion {
		return fmt.Errorf("%w: %s has version %d, %d is known", ErrUnknownFormat, fileName(number), v, formatVersion)
	}
	if k := binary.LittleEndian.Uint32(b[12:]); k != 0 {
		return fmt.Errorf("%w: %s is encrypted with key %d", ErrUnknownFormat, fileName(number), k)
	}
	if n := binary.LittleEndian.Uint64(b[16:]); n != number {
		return corrupt(fileName(number), 16, fmt.Errorf("it was written as %s", fileName(n)))
	}
	return nil
}

// appendFrame appends the frame that stands at offset of the file.
func appendFrame(dst []byte, number uint64, offset, synced int64, frameType uint8, payload []byte) []byte {
	h := record.Header{Epoch: uint32(number), Synced: uint64(synced), Type: frameType, Position: uint64(offset)}
	return record.Append(dst, h, payload)
}

// append adds a frame to the current file and syncs it.
func (s *Set) append(frameType uint8, payload []byte) error {
	if len(payload) > maxEditBytes {
		return fmt.Errorf("%w: %d bytes, the limit is %d", ErrInvalidEdit, len(payload), maxEditBytes)
	}
	s.buf = appendFrame(s.buf[:0], s.marker.file, s.size, s.size, frameType, payload)
	if _, err := s.f.WriteAt(s.buf, s.size); err != nil {
		return s.undo(fmt.Errorf("write %s: %w", fileName(s.marker.file), err))
	}
	if err := s.f.SyncData(); err != nil {
		return s.poison(fmt.Errorf("sync %s: %w", fileName(s.marker.file), err))
	}
	s.size += int64(len(s.buf))
	return nil
}

// undo takes back a write that failed for want of space: nothing of it was synced, so a shorter file
// that is synced proves that it is gone. Every other failure poisons.
func (s *Set) undo(err error) error {
	if !errors.Is(err, vfs.ErrNoSpace) {
		return s.poison(err)
	}
	if undoErr := s.f.Truncate(s.size); undoErr != nil {
		return s.poison(errors.Join(err, undoErr))
	}
	if undoErr := s.f.Sync(); undoErr != nil {
		return s.poison(errors.Join(err, undoErr))
	}
	return err
}

// roll continues in a new file (package comment, 5). After vfs.ErrNoSpace without poison nothing
// has changed.
func (s *Set) roll(m marker) error {
	f, size, err := s.writeState(m.file)
	if err != nil {
		return err
	}
	// (3), (4): from here on the new file counts, or it is not known which one does.
	if err := writeMarker(s.fs, s.dir, m); err != nil {
		err = fmt.Errorf("write %s: %w", m.name(), errors.Join(err, f.Close()))
		return s.withdraw(m, err)
	}
	old := s.f
	s.f, s.size, s.base, s.marker = f, size, size, m
	s.rollAt = max(s.opts.MaxFileBytes, 4*s.base)
	if old != nil {
		if err := old.Close(); err != nil {
			return s.poison(fmt.Errorf("close the manifest: %w", err))
		}
	}
	// (5)
	l, err := list(s.fs, s.dir)
	if err == nil {
		err = removeStale(s.fs, s.dir, l, m)
	}
	if err != nil && !errors.Is(err, vfs.ErrNoSpace) { // some file systems need space to remove a name
		return s.poison(fmt.Errorf("remove the old manifest: %w", err))
	}
	return nil
}

// writeState does steps (1) and (2): the whole state in a file of its own, durable.
func (s *Set) writeState(number uint64) (vfs.File, int64, error) {
	b := appendHeader(nil, number)
	edits := s.state.snapshot(s.current.Load())
	for i, e := range edits {
		part := snapshotMore
		if i == len(edits)-1 {
			part = snapshotLast
			e.NextFile = max(e.NextFile, s.nextFile.Load())
		}
		b = appendFrame(b, number, int64(len(b)), 0, frameEdit, e.encode(nil, part))
	}
	name := path.Join(s.dir, fileName(number))
	f, err := s.fs.Create(name, filePerm)
	if err != nil {
		return nil, 0, s.poisonUnlessFull(fmt.Errorf("create %s: %w", fileName(number), err))
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		err = errors.Join(fmt.Errorf("write %s: %w", fileName(number), err), f.Close(), s.fs.Remove(name))
		return nil, 0, s.poisonUnlessFull(err)
	}
	if err := f.Sync(); err != nil {
		return nil, 0, s.poison(fmt.Errorf("sync %s: %w", fileName(number), errors.Join(err, f.Close())))
	}
	if err := vfs.SyncDir(s.fs, s.dir); err != nil {
		return nil, 0, s.poison(errors.Join(err, f.Close()))
	}
	return f, int64(len(b)), nil
}

func (s *Set) poisonUnlessFull(err error) error {
	if errors.Is(err, vfs.ErrNoSpace) {
		return err
	}
	return s.poison(err)
}

// withdraw takes back a marker that could not be written for want of space; if that works, the old
// file still counts.
func (s *Set) withdraw(m marker, err error) error {
	if !errors.Is(err, vfs.ErrNoSpace) {
		return s.poison(err)
	}
	for _, name := range []string{m.name(), fileName(m.file)} {
		if rmErr := s.fs.Remove(path.Join(s.dir, name)); rmErr != nil && !isNotExist(rmErr) {
			return s.poison(errors.Join(err, rmErr))
		}
		if syncErr := vfs.SyncDir(s.fs, s.dir); syncErr != nil {
			return s.poison(errors.Join(err, syncErr))
		}
	}
	return err
}

// resume continues in the file that was read, when there is no space for a new one.
func (s *Set) resume(found *loaded) error {
	f, err := s.fs.OpenReadWrite(path.Join(s.dir, fileName(s.marker.file)))
	if err != nil {
		return err
	}
	if found.torn > 0 {
		if err := f.Truncate(found.size); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	s.f, s.size, s.base = f, found.size, found.size
	s.rollAt = s.size
	return nil
}
