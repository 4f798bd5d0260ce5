package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// OS is the file system of the operating system.
var OS FS = osFS{}

type osFS struct{}

// osFile embeds *os.File, which has Read, ReadAt, Close and Stat as they are needed.
type osFile struct{ *os.File }

// osError makes errors of full disks and quotas recognisable as ErrNoSpace.
func osError(err error) error {
	if err != nil && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

func osOpen(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := os.OpenFile(name, flag|unix.O_CLOEXEC, perm)
	if err != nil {
		return nil, osError(err)
	}
	return osFile{f}, nil
}

func (osFS) Create(name string, perm fs.FileMode) (File, error) {
	return osOpen(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, perm)
}

func (osFS) Open(name string) (File, error) { return osOpen(name, os.O_RDONLY, 0) }

func (osFS) OpenReadWrite(name string) (File, error) { return osOpen(name, os.O_RDWR, 0) }

func (osFS) OpenDir(name string) (File, error) {
	return osOpen(name, os.O_RDONLY|unix.O_DIRECTORY, 0)
}

func (osFS) OpenForeign(name string, seal bool) (File, error) {
	// O_NONBLOCK: opening a FIFO that somebody put there must not hang.
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, osError(err)
	}
	if err := checkForeign(f, seal); err != nil {
		return nil, errors.Join(fmt.Errorf("open foreign %s: %w", name, err), f.Close())
	}
	return osFile{f}, nil
}

func checkForeign(f *os.File, seal bool) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: not a regular file: %s", fs.ErrPermission, info.Mode().Type())
	}
	if !seal {
		return nil
	}
	// The kernel grants a read lease only when nobody has the file open for writing. It is asked for
	// again after the change of mode: whoever passed the permission check before the change and
	// opened meanwhile is seen now, and nobody can pass it any more.
	if err := readLease(f, unix.F_RDLCK); err != nil {
		return err
	}
	err = f.Chmod(0o440)
	if err == nil {
		err = readLease(f, unix.F_RDLCK)
	}
	return errors.Join(err, readLease(f, unix.F_UNLCK))
}

// readLease sets or drops the lease. ErrNoLeases stands for every answer but "somebody writes":
// file systems without leases (EINVAL, ENOTSUP), and files of another owner (EACCES).
func readLease(f *os.File, kind int) error {
	return control(f, func(fd int) error {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, kind)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EBUSY):
			return fmt.Errorf("%w: %w", ErrStillOpen, err)
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS),
			errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
			return fmt.Errorf("%w: %w", ErrNoLeases, err)
		}
		return err
	})
}

func (osFS) Remove(name string) error             { return osError(os.Remove(name)) }
func (osFS) RemoveAll(name string) error          { return osError(os.RemoveAll(name)) }
func (osFS) Rename(oldName, newName string) error { return osError(os.Rename(oldName, newName)) }
func (osFS) Link(oldName, newName string) error   { return osError(os.Link(oldName, newName)) }

func (osFS) MkdirAll(name string, perm fs.FileMode) error { return osError(os.MkdirAll(name, perm)) }

func (osFS) Stat(name string) (fs.FileInfo, error) { return os.Lstat(name) }

func (osFS) List(name string) ([]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, errors.Join(err, f.Close())
}

func (osFS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o660)
	if err != nil {
		return nil, osError(err)
	}
	err = control(f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrLocked
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), f.Close())
	}
	return f, nil
}

func (osFS) Usage(name string) (Usage, error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(name, &st) }); err != nil {
		return Usage{}, &fs.PathError{Op: "statfs", Path: name, Err: err}
	}
	unit := uint64(st.Frsize)
	used := st.Blocks - min(st.Bfree, st.Blocks)
	return Usage{TotalBytes: (used + st.Bavail) * unit, FreeBytes: st.Bavail * unit}, nil
}

func (f osFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	return n, osError(err)
}

// writeBehindBytes: a write that is so large belongs to a large file. The disk begins with it at once;
// otherwise all of the file waits for its Sync, and every small sync of another file, a commit log's, waits
// behind tens of megabytes.
const writeBehindBytes = 128 << 10

func (f osFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	if n >= writeBehindBytes {
		// Advice: Sync tells of errors.
		_ = control(f.File, func(fd int) error {
			return unix.SyncFileRange(fd, off, int64(n), unix.SYNC_FILE_RANGE_WRITE)
		})
	}
	return n, osError(err)
}

func (f osFile) Sync() error { return osError(f.File.Sync()) }

func (f osFile) SyncData() error {
	return f.op("fdatasync", unix.Fdatasync)
}

func (f osFile) Truncate(size int64) error { return osError(f.File.Truncate(size)) }

func (f osFile) Preallocate(size int64) error {
	info, err := f.Stat()
	if err != nil || size <= 0 {
		return err
	}
	err = f.op("fallocate", func(fd int) error { return unix.Fallocate(fd, 0, 0, size) })
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return f.fill(info.Size(), size)
	}
	return err
}

// fill takes space by writing zeros, where the file system cannot reserve it.
func (f osFile) fill(from, to int64) error {
	zeros := make([]byte, 1<<20)
	for off := from; off < to; {
		n, err := f.WriteAt(zeros[:min(int64(len(zeros)), to-off)], off)
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

func (f osFile) DontNeed(off, n int64) {
	// Advice: there is nothing to do about an error.
	_ = control(f.File, func(fd int) error { return unix.Fadvise(fd, off, n, unix.FADV_DONTNEED) })
}

// op runs a system call on the descriptor and dresses its error.
func (f osFile) op(name string, call func(fd int) error) error {
	if err := control(f.File, call); err != nil {
		return osError(&fs.PathError{Op: name, Path: f.Name(), Err: err})
	}
	return nil
}

// control runs call while the descriptor cannot be closed, again if a signal interrupted it.
func control(f *os.File, call func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	ctlErr := conn.Control(func(fd uintptr) {
		err = retry(func() error { return call(int(fd)) })
	})
	if ctlErr != nil {
		return ctlErr
	}
	return err
}

// retry repeats a call that a signal interrupted. A signal does not end a sync half-way with its
// error consumed, so repeating is safe for syncs too.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
