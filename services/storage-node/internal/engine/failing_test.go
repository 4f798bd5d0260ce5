package engine

import (
	"errors"
	"io/fs"
	"strings"
	"sync/atomic"

	"github.com/pairdb/pairdb/libs/vfs"
)

// failingCreate fails every creation of a file whose name contains match, while on.
type failingCreate struct {
	vfs.FS
	match string
	on    atomic.Bool
}

var errInjected = errors.New("injected")

func (f *failingCreate) Create(name string, perm fs.FileMode) (vfs.File, error) {
	if f.on.Load() && strings.Contains(name, f.match) {
		return nil, errInjected
	}
	return f.FS.Create(name, perm)
}
