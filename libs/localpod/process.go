package localpod

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Restarts of a process that died: doubling from the first to the last.
const (
	firstRestart = 100 * time.Millisecond
	lastRestart  = 5 * time.Second
	// A process that ran this long starts the back-off anew.
	healthyAfter = time.Second
	// A process that ignores SIGTERM this long is killed.
	stopTimeout = 30 * time.Second
)

// firstFatalExit to lastFatalExit are the documented exit codes of a process that would fail the
// same way again: wrong configuration, locked, foreign or damaged data directory.
const (
	firstFatalExit = 2
	lastFatalExit  = 5
)

// Process is a program that is started again when it dies, as a kubelet would.
type Process struct {
	path, label string
	prefix      func() []string // in front of the path; nil: nothing
	env         []string
	log         *prefixer
	fatal       func(error)

	mu       sync.Mutex
	cmd      *exec.Cmd     // guarded by mu; nil when not running
	stopping chan struct{} // guarded by mu; closed by Stop
	stopped  chan struct{} // guarded by mu; closed when the supervisor has ended
	restarts int           // guarded by mu
	broken   error         // guarded by mu; why the supervisor has ended by itself
}

// SetEnv adds to the environment of the program, as KEY=value, from its next start on; what is there
// already gets the new value. It is called while the process is stopped.
func (p *Process) SetEnv(env ...string) { p.env = append(p.env, env...) }

// Start starts the program and keeps it running until Stop.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped != nil {
		return fmt.Errorf("%s is started already", p.label)
	}
	cmd, err := p.spawn()
	if err != nil {
		return err
	}
	p.cmd, p.broken = cmd, nil
	p.stopping, p.stopped = make(chan struct{}), make(chan struct{})
	go p.supervise(cmd, p.stopping, p.stopped)
	return nil
}

func (p *Process) spawn() (*exec.Cmd, error) {
	command := []string{p.path}
	if p.prefix != nil {
		command = append(slices.Clone(p.prefix()), p.path)
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(cleanEnviron(), p.env...)
	out := p.log.Writer(p.label)
	cmd.Stdout, cmd.Stderr = out, out
	// Ctrl-C in the terminal reaches only pairctl, which stops the processes in their order; and
	// none of them outlives it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.label, err)
	}
	return cmd, nil
}

// supervise waits for the process and starts it again.
func (p *Process) supervise(cmd *exec.Cmd, stopping, stopped chan struct{}) {
	defer close(stopped)
	pause := firstRestart
	for {
		begun := time.Now()
		err := cmd.Wait()
		p.setCmd(nil)
		select {
		case <-stopping:
			return
		default:
		}
		if code := cmd.ProcessState.ExitCode(); code >= firstFatalExit && code <= lastFatalExit {
			p.fail(fmt.Errorf("%s ended with exit code %d and would again: see its last lines", p.label, code))
			return
		}
		p.log.Event(p.label, fmt.Sprintf("ended (%v), starting it again", exitReason(err)))
		if time.Since(begun) > healthyAfter {
			pause = firstRestart
		}
		select {
		case <-time.After(pause):
		case <-stopping:
			return
		}
		pause = min(2*pause, lastRestart)
		if cmd, err = p.respawn(stopping); err != nil {
			p.fail(err)
			return
		}
		if cmd == nil {
			return
		}
	}
}

// fail remembers why the program is not started again, and says so.
func (p *Process) fail(err error) {
	p.mu.Lock()
	p.broken = err
	p.mu.Unlock()
	p.fatal(err)
}

// Broken returns why the program has ended and is not started again; nil before that, and from the next Start
// on.
func (p *Process) Broken() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.broken
}

func exitReason(err error) string {
	if err == nil {
		return "exit code 0"
	}
	return err.Error()
}

// respawn starts the process again unless it is being stopped.
func (p *Process) respawn(stopping chan struct{}) (*exec.Cmd, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-stopping:
		return nil, nil
	default:
	}
	cmd, err := p.spawn()
	if err != nil {
		return nil, err
	}
	p.cmd = cmd
	p.restarts++
	return cmd, nil
}

func (p *Process) setCmd(cmd *exec.Cmd) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd = cmd
}

// started reports whether the program is kept running.
func (p *Process) started() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stopped != nil
}

// Signal sends a signal to the running process; an error says that there is none.
func (p *Process) Signal(sig os.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return errors.New("not running")
	}
	return p.cmd.Process.Signal(sig)
}

// PID returns the id of the running process; 0 says that there is none. It may end at any moment.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Kill ends the process at once, as a power cut of the process would; it is started again.
func (p *Process) Kill() error { return p.Signal(syscall.SIGKILL) }

// Restarts is how often the process was started again.
func (p *Process) Restarts() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.restarts
}

// Stop asks the process to end, waits for it, and kills it after 30 s. Start starts it again.
func (p *Process) Stop() { p.end(syscall.SIGTERM) }

// Halt ends the process at once, as a power cut of its machine would, and waits for it. Unlike after
// Kill, nobody starts it again but Start.
func (p *Process) Halt() { p.end(syscall.SIGKILL) }

// end sends a signal and waits until the supervisor has ended too.
func (p *Process) end(sig syscall.Signal) {
	p.mu.Lock()
	if p.stopped == nil {
		p.mu.Unlock()
		return
	}
	close(p.stopping)
	stopped := p.stopped
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(sig) // it may have ended just now
	}
	p.mu.Unlock()
	select {
	case <-stopped:
	case <-time.After(stopTimeout):
		_ = p.Kill() // likewise
		<-stopped
	}
	p.mu.Lock()
	p.stopped = nil
	p.mu.Unlock()
}
