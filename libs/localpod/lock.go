package localpod

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// ErrInUse says that other local pods run in the directory.
var ErrInUse = errors.New("directory is in use by another local pod")

// LockDir takes a directory of local pods until the returned value is closed or the process ends.
func LockDir(dir string) (io.Closer, error) {
	f, err := os.OpenFile(filepath.Join(dir, "localpod.lock"), os.O_CREATE|os.O_RDWR, 0o660)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", dir, ErrInUse)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}
