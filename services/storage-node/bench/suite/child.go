package suite

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/pprof"
)

// request is one line from the parent to an engine's process; reply is the answer to it.
type request struct {
	Row string
	// Killed is the directory that a killed process left, for the row that opens one.
	Killed string `json:",omitempty"`
	// Profile is the file for a profile of the processor, from the row's begin to its end.
	Profile string `json:",omitempty"`
}

type reply struct {
	Measurements []Measurement `json:",omitempty"`
	Error        string        `json:",omitempty"`
}

// Serve is an engine's process: it runs the rows that in asks for, one after the other, and answers
// on out, until in ends. dir is its own.
func Serve(engine, dir string, size Size, in io.Reader, out io.Writer) error {
	s := &session{engine: engine, dir: dir, size: size, loaded: map[string]*dataset{}, zipfs: map[zipfKey][]uint32{}}
	if err := os.MkdirAll(dir, 0o770); err != nil {
		return err
	}
	requests, replies := json.NewDecoder(bufio.NewReader(in)), json.NewEncoder(out)
	for {
		var q request
		if err := requests.Decode(&q); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return errors.Join(err, s.closeOpen())
		}
		var r reply
		var err error
		if r.Measurements, err = s.profiled(q); err != nil {
			r = reply{Error: err.Error()}
		}
		if err := replies.Encode(r); err != nil {
			return err
		}
	}
}

func (s *session) profiled(q request) (m []Measurement, err error) {
	s.killed = q.Killed
	if q.Profile == "" {
		return s.run(q.Row)
	}
	if err := os.MkdirAll(filepath.Dir(q.Profile), 0o777); err != nil {
		return nil, err
	}
	f, err := os.Create(q.Profile)
	if err != nil {
		return nil, err
	}
	// What a row needs but doesn't measure would drown what it measures.
	s.profile = f
	defer func() {
		s.profile = nil
		err = errors.Join(err, f.Close())
	}()
	return s.run(q.Row)
}

// startProfile begins the profile of the measured part, if one is wanted; the returned function
// ends it. A row's first measured part has it.
func (s *session) startProfile() (stop func(), err error) {
	if s.profile == nil {
		return func() {}, nil
	}
	w := s.profile
	s.profile = nil
	if err := pprof.StartCPUProfile(w); err != nil {
		return nil, err
	}
	return pprof.StopCPUProfile, nil
}

// ServeKill fills dir until its log is as long as the size says, says so on out, and waits for the
// end of in, which a parent that kills it never brings.
func ServeKill(engine, dir string, size Size, in io.Reader, out io.Writer) error {
	n, err := fillForKill(engine, dir, size.data(large), size.RecoveryBytes)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(out, "filled", n); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, in)
	return err
}
