package outbox

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

	"github.com/pairdb/pairdb/libs/record"
	"github.com/pairdb/pairdb/libs/vfs"
)

const (
	fileName = "events"
	lockName = "LOCK"
	dirPerm  = 0o770
	filePerm = 0o660
	// maxFileBytes bounds what is read at the start: the bytes that may wait, and as much again that
	// is done with and was not tidied away.
	maxFileBytes = 4 * maxBytes
)

// file is the file of an outbox, open for appending. It is for one goroutine.
type file struct {
	fs   vfs.FS
	name string
	f    vfs.File
	// size is where the next frame goes, synced how much of it is durable.
	size, synced int64
}

// readFile returns the bytes of the file; none if there is no file.
func readFile(fsys vfs.FS, name string) ([]byte, error) {
	f, err := fsys.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFileBytes))
	return b, errors.Join(err, f.Close())
}

// appendFrame appends a frame that will stand at the end of b, which begins at the offset base.
func appendFrame(b []byte, typ uint8, base, synced int64, payload []byte) []byte {
	return record.Append(b, record.Header{
		Epoch: epoch, Type: typ, Synced: uint64(synced), Position: uint64(base + int64(len(b))),
	}, payload)
}

// writeFile replaces the file durably by one with these frames, and opens it. After an error there is
// the old one or the new one.
func writeFile(fsys vfs.FS, dir string, frames []byte) (*file, error) {
	out := &file{fs: fsys, name: path.Join(dir, fileName), size: int64(len(frames)), synced: int64(len(frames))}
	if err := vfs.WriteFile(fsys, out.name, frames, filePerm); err != nil {
		return nil, fmt.Errorf("write %s: %w", out.name, err)
	}
	var err error
	if out.f, err = fsys.OpenReadWrite(out.name); err != nil {
		return nil, err
	}
	return out, nil
}

// append writes frames that were made for the end of the file.
func (f *file) append(frames []byte) error {
	if _, err := f.f.WriteAt(frames, f.size); err != nil {
		return fmt.Errorf("write %s: %w", f.name, err)
	}
	f.size += int64(len(frames))
	return nil
}

// sync makes what was appended durable.
func (f *file) sync() error {
	if f.synced == f.size {
		return nil
	}
	if err := f.f.SyncData(); err != nil {
		return fmt.Errorf("sync %s: %w", f.name, err)
	}
	f.synced = f.size
	return nil
}

func (f *file) close() error { return f.f.Close() }
