package kubetest

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
)

// Danger: a new version can't be brought in, or not taken back, without stopping everything.
func TestNodeImageIsRolledOutAndBack(t *testing.T) {
	b := installed(t)
	underLoad(t, b, func(*load) {
		b.step(t, "update", 10*time.Minute, "TAG=next")
		b.runs(t, "storage-node", "next")
		require.Contains(t, b.shell(t, time.Minute, "deploy/k8s/pairctl pairdb-2 status"), "version next", "the node says who it is")
		if testing.Short() {
			return
		}
		b.step(t, "rollback", 10*time.Minute)
		b.runs(t, "storage-node", "dev")
	})
}

// Danger: what is deployed most often, the compactor, takes reads and writes away each time.
func TestCompactorIsUpdatedInPlace(t *testing.T) {
	b := installed(t)
	underLoad(t, b, func(*load) {
		uids, before := b.uids(3), map[string]map[string]int32{}
		for _, pod := range podNames(3) {
			before[pod] = b.restarts(pod)
			before[pod]["compactor"]++
		}
		b.step(t, "update-compactor", 5*time.Minute, "TAG=next")
		for _, pod := range podNames(3) {
			podtest.Eventually(t, 2*time.Minute, pod+" has the new compactor", func() bool {
				s := status(b.pod(pod), "compactor")
				return strings.HasSuffix(s.Image, ":next") && s.Ready && s.RestartCount == before[pod]["compactor"]
			})
			require.Equal(t, before[pod], b.restarts(pod), "the node and its sidecars are not restarted")
		}
		require.Equal(t, uids, b.uids(3), "no pod was replaced")
	})
}

// Danger: a configuration that is changed, applied, and not in effect.
func TestConfigurationChangeRollsThePods(t *testing.T) {
	b := installed(t)
	before := b.uids(3)
	underLoad(t, b, func(*load) { b.step(t, "configure", 10*time.Minute) })
	for _, pod := range podNames(3) {
		require.Contains(t, b.must(t, "-n", namespace, "exec", pod, "-c", "storage-node", "--", "/storage-node", "--print-config"), "PAIRDB_SLOW_REQUEST=250ms")
		require.NotEqual(t, before[pod], b.uids(3)[pod])
	}
}

// runs requires that all pods run an image of a tag in a container.
func (b *box) runs(t *testing.T, container, tag string) {
	t.Helper()
	for _, pod := range podNames(3) {
		podtest.Eventually(t, time.Minute, pod+" runs "+tag, func() bool {
			s := status(b.pod(pod), container)
			return strings.HasSuffix(s.Image, ":"+tag) && s.Ready
		})
	}
}
