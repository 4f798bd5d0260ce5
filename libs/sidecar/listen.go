package sidecar

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// socketPerm lets the pod's group dial; dialing needs write permission.
const socketPerm = 0o660

// maxPathBytes is what a unix socket's address holds (108 with its final zero), less the suffix
// that Listen uses for a moment.
const maxPathBytes = 107 - len(newSuffix)

const newSuffix = ".new"

var (
	// ErrInUse says that another process serves the socket.
	ErrInUse = errors.New("socket is served by another process")
	// ErrNotSocket says that the path is something else than a socket; it is left alone.
	ErrNotSocket = errors.New("path is not a socket")
)

// Listen makes the socket at path with mode 0660 and listens. A socket file that nobody serves is
// replaced; one that is served is ErrInUse, anything else there is ErrNotSocket. The caller holds
// the data directory's lock, so two nodes never race for one path. Closing the listener removes the
// socket, unless it has become another one meanwhile.
func Listen(path string) (net.Listener, error) {
	if len(path) > maxPathBytes {
		return nil, fmt.Errorf("listen on %s: the path has %d bytes, a socket's at most %d", path, len(path), maxPathBytes)
	}
	if err := clear(path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// Made under another name and renamed when its mode is right: whoever sees the socket may
	// dial it, whatever the umask, and a stale one is replaced without a gap.
	temporary := path + newSuffix
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // it would remove the temporary name
	info, err := place(temporary, path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, errors.Join(err, l.Close(), os.Remove(temporary)))
	}
	return &listener{UnixListener: l, path: path, info: info}, nil
}

// clear makes sure that path is free or a stale socket.
func clear(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return ErrNotSocket
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		return errors.Join(ErrInUse, conn.Close())
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrInUse, err)
}

// place gives the new socket its mode and its name.
func place(from, to string) (fs.FileInfo, error) {
	if err := os.Chmod(from, socketPerm); err != nil {
		return nil, err
	}
	info, err := os.Lstat(from)
	if err != nil {
		return nil, err
	}
	return info, os.Rename(from, to)
}

type listener struct {
	*net.UnixListener
	path string
	info fs.FileInfo
	once sync.Once
	err  error
}

// Addr names the path that people dial.
func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Close stops listening and removes the socket if it is still this one.
func (l *listener) Close() error {
	l.once.Do(func() {
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.info) {
			l.err = os.Remove(l.path)
		}
		l.err = errors.Join(l.err, l.UnixListener.Close())
	})
	return l.err
}
