package token

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

const (
	// lookEvery is how often the file of the keys is looked at.
	lookEvery = time.Second
	// maxFileBytes bounds the file: hundreds of keys.
	maxFileBytes = 64 << 10
	// maxKnown is how many tokens are remembered, so that a signature is not checked with every request.
	maxKnown = 4096
)

// Keys checks tokens of one cluster with the public keys of a file. It is safe for concurrent use.
type Keys struct {
	path, cluster string
	now           func() time.Time

	mu      sync.RWMutex
	current *keyring  // guarded by mu
	looked  time.Time // guarded by mu: when the file was read last
	problem error     // guarded by mu: of the file as it was then
}

// keyring is one content of the file.
type keyring struct {
	content []byte
	keys    map[string]ed25519.PublicKey // by their ids
	known   map[string]*Grant            // guarded by mu of Keys: tokens that were checked with these keys
}

// Open reads the public keys of a file.
func Open(path, cluster string) (*Keys, error) {
	k := &Keys{path: path, cluster: cluster, now: time.Now, current: &keyring{}}
	k.look(k.now())
	return k, k.problem
}

// Problem says why the file, as it is now, is not used; nil if it is.
func (k *Keys) Problem() error {
	k.fresh(k.now())
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.problem
}

// Verify returns what a token grants, and keeps it: nobody changes it. The error wraps ErrInvalid.
func (k *Keys) Verify(text string) (*Grant, error) {
	now := k.now()
	k.fresh(now)
	k.mu.RLock()
	current := k.current
	g := current.known[text]
	k.mu.RUnlock()
	if g != nil && now.Before(g.Expires) {
		return g, nil
	}
	g, err := verify(text, k.cluster, current.keys, now)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(current.known) >= maxKnown {
		clear(current.known)
	}
	current.known[text] = g
	return g, nil
}

// fresh reads the file if it was not read for a while.
func (k *Keys) fresh(now time.Time) {
	k.mu.RLock()
	due := now.Sub(k.looked) >= lookEvery
	k.mu.RUnlock()
	if due {
		k.look(now)
	}
}

func (k *Keys) look(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.looked = now
	content, err := os.ReadFile(k.path)
	if err == nil && k.current.keys != nil && bytes.Equal(content, k.current.content) {
		k.problem = nil
		return
	}
	var keys map[string]ed25519.PublicKey
	if err == nil {
		keys, err = parseKeys(content)
	}
	if err != nil {
		k.problem = fmt.Errorf("PAIRDB_TOKEN_KEYS: %w", err)
		return
	}
	k.current, k.problem = &keyring{content, keys, map[string]*Grant{}}, nil
}

func parseKeys(content []byte) (map[string]ed25519.PublicKey, error) {
	if len(content) > maxFileBytes {
		return nil, fmt.Errorf("the file has %d bytes, at most %d are allowed", len(content), maxFileBytes)
	}
	keys := map[string]ed25519.PublicKey{}
	for {
		block, rest := pem.Decode(content)
		if block == nil {
			break
		}
		content = rest
		if block.Type != "PUBLIC KEY" {
			return nil, fmt.Errorf("the file has a block %q: it must have public keys only", block.Type)
		}
		any, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		key, ok := any.(ed25519.PublicKey)
		if !ok {
			return nil, fmt.Errorf("the file has a key of another kind than Ed25519: %T", any)
		}
		keys[KeyID(key)] = key
	}
	if len(bytes.TrimSpace(content)) > 0 {
		return nil, errors.New("the file has something behind its keys that is no PEM block")
	}
	if len(keys) == 0 {
		return nil, errors.New("the file has no public key (PEM)")
	}
	return keys, nil
}

// PrivateKey reads the key that tokens are signed with from a PEM block "PRIVATE KEY". Nothing of it gets into an error.
func PrivateKey(content []byte) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode(content)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("the file has no private key (PEM)")
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("the file has no private key that can be read (PKCS #8)")
	}
	key, ok := any.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("the private key is not one of Ed25519: %T", any)
	}
	return key, nil
}

// Generate returns a new pair of keys as PEM.
func Generate() (private, public []byte, err error) {
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	private = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if der, err = x509.MarshalPKIXPublicKey(pub); err != nil {
		return nil, nil, err
	}
	return private, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}
