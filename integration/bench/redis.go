package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
)

// redisConn is a connection on which requests are pipelined: those that are made while others are
// written share a write.
type redisConn struct {
	conn    net.Conn
	mu      sync.Mutex
	out     []byte // guarded by mu; not written yet
	work    sync.Cond
	closed  bool
	waiting chan chan error
}

func dialRedis(addr string) (*redisConn, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	r := &redisConn{conn: c, waiting: make(chan chan error, 4096)}
	r.work.L = &r.mu
	go r.write()
	go r.read()
	return r, nil
}

func (r *redisConn) close() {
	r.mu.Lock()
	r.closed = true
	r.work.Signal()
	r.mu.Unlock()
	r.conn.Close()
}

func (r *redisConn) write() {
	var spare []byte
	for {
		r.mu.Lock()
		for len(r.out) == 0 && !r.closed {
			r.work.Wait()
		}
		if r.closed {
			r.mu.Unlock()
			return
		}
		b := r.out
		r.out = spare[:0]
		r.mu.Unlock()
		if _, err := r.conn.Write(b); err != nil {
			return // the reader fails too
		}
		spare = b
	}
}

func (r *redisConn) read() {
	in := bufio.NewReaderSize(r.conn, 64<<10)
	for {
		err := readReply(in)
		if err != nil && !errors.Is(err, errReply) {
			for {
				select {
				case w := <-r.waiting:
					w <- err
				default:
					return
				}
			}
		}
		w := <-r.waiting
		w <- err
	}
}

var errReply = errors.New("redis")

// readReply reads a status, an error, or a bulk string.
func readReply(in *bufio.Reader) error {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return err
	}
	switch line[0] {
	case '+', ':':
		return nil
	case '-':
		return fmt.Errorf("%w: %s", errReply, line)
	case '$':
		n, err := strconv.Atoi(string(line[1 : len(line)-2]))
		if err != nil {
			return err
		}
		if n < 0 {
			return fmt.Errorf("%w: no such key", errReply)
		}
		_, err = io.CopyN(io.Discard, in, int64(n)+2)
		return err
	}
	return fmt.Errorf("unexpected reply %q", line)
}

// do sends a command and waits for its answer on reply, which the caller uses again.
func (r *redisConn) do(ctx context.Context, reply chan error, args ...[]byte) error {
	r.mu.Lock()
	r.out = append(r.out, '*')
	r.out = strconv.AppendInt(r.out, int64(len(args)), 10)
	for _, a := range args {
		r.out = append(r.out, "\r\n$"...)
		r.out = strconv.AppendInt(r.out, int64(len(a)), 10)
		r.out = append(append(r.out, "\r\n"...), a...)
	}
	r.out = append(r.out, "\r\n"...)
	r.waiting <- reply
	r.work.Signal()
	r.mu.Unlock()
	select {
	case err := <-reply:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
