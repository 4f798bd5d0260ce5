package worker

import (
	"errors"
	"sync"

	"github.com/pairdb/pairdb/libs/vfs"
)

// dropBytes is how much of an input is read before its pages are given up: large enough that the
// calls do not show, small enough that a merge of gigabytes leaves the node's page cache alone.
const dropBytes = 4 << 20

// files are the open files of an attempt. Whatever ends it, all are closed.
type files struct {
	mu   sync.Mutex
	open []*file
}

// add takes f over; it passes err through.
func (fs *files) add(f vfs.File, err error, input bool) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	w := &file{File: f, input: input}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.open = append(fs.open, w)
	return w, nil
}

// close closes what the merge has not closed.
func (fs *files) close() error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	var errs []error
	for _, f := range fs.open {
		errs = append(errs, f.Close())
	}
	fs.open = nil
	return errors.Join(errs...)
}

// file closes once and, for an input, gives up the pages that were read.
type file struct {
	vfs.File
	input bool

	once sync.Once
	err  error

	mu   sync.Mutex
	read int64 // bytes since the pages were given up
	end  int64 // furthest byte that was read
}

// ReadAt reads and now and then tells the kernel that it will not read here again.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	if !f.input {
		return n, err
	}
	f.mu.Lock()
	f.read += int64(n)
	f.end = max(f.end, off+int64(n))
	drop, end := f.read >= dropBytes, f.end
	if drop {
		f.read = 0
	}
	f.mu.Unlock()
	if drop {
		f.DontNeed(0, end)
	}
	return n, err
}

// Close closes the file once; an input leaves no pages behind.
func (f *file) Close() error {
	f.once.Do(func() {
		if f.input {
			f.mu.Lock()
			f.DontNeed(0, f.end)
			f.mu.Unlock()
		}
		f.err = f.File.Close()
	})
	return f.err
}
