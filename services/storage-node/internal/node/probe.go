package node

import (
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/pairdb/pairdb/libs/vfs"
)

const (
	// probeEvery: a sync of an idle disk takes milliseconds, so the test costs nothing, and three of them
	// come within the time in which a client gives up.
	probeEvery = 10 * time.Second
	// probeFile is made and removed again; one that a crash left is overwritten.
	probeFile = "PROBE"
)

// probeLoop tests the data directory from time to time, once it is this process's, until stop is closed.
// It has a goroutine of its own: each step may hang with the disk.
func (n *Node) probeLoop(stop <-chan struct{}) {
	select {
	case <-n.locked:
	case <-stop:
		return
	}
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		n.probe()
		select {
		case <-tick.C:
		case <-stop:
			return
		}
	}
}

// probe does one test and notes how it went.
func (n *Node) probe() {
	n.state.set(func(s *state) { s.probing = time.Now() })
	err := writeTest(n.fs, n.cfg.DataDir)
	failed := ""
	if err != nil {
		failed = fmt.Sprintf("the data directory can't be written to: %v", err)
	}
	var before string
	n.state.set(func(s *state) {
		before, s.probeFailed, s.probing = s.probeFailed, failed, time.Time{}
	})
	switch {
	case before == failed:
	case failed != "":
		n.log.Error("data directory", "error", err)
	default:
		n.log.Info("data directory works again")
	}
}

// writeTest makes, writes, syncs and removes a file. A full disk is no failure of the directory: reads go
// on, and what it means for writes is the engine's to say.
func writeTest(fsys vfs.FS, dir string) error {
	name := path.Join(dir, probeFile)
	f, err := fsys.Create(name, filePerm)
	if err == nil {
		_, err = f.Write([]byte("pairdb\n"))
		if err == nil {
			err = f.Sync()
		}
		err = errors.Join(err, f.Close(), fsys.Remove(name))
	}
	if errors.Is(err, vfs.ErrNoSpace) {
		return nil
	}
	return err
}
