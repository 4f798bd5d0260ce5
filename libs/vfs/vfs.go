// Package vfs is the file system as a database needs it: few operations, with durability spelled
// out. It never hides a failed sync.
//
// The engine, the compactor and every tool reach files through FS only, so that tests can replace
// the disk by one that crashes (crashfs) or fails (errorfs). OS is the real one, Mem keeps
// everything in memory.
//
// Durability, the contract that all implementations share:
//
//   - Bytes written to a file survive a crash after Sync or SyncData of that file returned nil.
//     Unsynced writes may survive whole, in part, or in any order.
//   - A name (created, renamed, linked or removed) survives after Sync of its directory (OpenDir).
//     Until then a renamed file may be found under its old name, its new one, or both.
//   - After Sync or SyncData returned an error, nothing is known about the unsynced bytes. Callers
//     must not retry and believe.
package vfs

import (
	"errors"
	"io"
	"io/fs"
)

// File is an open file or directory. Methods may be called from several goroutines as long as
// writes do not overlap.
type File interface {
	io.Reader
	io.ReaderAt
	io.Writer
	io.WriterAt
	io.Closer
	// Sync makes content and metadata durable (fsync).
	Sync() error
	// SyncData makes content durable, and the metadata that is needed to read it (fdatasync).
	SyncData() error
	// Preallocate makes sure that writes into [0, size) do not fail for want of space, and extends
	// the file to size; the new bytes read as zero.
	Preallocate(size int64) error
	// Truncate sets the size.
	Truncate(size int64) error
	// Stat describes the file.
	Stat() (fs.FileInfo, error)
	// DontNeed tells the kernel that [off, off+n) of the page cache will not be read again. It is
	// advice: it cannot fail.
	DontNeed(off, n int64)
	// Map maps [0, size) for reading; the file must not be shorter and is never changed while it
	// is mapped. The mapping outlives the file's Close. ErrNotMapped says that this file cannot be.
	Map(size int64) (Mapping, error)
}

// Mapping is a file in memory. Reading a page that the disk cannot give is a fault: the reader has
// runtime/debug.SetPanicOnFault set and recovers. Nobody touches Bytes after Close.
type Mapping interface {
	io.Closer
	// Bytes are the mapped bytes; nobody may write to them.
	Bytes() []byte
	// ResidentBytes says how many of them are in the page cache now.
	ResidentBytes() (int64, error)
	// Populate enters what is in the page cache into the page tables, so that the first access
	// does not fault; what is not there is read from disk.
	Populate() error
}

// Usage is the space of the file system that holds a directory, in bytes, as df counts it: what is kept
// for root, or held back by a quota, belongs to neither.
type Usage struct {
	TotalBytes, FreeBytes uint64
}

// FS is a file system. Names are paths with slashes. Errors satisfy errors.Is with fs.ErrNotExist,
// fs.ErrExist and fs.ErrPermission, and with ErrNoSpace.
type FS interface {
	// Create makes an empty file for reading and writing; it truncates an existing one.
	Create(name string, perm fs.FileMode) (File, error)
	// Open opens for reading.
	Open(name string) (File, error)
	// OpenReadWrite opens an existing file for reading and writing, without truncating it.
	OpenReadWrite(name string) (File, error)
	// OpenForeign opens for reading a file that another process wrote: it must be a regular file
	// and is opened without following a symbolic link. With seal, the file must not be open for
	// writing anywhere (ErrStillOpen otherwise) and its mode becomes 0440 before OpenForeign
	// returns, so that nobody can open it for writing again; ErrNoLeases says that this file
	// system cannot tell: copy the file instead.
	OpenForeign(name string, seal bool) (File, error)
	// OpenDir opens a directory to Sync it.
	OpenDir(name string) (File, error)
	// Remove removes a file or an empty directory.
	Remove(name string) error
	// RemoveAll removes a tree; it is no error if there is none.
	RemoveAll(name string) error
	// Rename replaces newName by oldName atomically.
	Rename(oldName, newName string) error
	// Link gives a file a second name.
	Link(oldName, newName string) error
	// MkdirAll makes a directory and its parents.
	MkdirAll(name string, perm fs.FileMode) error
	// List returns the names in a directory, sorted.
	List(name string) ([]string, error)
	// Stat describes a name; it does not follow a symbolic link.
	Stat(name string) (fs.FileInfo, error)
	// Lock takes the exclusive lock of a file, created if needed, until the returned value is
	// closed or the process ends. ErrLocked says that another holder has it.
	Lock(name string) (io.Closer, error)
	// Usage returns the space of the file system that holds name.
	Usage(name string) (Usage, error)
}

var (
	// ErrNoSpace says that the disk or a quota is full (ENOSPC, EDQUOT).
	ErrNoSpace = errors.New("no space left on device")
	// ErrLocked says that another process holds the lock.
	ErrLocked = errors.New("locked by another process")
	// ErrStillOpen says that a foreign file is still open for writing.
	ErrStillOpen = errors.New("file is still open for writing")
	// ErrNotMapped says that a file, or its file system, cannot be mapped: read it with ReadAt.
	ErrNotMapped = errors.New("file can't be mapped")
	// ErrNoLeases says that the file system does not support leases.
	ErrNoLeases = errors.New("file system does not support leases")
)
