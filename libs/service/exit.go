package service

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/pairdb/pairdb/libs/vfs"
)

// Exit codes of every binary. They are documented in docs/CONFIGURATION.md, which is generated
// from ExitCodes.
const (
	// ExitOK is a clean end.
	ExitOK = 0
	// ExitRuntime is a failure while running that no other code names.
	ExitRuntime = 1
	// ExitUsage is a wrong command line or configuration.
	ExitUsage = 2
	// ExitLocked is a data directory that belongs to another process or another node.
	ExitLocked = 3
	// ExitCorrupt is damaged data, or data of a newer format than this binary reads.
	ExitCorrupt = 4
	// ExitDisk is a disk that is full, read-only, not permitted or failing.
	ExitDisk = 5
	// ExitUnreachable is a server, socket or peer that does not answer.
	ExitUnreachable = 6
)

// ExitCodes is the table of exit codes for people.
var ExitCodes = []struct {
	Code    int
	Meaning string
}{
	{ExitOK, "clean end"},
	{ExitRuntime, "failure while running"},
	{ExitUsage, "wrong command line or configuration"},
	{ExitLocked, "the data directory is in use by another process, or belongs to another node"},
	{ExitCorrupt, "data is damaged, or of a newer format than this binary reads"},
	{ExitDisk, "the disk is full, read-only, not permitted or failing"},
	{ExitUnreachable, "a server, socket or peer does not answer"},
}

// codedError is an error that names the exit code of the process.
type codedError struct {
	code int
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

// WithExitCode gives err an exit code. The innermost code counts: what is nearest to the cause
// knows best. It returns nil for nil.
func WithExitCode(code int, err error) error {
	if err == nil {
		return nil
	}
	var coded *codedError
	if errors.As(err, &coded) {
		return err
	}
	return &codedError{code, err}
}

// ExitCode returns the exit code for the error that ended a program: what WithExitCode said, or
// what the error of the file system means.
func ExitCode(err error) int {
	var coded *codedError
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &coded):
		return coded.code
	case errors.Is(err, vfs.ErrLocked):
		return ExitLocked
	case errors.Is(err, vfs.ErrNoSpace), errors.Is(err, fs.ErrPermission), isDiskError(err):
		return ExitDisk
	}
	return ExitRuntime
}

// exitCodeTable renders ExitCodes with the given line format.
func exitCodeTable(line func(code int, meaning string) string) string {
	var b strings.Builder
	for _, c := range ExitCodes {
		b.WriteString(line(c.Code, c.Meaning))
	}
	return b.String()
}
