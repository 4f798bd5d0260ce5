package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// tokenAge is for how long what was read of a file is used.
const tokenAge = time.Second

// TokenFromFile returns what Options.Token needs to send the content of a file, which may be replaced at any
// time: it is read again every second that there are calls. An error is that of the call.
func TokenFromFile(path string) func(context.Context) (string, error) {
	var mu sync.Mutex
	var text string
	var read time.Time
	return func(context.Context) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(read) < tokenAge {
			return text, nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("token: %w", err)
		}
		if text = string(bytes.TrimSpace(content)); text == "" {
			return "", fmt.Errorf("token: %s is empty", path)
		}
		read = time.Now()
		return text, nil
	}
}

// bearer sends a token with each call, over connections that nobody else reads.
type bearer func(context.Context) (string, error)

func (b bearer) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	text, err := b(ctx)
	if err != nil {
		return nil, err
	}
	if text == "" {
		return nil, errors.New("token: it is empty")
	}
	return map[string]string{"authorization": "Bearer " + text}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }
