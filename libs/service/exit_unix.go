package service

import (
	"errors"
	"syscall"
)

// isDiskError reports whether err is the operating system's word for a disk that does not work.
func isDiskError(err error) bool {
	for _, e := range []syscall.Errno{syscall.EIO, syscall.EROFS, syscall.ENOSPC, syscall.EDQUOT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
