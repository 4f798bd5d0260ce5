package gossip

import (
	"bytes"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/memberlist"
	"github.com/stretchr/testify/require"
)

func key(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

// writeKeys replaces the file of the keys in one step, as a mounted secret is.
func writeKeys(t *testing.T, path string, keys ...[]byte) {
	t.Helper()
	lines := "# first line encrypts\n\n"
	for _, k := range keys {
		lines += base64.StdEncoding.EncodeToString(k) + "\n"
	}
	require.NoError(t, os.WriteFile(path+".new", []byte(lines), 0o600))
	require.NoError(t, os.Rename(path+".new", path))
}

func TestKeyringFile(t *testing.T) {
	// A file that is wrong must never be half a ring, nor none, nor show a key in the log.
	path := filepath.Join(t.TempDir(), "keys")
	writeKeys(t, path, key(1), key(2))
	keys, err := ReadKeyring(path)
	require.NoError(t, err)
	require.Equal(t, [][]byte{key(1), key(2)}, keys)

	secret := base64.StdEncoding.EncodeToString(key(3))
	for name, text := range map[string]string{
		"empty":         "",
		"comments only": "# nothing\n",
		"no base64":     secret[:10] + "!" + secret[10:] + "\n",
		"wrong length":  base64.StdEncoding.EncodeToString(make([]byte, 33)),
		"second line":   secret + "\nnonsense\n",
		"too large":     strings.Repeat(secret+"\n", 1000),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "keys")
			require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
			_, err := ReadKeyring(path)
			require.Error(t, err)
			require.NotContains(t, err.Error(), secret[:6])
		})
	}
	_, err = ReadKeyring(filepath.Join(t.TempDir(), "missing"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestRotateReachesAnyRingFromAnyRing(t *testing.T) {
	// A key that stays behind is one that was revoked and still opens the door.
	rings := [][][]byte{
		{key(1)}, {key(2)}, {key(1), key(2)}, {key(2), key(1)}, {key(1), key(2), key(3)}, {key(3), key(2), key(1)}, {key(4), key(1)},
	}
	for _, from := range rings {
		for _, to := range rings {
			ring, err := memberlist.NewKeyring(from, from[0])
			require.NoError(t, err)
			require.NoError(t, rotate(ring, to))
			require.ElementsMatch(t, to, ring.GetKeys())
			require.Equal(t, to[0], ring.GetPrimaryKey())
		}
	}
}
