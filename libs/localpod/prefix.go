package localpod

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
)

// maxLine is the longest line kept whole; a longer one is broken.
const maxLine = 64 << 10

// prefixer joins the output of several processes into one log.
type prefixer struct {
	mu      sync.Mutex
	out     io.Writer
	writers []*lineWriter
}

func newPrefixer(out io.Writer) *prefixer { return &prefixer{out: out} }

// Writer returns a writer that puts label before each line.
func (p *prefixer) Writer(label string) io.Writer {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := &lineWriter{p: p, label: label}
	p.writers = append(p.writers, w)
	return w
}

// Event writes a line of localpod's own about a process.
func (p *prefixer) Event(label, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.out, "%s | %s\n", label, text)
}

// Flush writes lines that have no end yet.
func (p *prefixer) Flush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.writers {
		if len(w.rest) > 0 {
			fmt.Fprintf(p.out, "%s | %s\n", w.label, w.rest)
			w.rest = nil
		}
	}
}

type lineWriter struct {
	p     *prefixer
	label string
	rest  []byte // guarded by p.mu
}

// Write writes the complete lines of b and keeps the rest.
func (w *lineWriter) Write(b []byte) (int, error) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	w.rest = append(w.rest, b...)
	for {
		i := bytes.IndexByte(w.rest, '\n')
		if i < 0 && len(w.rest) < maxLine {
			return len(b), nil
		}
		line, skip := w.rest, len(w.rest)
		if i >= 0 {
			line, skip = w.rest[:i], i+1
		}
		fmt.Fprintf(w.p.out, "%s | %s\n", w.label, line)
		w.rest = w.rest[skip:]
	}
}

// cleanEnviron is this process's environment without PairDB's own keys: a variable that is meant
// for pairctl must not reach the pods.
func cleanEnviron() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PAIRDB_") {
			env = append(env, kv)
		}
	}
	return env
}
