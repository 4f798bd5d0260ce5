package inspect

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
)

// Danger: an operator is told that a good directory is damaged, or the tool changes what it looks at.
func TestAWholeDirectoryIsCleanAndStaysAsItIs(t *testing.T) {
	fs := newDirectory(t)
	before := image(t, fs, dataDir, map[string]string{})
	code, out, stderr := run(t, fs, "check", dataDir)
	require.Equal(t, service.ExitOK, code, out+stderr)
	golden(t, "check.txt", out)
	code, out, _ = run(t, fs, "check", "-o", "json", dataDir)
	require.Equal(t, service.ExitOK, code)
	golden(t, "check.ndjson", out)
	code, out, stderr = run(t, fs, "dump", dataDir)
	require.Equal(t, service.ExitOK, code, stderr)
	golden(t, "dump.txt", out)
	code, out, _ = run(t, fs, "dump", dataDir, "--json", "--values")
	require.Equal(t, service.ExitOK, code)
	golden(t, "dump.ndjson", out)
	lines := bufio.NewScanner(strings.NewReader(out))
	for lines.Scan() {
		require.True(t, json.Valid(lines.Bytes()), lines.Text())
	}
	require.Equal(t, before, image(t, fs, dataDir, map[string]string{}))
}

// Danger: a dump of one file shows something else than that of the directory, or depends on its name.
func TestAFileIsRecognisedByItsContent(t *testing.T) {
	fs := newDirectory(t)
	for _, from := range []string{find(t, fs, "log", "0"), find(t, fs, "sst", "0"), find(t, fs, "manifest", "MANIFEST")} {
		code, want, _ := run(t, fs, "dump", path.Join(dataDir, from), "--values")
		require.Equal(t, service.ExitOK, code, from)
		_, err := vfs.CopyFile(fs, path.Join(dataDir, from), "copy")
		require.NoError(t, err)
		code, got, stderr := run(t, fs, "dump", "copy", "--values")
		require.Equal(t, service.ExitOK, code, stderr)
		require.Equal(t, strings.ReplaceAll(want, path.Join(dataDir, from), "copy"), got)
	}
	code, out, _ := run(t, fs, "dump", path.Join(dataDir, find(t, fs, "manifest", "CURRENT")))
	require.Equal(t, service.ExitOK, code)
	require.Contains(t, out, "names MANIFEST-")
}

// Danger: damage is passed over in silence, or reported for the wrong file; what stands before it is
// not shown though it can be read.
func TestDamageOfEachKindIsNamedWithItsFile(t *testing.T) {
	fs := newDirectory(t)
	for _, c := range []struct {
		sub, prefix string
		at          func(b []byte) int
		shown       string // in the dump, before the damage
	}{
		{"sst", "0", func(b []byte) int { return strings.Index(string(b), "red") }, "3 entries"},
		{"sst", "0", func(b []byte) int { return len(b) - 40 }, ""},
		{"sst", "0", func([]byte) int { return 3 }, ""},
		{"manifest", "MANIFEST", func(b []byte) int { return strings.Index(string(b), "apple") }, "state"},
		{"manifest", "MANIFEST", func([]byte) int { return 20 }, "manifest"},
		{"", "FORMAT", func([]byte) int { return 1 }, ""},
		{"log", "0", func(b []byte) int { return strings.Index(string(b), "green") }, `"apple"`},
	} {
		file := find(t, fs, c.sub, c.prefix)
		name := path.Join(dataDir, file)
		good := read(t, fs, name)
		if c.sub == "log" { // a frame behind it proves that the log was durable up to there
			e := openEngine(t, fs)
			var b engine.Batch
			b.Delete(engineKey("later"))
			require.NoError(t, e.Apply(&b, engine.SyncDefault))
			require.NoError(t, e.Close())
			good = read(t, fs, name)
		}
		bad := append([]byte{}, good...)
		at := c.at(bad)
		require.Positive(t, at, file)
		bad[at] ^= 0x20
		write(t, fs, name, bad)

		code, out, stderr := run(t, fs, "check", dataDir)
		require.Equal(t, service.ExitCorrupt, code, "%s at %d: %s", file, at, out)
		require.Contains(t, out, "damage "+file+" ")
		require.Contains(t, stderr, "damage")
		require.Regexp(t, `(?m)^checked \d+ files, \d+ bytes: [1-9]`, out)
		code, out, _ = run(t, fs, "dump", dataDir, "--json")
		require.Equal(t, service.ExitCorrupt, code, "%s at %d: %s", file, at, out)
		require.Contains(t, out, `"severity":"damage","file":"`+file+`"`)
		if c.sub != "" {
			code, out, _ = run(t, fs, "dump", name)
			require.Equal(t, service.ExitCorrupt, code, "%s at %d: %s", file, at, out)
			shown, _, found := strings.Cut(out, "damage "+name+" ")
			require.True(t, found, out)
			require.Contains(t, shown, c.shown)
		}
		write(t, fs, name, good)
	}
	code, out, _ := run(t, fs, "check", dataDir)
	require.Equal(t, service.ExitOK, code, out)
}

// Danger: a snapshot can't be judged before it is needed, or only while no node runs.
func TestASnapshotIsCheckedWhileItsNodeRuns(t *testing.T) {
	fs := newDirectory(t)
	e := openEngine(t, fs)
	snapshot := path.Join(dataDir, "snapshots", "before-upgrade")
	require.NoError(t, e.Checkpoint(context.Background(), snapshot))
	for _, tool := range []string{"check", "dump"} {
		code, out, stderr := run(t, fs, tool, snapshot)
		require.Equal(t, service.ExitOK, code, out+stderr)
		require.NotContains(t, out, "note ")
	}
	require.NoError(t, e.Close())
}

// Danger: a byte that no checksum guards, or one that makes the tool panic instead of telling.
func TestEveryFlippedByteIsSeen(t *testing.T) {
	fs := newDirectory(t)
	for _, file := range []string{find(t, fs, "sst", "0"), find(t, fs, "manifest", "MANIFEST"), find(t, fs, "log", "0")} {
		name := path.Join(dataDir, file)
		good := read(t, fs, name)
		_, whole, _ := run(t, fs, "dump", name)
		used := len(bytes.TrimRight(good, "\x00"))
		for at := range used {
			bad := append([]byte{}, good...)
			bad[at] ^= 0x10
			write(t, fs, name, bad)
			code, out, stderr := run(t, fs, "dump", name)
			if code == service.ExitOK { // what a power cut could have done as well
				require.NotContains(t, file, ".sst", "flip at %d", at)
				require.NotEqual(t, whole, out, "flip at %d", at)
				continue
			}
			require.Equal(t, service.ExitCorrupt, code, "flip at %d of %s: %s%s", at, file, out, stderr)
			require.Regexp(t, `(?m)^(damage|newer) `+name+` `, out, "flip at %d", at)
		}
		write(t, fs, name, good)
	}
}

// Danger: missing tables are overlooked, or what a crash leaves alarms the operator.
func TestMissingTablesAreDamageAndLeftoversAreNotes(t *testing.T) {
	fs := newDirectory(t)
	table := find(t, fs, "sst", "0")
	write(t, fs, path.Join(dataDir, "sst/000099.sst"), read(t, fs, path.Join(dataDir, table)))
	require.NoError(t, fs.MkdirAll(path.Join(dataDir, "staging/000007.e1"), 0o770))
	code, out, _ := run(t, fs, "check", dataDir)
	require.Equal(t, service.ExitOK, code)
	require.Contains(t, out, "note sst/000099.sst - nothing refers to this table")
	require.Contains(t, out, "note staging/000007.e1 - left by an attempt")
	require.Contains(t, out, "0 damage, 0 newer, 0 error, 2 note")

	require.NoError(t, fs.Remove(path.Join(dataDir, table)))
	code, out, _ = run(t, fs, "check", dataDir)
	require.Equal(t, service.ExitCorrupt, code)
	require.Contains(t, out, "damage "+table+" - ")
	require.Contains(t, out, "no such file")
}

// Danger: the end that a power cut leaves is taken for damage.
func TestATornTailIsANote(t *testing.T) {
	fs := newDirectory(t)
	log := find(t, fs, "log", "0")
	name := path.Join(dataDir, log)
	b := read(t, fs, name)
	b = b[:strings.Index(string(b), "green")+2]
	write(t, fs, name, b)
	for _, args := range [][]string{{"check", dataDir}, {"dump", dataDir}, {"dump", name}} {
		code, out, _ := run(t, fs, args...)
		require.Equal(t, service.ExitOK, code, out)
		require.Regexp(t, `(?m)^note \S*`+log+` \d+ torn tail of \d+ bytes`, out)
	}
}

// Danger: a check of a directory that changes underneath reports damage that is none.
func TestTheDirectoryOfARunningNodeIsRefused(t *testing.T) {
	fs := newDirectory(t)
	e := openEngine(t, fs)
	for _, tool := range []string{"check", "dump"} {
		code, out, stderr := run(t, fs, tool, dataDir)
		require.Equal(t, service.ExitLocked, code)
		require.Empty(t, out)
		require.Contains(t, stderr, "a node runs on data: stop it")
	}
	code, _, _ := run(t, fs, "dump", path.Join(dataDir, find(t, fs, "sst", "0")))
	require.Equal(t, service.ExitOK, code, "single files may be looked at")
	require.NoError(t, e.Close())
	code, _, _ = run(t, fs, "check", dataDir)
	require.Equal(t, service.ExitOK, code, "the lock was given back")
}

// Danger: data of a newer release is called damaged, and somebody throws it away.
func TestANewerFormatIsRefusedAsSuch(t *testing.T) {
	fs := newDirectory(t)
	write(t, fs, path.Join(dataDir, "FORMAT"), []byte("pairdb 2\n"))
	for _, tool := range []string{"check", "dump"} {
		code, out, stderr := run(t, fs, tool, dataDir)
		require.Equal(t, service.ExitCorrupt, code)
		require.Contains(t, out, "newer FORMAT - ")
		require.Contains(t, out, "version 2")
		require.Contains(t, stderr, "newer format")
	}
}

// Danger: a slip of the keyboard looks like damage, or like a good directory.
func TestWrongArgumentsAreUsageErrors(t *testing.T) {
	fs := newDirectory(t)
	write(t, fs, "stranger", []byte("hello"))
	require.NoError(t, fs.MkdirAll("empty", 0o770))
	for _, args := range [][]string{
		{"check"}, {"check", "a", "b"}, {"check", "nowhere"}, {"check", dataDir, "-o", "xml"}, {"check", "--what", dataDir},
		{"check", "stranger"}, {"dump"}, {"dump", "nowhere"}, {"dump", "stranger"}, {"dump", "empty"}, {"dump", "--yes", dataDir},
	} {
		code, out, stderr := run(t, fs, args...)
		require.Equal(t, service.ExitUsage, code, "%v: %s", args, stderr)
		require.Empty(t, out)
		require.NotEmpty(t, stderr)
	}
	for _, tool := range []string{"check", "dump"} {
		code, out, _ := run(t, fs, tool, "--help")
		require.Equal(t, service.ExitOK, code)
		require.Contains(t, out, "storage-node "+tool)
	}
}

// broken is a pipe that nobody reads.
type broken struct{}

var errPipe = errors.New("broken pipe")

func (broken) Write([]byte) (int, error) { return 0, errPipe }

// Danger: half an output is taken for all of it.
func TestAnOutputThatCannotBeWrittenIsAnError(t *testing.T) {
	fs := newDirectory(t)
	for _, json := range []bool{false, true} {
		require.ErrorIs(t, Check(context.Background(), fs, dataDir, CheckOptions{JSON: json}, broken{}), errPipe)
		require.ErrorIs(t, Dump(context.Background(), fs, dataDir, DumpOptions{JSON: json}, broken{}), errPipe)
	}
}

// Danger: Ctrl-C does not end a dump of a terabyte, or its half of the output counts as whole.
func TestADumpEndsWithItsContext(t *testing.T) {
	fs := newDirectory(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, Check(ctx, fs, dataDir, CheckOptions{}, io.Discard), context.Canceled)
	for _, name := range []string{dataDir, path.Join(dataDir, find(t, fs, "sst", "0")), path.Join(dataDir, find(t, fs, "log", "0"))} {
		require.ErrorIs(t, Dump(ctx, fs, name, DumpOptions{}, io.Discard), context.Canceled)
	}
}
