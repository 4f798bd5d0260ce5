package migrator

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// niceness has the kernel give a processor to the node first when both want it: a move may take longer, a
// request may not. It is a tenth of a node's share when there is no processor to spare, not nothing.
const niceness = 10

// giveWay lowers the priority of this process. Linux has one for each thread, and new ones inherit that of
// the thread that makes them, so it is for the begin of a process, whose threads are few.
func giveWay() error {
	const threads = "/proc/self/task"
	all, err := os.ReadDir(threads)
	if err != nil {
		return fmt.Errorf("lower the priority: %w", err)
	}
	for _, e := range all {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			return fmt.Errorf("lower the priority: %s: %w", threads, err)
		}
		if err := syscall.Setpriority(syscall.PRIO_PROCESS, id, niceness); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("lower the priority of thread %d: %w", id, err)
		}
	}
	return nil
}
