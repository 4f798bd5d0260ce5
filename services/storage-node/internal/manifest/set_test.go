package manifest_test

import (
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/manifest"
)

const dir = "/data/manifest"

// script is the state of a golden script.
type script struct {
	fs   vfs.FS
	set  *manifest.Set
	refs map[string]*manifest.Version
	gone []string
}

func (s *script) options(t *testing.T, d *datadriven.TestData) manifest.Options {
	o := manifest.Options{Obsolete: func(files []manifest.Obsolete) {
		for _, f := range files {
			s.gone = append(s.gone, fmt.Sprintf("%06d", f.Num))
		}
	}}
	if d.HasArg("max-file") {
		var n int
		d.ScanArgs(t, "max-file", &n)
		o.MaxFileBytes = int64(n)
	}
	return o
}

func (s *script) run(t *testing.T, d *datadriven.TestData) string {
	s.gone = nil
	var err error
	var out string
	switch d.Cmd {
	case "create":
		s.set, err = manifest.Create(s.fs, dir, s.options(t, d))
	case "open":
		var r manifest.Recovery
		s.set, r, err = manifest.Open(s.fs, dir, s.options(t, d))
		out = fmt.Sprintf("%s: %d edits, %d bytes cut\n", r.File, r.Edits, r.TornTail)
	case "close":
		err = s.set.Close()
	case "apply":
		var e manifest.Edit
		v := s.set.Current()
		e, err = manifest.ParseEdit(d.Input, v)
		v.Unref()
		require.NoError(t, err, d.Pos)
		err = s.set.Apply(e)
	case "files":
		names, err := s.fs.List(dir)
		require.NoError(t, err)
		return strings.Join(names, "\n") + "\n"
	case "ref":
		s.refs[d.CmdArgs[0].Key] = s.set.Current()
	case "unref":
		s.refs[d.CmdArgs[0].Key].Unref()
	case "pin", "unpin":
		v := s.set.Current()
		tables := slices.Concat(v.Levels[:]...)
		if d.Cmd == "pin" {
			tables[0].Pin()
			s.refs["pinned"] = manifest.NewVersion([manifest.NumLevels][]*manifest.Table{tables[:1]})
		} else {
			s.refs["pinned"].Levels[0][0].Unpin()
		}
		v.Unref()
	default:
		require.FailNow(t, "unknown command "+d.Cmd)
	}
	if err != nil {
		return out + "error: " + err.Error() + "\n"
	}
	if len(s.gone) > 0 {
		slices.Sort(s.gone)
		out += "obsolete: " + strings.Join(s.gone, " ") + "\n"
	}
	return out + s.print()
}

func (s *script) print() string {
	v := s.set.Current()
	defer v.Unref()
	out := v.String()
	out += fmt.Sprintf("log floor %d, last seq %d, live %v, versions %d\n", s.set.LogFloor(), s.set.LastSeq(), s.set.LiveFiles(), s.set.Versions())
	meta := s.set.NodeMeta()
	for _, k := range slices.Sorted(maps.Keys(meta)) {
		out += fmt.Sprintf("node %s=%q\n", k, meta[k])
	}
	return out
}

// The danger: a version that differs from what the edits say, now or after opening again; tables
// reported obsolete too early, or never.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, path string) {
		s := &script{fs: vfs.NewMem(), refs: map[string]*manifest.Version{}}
		require.NoError(t, s.fs.MkdirAll("/data", 0o770))
		datadriven.RunTest(t, path, s.run)
	})
}

// The danger: a store whose marker was lost is taken for a new one and its tables for garbage.
func TestCreateRefusesALostMarker(t *testing.T) {
	fsys := vfs.NewMem()
	require.NoError(t, fsys.MkdirAll("/data", 0o770))
	s, err := manifest.Create(fsys, dir, manifest.Options{})
	require.NoError(t, err)
	_, err = manifest.Create(fsys, dir, manifest.Options{})
	require.ErrorIs(t, err, fs.ErrExist)
	e, err := manifest.ParseEdit("add L1 5 a-c", nil)
	require.NoError(t, err)
	require.NoError(t, s.Apply(e))
	require.NoError(t, s.Close())
	require.NoError(t, fsys.Remove(dir+"/CURRENT.000001.MANIFEST-000001"))
	_, _, err = manifest.Open(fsys, dir, manifest.Options{})
	require.ErrorIs(t, err, manifest.ErrNoManifest)
	_, err = manifest.Create(fsys, dir, manifest.Options{})
	require.ErrorIs(t, err, manifest.ErrCorrupt)
}

// The danger: numbers are given out twice, and a table overwrites another.
func TestNumbersNeverRepeat(t *testing.T) {
	fsys := vfs.NewMem()
	require.NoError(t, fsys.MkdirAll("/data", 0o770))
	s, err := manifest.Create(fsys, dir, manifest.Options{})
	require.NoError(t, err)
	require.Equal(t, uint64(1), s.NewFile())
	require.Equal(t, uint64(2), s.NewFile())
	require.NoError(t, s.Apply(manifest.Edit{LogFloor: 1}))
	s.RatchetFile(9)
	s.RatchetFile(4)
	require.Equal(t, uint64(9), s.NewFile())
	require.NoError(t, s.Close())
	s, _, err = manifest.Open(fsys, dir, manifest.Options{})
	require.NoError(t, err)
	require.Equal(t, uint64(3), s.NewFile())
	require.NoError(t, s.Close())
}

// The danger: a mistake in one edit ruins the set, or is half applied.
func TestRefusedEditsChangeNothing(t *testing.T) {
	fsys := vfs.NewMem()
	require.NoError(t, fsys.MkdirAll("/data", 0o770))
	s, err := manifest.Create(fsys, dir, manifest.Options{})
	require.NoError(t, err)
	edit := func(text string) manifest.Edit {
		e, err := manifest.ParseEdit(text, s.Current())
		require.NoError(t, err)
		return e
	}
	require.NoError(t, s.Apply(edit("add L1 5 a-c\nadd L1 6 d-f)\nadd L1 7 f-h")))
	want := s.Current().String()
	for _, text := range []string{
		"add L1 8 c-d", "add L1 8 e-e", "add L2 5 x-z", "add L2 8 x-y\nadd L3 8 x-y", "delete L2 5", "delete L1 9",
		"delete L1 5\ndelete L1 5", "quarantine 9", "delete L1 5\nquarantine 5", "add L1 8 z-y", "add L1 0 x-y",
		"add L1 8 x-y size=0", "add L1 8 x-y seqs=5-4", "add L0 8 x-y seqs=5-72057594037927935",
		"delete L1 5\nadd L2 5 a-c size=3", "node =x", "node " + strings.Repeat("k", 300) + "=x",
	} {
		require.ErrorIs(t, s.Apply(edit(text)), manifest.ErrInvalidEdit, text)
		require.Equal(t, want, s.Current().String())
		require.Equal(t, []uint64{5, 6, 7}, s.LiveFiles())
	}
	require.NoError(t, s.Apply(edit("delete L1 5")))
	require.NoError(t, s.Close())
	require.ErrorIs(t, s.Apply(manifest.Edit{LogFloor: 9}), manifest.ErrClosed)
}
