package suite

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/services/storage-node/bench/engines"
)

// tiny is a size for tests: everything runs, nothing is worth reading.
var tiny = Size{Name: "smoke", Keys: 2000, SmallKeys: 500, ShortKeys: 1000, Row: 5 * time.Millisecond, Warm: time.Millisecond,
	FillLimit: time.Minute, RecoveryBytes: 100_000, Rounds: 1}

func newSession(t *testing.T, engine string) *session {
	return &session{engine: engine, dir: t.TempDir(), size: tiny, loaded: map[string]*dataset{}, zipfs: map[zipfKey][]uint32{}}
}

func TestEveryRowMeasuresAndChecksItsReads(t *testing.T) {
	// A row that is never run before the long one wastes an hour, and one that reads nothing measures
	// nothing.
	for _, engine := range []string{engines.Ours, engines.Baseline} {
		t.Run(engine, func(t *testing.T) {
			s := newSession(t, engine)
			for _, row := range Rows() {
				if row.killed {
					s.killed = filepath.Join(s.dir, "filled")
					require.NoError(t, fillAndClose(engine, s.killed))
				}
				got, err := s.run(row.Name)
				require.NoError(t, err)
				require.NotEmpty(t, got)
				require.Equal(t, row.Name, got[0].Name)
				for _, m := range got {
					require.Positive(t, m.Ops, m.Name)
					require.Positive(t, m.Rate(), m.Name)
					require.GreaterOrEqual(t, m.Allocs, 0.0, m.Name)
				}
			}
			require.NoError(t, s.closeOpen())
		})
	}
}

// fillAndClose makes what the recovery row opens. Nobody is killed here: that is the parent's part.
func fillAndClose(engine, dir string) error {
	db, err := engines.Open(engine, dir, engines.OpenOptions{})
	if err != nil {
		return err
	}
	if _, err := fillBytes(db, tiny.data(large), tiny.RecoveryBytes); err != nil {
		return err
	}
	return db.Close()
}

func TestWrongReadEndsTheRow(t *testing.T) {
	// An engine that is fast because it answers wrongly must not get a figure.
	s := newSession(t, engines.Baseline)
	d, err := s.use(large)
	require.NoError(t, err)
	w := d.db.NewWriter()
	for i := range d.Count { // every key gets its neighbour's value
		require.NoError(t, w.Set(d.Key(nil, i), d.Value(nil, (i+1)%d.Count, 1)))
	}
	require.NoError(t, w.Commit())
	require.NoError(t, w.Close())
	for _, row := range []string{"zipf-1", "uniform-8", "read-while-writing", "scan-100", "ycsb-c", "ycsb-e"} {
		_, err = s.run(row)
		require.ErrorContains(t, err, "wrong read", row)
	}
	require.NoError(t, s.closeOpen())
}

func TestMissingKeysAndForeignKeysAreWrongReads(t *testing.T) {
	s := newSession(t, engines.Baseline)
	d, err := s.use(small)
	require.NoError(t, err)
	w := d.db.NewWriter()
	for i := range d.Count {
		require.NoError(t, w.Delete(d.Key(nil, i)))
		require.NoError(t, w.Set(d.Missing(nil, i), []byte("x")))
	}
	require.NoError(t, w.Commit())
	require.NoError(t, w.Close())
	_, err = s.run("uniform-cached-1")
	require.ErrorContains(t, err, "wrong read")
	g := &getter{d: d}
	require.ErrorContains(t, g.miss(1), "wrong read")
	require.NoError(t, s.closeOpen())
}

func TestServeAnswersEveryRequestAndReportsErrors(t *testing.T) {
	// The parent waits for an answer to each: a lost one would hang the run.
	in := strings.NewReader(`{"Row":"no-such"}` + "\n" + `{"Row":"durable-1","Profile":"` + filepath.Join(t.TempDir(), "deep", "p.pprof") + `"}` + "\n")
	var out bytes.Buffer
	require.NoError(t, Serve(engines.Ours, filepath.Join(t.TempDir(), "d"), tiny, in, &out))
	replies := json.NewDecoder(&out)
	var first, second reply
	require.NoError(t, replies.Decode(&first))
	require.Contains(t, first.Error, "no-such")
	require.NoError(t, replies.Decode(&second))
	require.Empty(t, second.Error)
	require.Len(t, second.Measurements, 1)
	require.ErrorIs(t, replies.Decode(&second), io.EOF)
}

func TestProfileIsOfTheMeasuredPart(t *testing.T) {
	s := newSession(t, engines.Ours)
	name := filepath.Join(t.TempDir(), "p.pprof")
	_, err := s.profiled(request{Row: "miss-1", Profile: name})
	require.NoError(t, err)
	info, err := os.Stat(name)
	require.NoError(t, err)
	require.Positive(t, info.Size())
	require.NoError(t, s.closeOpen())
}

func TestInsertionsAreAskedForInOrder(t *testing.T) {
	// A client that reads an index which another one has only reserved would report a wrong read.
	d := &dataset{Data: tiny.data(large), early: map[uint64]bool{}}
	d.acknowledge(1)
	require.Zero(t, d.inserted.Load())
	d.acknowledge(2)
	d.acknowledge(0)
	require.EqualValues(t, 3, d.inserted.Load())
	require.Equal(t, d.Count+2, d.youngest(0))
	require.Less(t, d.youngest(3), d.Count)
}

func TestRowsHaveNamesOfTheirOwn(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Rows() {
		require.False(t, seen[r.Name], r.Name)
		require.NotEmpty(t, r.Help)
		seen[r.Name] = true
	}
}
