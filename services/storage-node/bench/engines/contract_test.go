package engines

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func put(t *testing.T, e Engine, pairs ...string) {
	t.Helper()
	w := e.NewWriter()
	for i := 0; i < len(pairs); i += 2 {
		require.NoError(t, w.Set([]byte(pairs[i]), []byte(pairs[i+1])))
	}
	require.NoError(t, w.Commit())
	require.NoError(t, w.Close())
}

func get(t *testing.T, e Engine, key string) (string, bool) {
	t.Helper()
	buffer := make([]byte, 0, 4)
	v, found, err := e.Get([]byte(key), buffer)
	require.NoError(t, err)
	return string(v), found
}

func TestEveryEngineKeepsTheContract(t *testing.T) {
	// A benchmark of an engine that answers wrongly, or not at all, measures nothing: each adapter
	// must store, overwrite, delete, find, miss, scan, and still know everything at the next open.
	for _, name := range Names() {
		for _, sync := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/sync=%v", name, sync), func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "db")
				open := func() Engine {
					e, err := Open(name, dir, OpenOptions{Sync: sync, Writers: 2})
					require.NoError(t, err)
					return e
				}
				e := open()
				put(t, e, "t\x00a", "value of a", "t\x00b", "value of b", "t\x00c", "old", "t\x00d", "value of d", "t\x00e", "gone")
				put(t, e, "t\x00c", "value of c, written again")
				w := e.NewWriter()
				require.NoError(t, w.Delete([]byte("t\x00e")))
				require.NoError(t, w.Commit())
				require.NoError(t, w.Close())
				check := func() {
					t.Helper()
					v, found := get(t, e, "t\x00c")
					require.True(t, found)
					require.Equal(t, "value of c, written again", v, "the newest value, whole, whatever the buffer's size")
					for _, key := range []string{"t\x00e", "t\x00bb", "t", "u\x00a"} {
						_, found = get(t, e, key)
						require.False(t, found, "%q", key)
					}
					s, err := e.Scan([]byte("t\x00b"), 2)
					require.NoError(t, err)
					var want Scanned
					want.add([]byte("t\x00b"), []byte("value of b"))
					want.add([]byte("t\x00c"), []byte("value of c, written again"))
					require.Equal(t, want, s, "two entries from b on, in order")
					s, err = e.Scan([]byte("t\x00"), 100)
					require.NoError(t, err)
					require.Equal(t, 4, s.Count, "all that are there, none that is deleted")
				}
				check()
				_, err := e.Settle()
				require.NoError(t, err)
				check()
				require.NoError(t, e.Close())
				e = open()
				check()
				require.NoError(t, e.Close())
			})
		}
	}
}

func TestEveryEngineTakesWritersAtOnce(t *testing.T) {
	// The adapters' writers must not share what only one goroutine may use.
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			e, err := Open(name, filepath.Join(t.TempDir(), "db"), OpenOptions{Writers: 8})
			require.NoError(t, err)
			done := make(chan error, 8)
			for c := range 8 {
				go func() {
					w := e.NewWriter()
					for i := range 100 {
						key := fmt.Appendf(nil, "t\x00%d-%03d", c, i)
						if err := w.Set(key, key); err != nil {
							done <- err
							return
						}
						if err := w.Commit(); err != nil {
							done <- err
							return
						}
					}
					done <- w.Close()
				}()
			}
			for range 8 {
				require.NoError(t, <-done)
			}
			s, err := e.Scan([]byte("t\x00"), 1000)
			require.NoError(t, err)
			require.Equal(t, 800, s.Count)
			require.NoError(t, e.Close())
		})
	}
}

func TestUnknownEngineIsNamed(t *testing.T) {
	// A mistyped name must say what there is.
	_, err := Open("peble", t.TempDir(), OpenOptions{})
	require.ErrorContains(t, err, `unknown engine "peble"`)
	require.ErrorContains(t, err, Baseline)
}
