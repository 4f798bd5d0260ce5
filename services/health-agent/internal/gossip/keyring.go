package gossip

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/hashicorp/memberlist"
)

// maxKeyringBytes is far above the two or three keys of a rotation.
const maxKeyringBytes = 16 << 10

// ReadKeyring reads a file of keys: base64 of 16, 24 or 32 bytes (AES-128, -192, -256), one a line; empty
// lines and those that begin with # are skipped. The first key encrypts, all decrypt. A file without a
// key is an error: emptying it must not switch the encryption off.
//
// Rotation is three changes of the file on every agent, each after the one before has arrived
// everywhere: the new key added as the last line, the new key moved to the first, the old key removed.
func ReadKeyring(path string) ([][]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	if info.Size() > maxKeyringBytes {
		return nil, fmt.Errorf("keyring: %s has %d bytes, at most %d", path, info.Size(), maxKeyringBytes)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	var keys [][]byte
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		// The error of the decoder would show a part of the key.
		key, err := base64.StdEncoding.DecodeString(line)
		if err != nil || memberlist.ValidateKey(key) != nil {
			return nil, fmt.Errorf("keyring: line %d of %s is not base64 of 16, 24 or 32 bytes", number, path)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("keyring: no key in " + path)
	}
	return keys, nil
}

// rotate makes the ring have exactly these keys, the first as the one that encrypts: add, then use,
// then remove, so that at no moment a packet of a peer can't be read that could before and shall be.
func rotate(ring *memberlist.Keyring, keys [][]byte) error {
	for _, k := range keys {
		if err := ring.AddKey(k); err != nil {
			return err
		}
	}
	if err := ring.UseKey(keys[0]); err != nil {
		return err
	}
	for _, k := range slices.Clone(ring.GetKeys()) {
		if slices.ContainsFunc(keys, func(wanted []byte) bool { return bytes.Equal(wanted, k) }) {
			continue
		}
		if err := ring.RemoveKey(k); err != nil {
			return err
		}
	}
	return nil
}

// sameKeys reports whether two lists have the same keys in the same order.
func sameKeys(a, b [][]byte) bool { return slices.EqualFunc(a, b, bytes.Equal) }
