package pairdbtest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/pairdbtest"
	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
)

// victimImages tells the test binary to be a process that starts a pod and is killed: the images, as JSON.
const victimImages = "PAIRDBTEST_VICTIM"

// victim starts a pod and waits for its death.
func victim(given string) {
	var i pairdbtest.Images
	if err := json.Unmarshal([]byte(given), &i); err != nil {
		panic(err)
	}
	if _, err := pairdbtest.Run(context.Background(), pairdbtest.Options{Images: i}); err != nil {
		panic(err)
	}
	select {}
}

func TestWhatAKilledProcessLeftIsSwept(t *testing.T) {
	// A test that is interrupted must not fill the developer's machine with pods, volumes and networks, nor
	// have the next run find those of the last.
	for name, enough := range map[string]int{
		"while it starts":    4,         // network, NATS, the pod's network holder, a volume
		"with a running pod": 1 + 6 + 2, // network; NATS, holder and four binaries; two volumes
	} {
		t.Run(name, func(t *testing.T) {
			given, err := json.Marshal(images)
			require.NoError(t, err)
			var said podtest.Log
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), victimImages+"="+string(given))
			cmd.Stdout, cmd.Stderr = &said, &said
			require.NoError(t, cmd.Start())
			pid := strconv.Itoa(cmd.Process.Pid)
			var has []string
			defer func() {
				_ = cmd.Process.Kill() // it may have ended
				_ = cmd.Wait()
				if t.Failed() {
					t.Log(has, said.String())
				}
			}()
			podtest.Eventually(t, time.Minute, "the process has started something", func() bool {
				has, err = pairdbtest.OwnedBy(t.Context(), pid)
				return err == nil && len(has) >= enough
			})
			swept, err := pairdbtest.Sweep(t.Context())
			require.NoError(t, err)
			require.NotSubset(t, swept, has[:1], "a process that lives has lost something")

			require.NoError(t, cmd.Process.Kill())
			require.Error(t, cmd.Wait())
			// Docker may still be at work on the last request of the process.
			podtest.Eventually(t, 30*time.Second, "all is swept", func() bool {
				_, err := pairdbtest.Sweep(t.Context())
				require.NoError(t, err)
				has, err = pairdbtest.OwnedBy(t.Context(), pid)
				return err == nil && len(has) == 0
			})
		})
	}
}

func TestOnlyTheDeadAreSwept(t *testing.T) {
	// Two test runs of one machine would take each other's pods away.
	self, err := pairdbtest.Self()
	require.NoError(t, err)
	parts := strings.Split(self, "/")
	require.Len(t, parts, 3)
	started, err := strconv.ParseInt(parts[2], 10, 64)
	require.NoError(t, err)
	pid, err := strconv.Atoi(parts[1])
	require.NoError(t, err)
	require.Equal(t, os.Getpid(), pid)
	gone := exec.Command(os.Args[0], "-test.run=^$", "-test.list=^$")
	gone.Env = []string{"CI=", "DOCKER_HOST=tcp://127.0.0.1:1"} // it ends at once
	_ = gone.Run()                                              // how does not matter
	for owner, dead := range map[string]bool{
		self: false,
		fmt.Sprintf("%s/%d/%d", parts[0], pid, started+1500):            false, // the clock was set
		fmt.Sprintf("%s/%d/%d", parts[0], pid, started-60_000):          true,  // its number was given to another one
		fmt.Sprintf("%s/%d/%d", parts[0], gone.Process.Pid, started):    true,
		fmt.Sprintf("%s/%d/%d", "elsewhere", gone.Process.Pid, started): false,
		parts[0]: false, "": false, "a/b/c": false, parts[0] + "/x/1": false,
	} {
		require.Equal(t, dead, pairdbtest.IsDead(owner), owner)
	}
}

func TestAPodThatCannotStartSaysWhyAndLeavesNothing(t *testing.T) {
	// A start that fails shows the reason of the process, not a time limit.
	_, err := pairdbtest.Run(t.Context(), pairdbtest.Options{Images: images, Env: []string{"PAIRDB_MEMTABEL_BYTES=1MiB"}})
	require.ErrorContains(t, err, "PAIRDB_MEMTABLE_BYTES")
	require.ErrorContains(t, err, "has ended")
	left, err := pairdbtest.Left(t.Context())
	require.NoError(t, err)
	require.Empty(t, left)
	_, err = pairdbtest.Run(t.Context(), pairdbtest.Options{Images: images, Nodes: pairdbtest.MaxNodes + 1})
	require.ErrorContains(t, err, "1 to 16")
}

func TestStartIsThreeLines(t *testing.T) {
	// What the example of the package promises.
	pod := pairdbtest.Start(t, pairdbtest.Options{Images: images})
	c, err := client.New(pod.Addr(), client.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })

	_, err = c.Put(t.Context(), "greeting", []byte("hello"))
	require.NoError(t, err)
	v, err := c.Get(t.Context(), "greeting")
	require.NoError(t, err)
	require.Equal(t, "hello", string(v.Bytes))
}
