package manifest_test

import (
	"errors"
	"path"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/ikey"
	"github.com/pairdb/pairdb/libs/sstable"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

func walkTable(num uint64) *manifest.Table {
	k := ikey.Make([]byte("t\x00k"), ikey.Seq(num), ikey.KindSet)
	return &manifest.Table{Num: num, Origin: manifest.OriginFlush, Meta: sstable.Meta{Size: 100, Smallest: k, Largest: k,
		MinSeq: ikey.Seq(num), MaxSeq: ikey.Seq(num), Entries: 1, Sets: 1}}
}

// Danger: the tool that shows a manifest sees another history than the one that Open replays, or
// changes the file that it is asked to look at.
func TestWalkShowsEveryEditAndStopsAtDamage(t *testing.T) {
	fs := vfs.NewMem()
	s, err := manifest.Create(fs, "m", manifest.Options{})
	require.NoError(t, err)
	for num := uint64(1); num <= 3; num++ {
		require.NoError(t, s.Apply(manifest.Edit{Added: []manifest.Added{{Level: 0, Table: walkTable(num)}}, LogFloor: num}))
	}
	require.NoError(t, s.Close())

	var m manifest.Marker
	names, err := fs.List("m")
	require.NoError(t, err)
	for _, name := range names {
		if found, ok := manifest.ParseMarker(name); ok {
			require.Empty(t, m.Name, "one marker")
			m = found
		}
	}
	require.NotEmpty(t, m.Name)

	var steps []manifest.Step
	collect := func(s manifest.Step) error { steps = append(steps, s); return nil }
	name := path.Join("m", m.File)
	w, err := manifest.Walk(fs, name, collect)
	require.NoError(t, err)
	require.True(t, w.Sealed)
	require.Zero(t, w.TornTail)
	require.Len(t, steps, 5, "the state, three edits, the seal")
	require.True(t, steps[0].State && steps[0].Last)
	require.EqualValues(t, 2, steps[2].Edit.Added[0].Table.Num)
	require.True(t, steps[4].Seal)

	whole := readAll(t, fs, name)
	for at := range whole {
		bad := append([]byte{}, whole...)
		bad[at] ^= 0x10
		writeAll(t, fs, name, bad)
		steps = nil
		w, err := manifest.Walk(fs, name, collect)
		var c *manifest.CorruptionError
		if err == nil { // only what a crash could have left is no damage
			require.Positive(t, w.TornTail, "flip at %d", at)
			require.Less(t, len(steps), 5)
			continue
		}
		require.True(t, errors.As(err, &c), "flip at %d: %v", at, err)
		require.Equal(t, m.File, c.File)
		require.LessOrEqual(t, c.Offset, int64(at))
	}
	writeAll(t, fs, name, whole)
	_, _, err = manifest.Open(fs, "m", manifest.Options{})
	require.NoError(t, err, "a walk changes nothing")
}
