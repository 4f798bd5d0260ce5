package kubetest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
)

// Danger: a node that is added answers before it has what it answers for; one that is taken away takes data along.
func TestScaleUpAndDownAgain(t *testing.T) {
	b := installed(t)
	underLoad(t, b, func(l *load) {
		b.step(t, "scale-up", 10*time.Minute)
		l.now(podNames(4)...)
	})
	b.step(t, "cleanup", 5*time.Minute)
	underLoad(t, b, func(l *load) {
		b.step(t, "drain", 5*time.Minute)
		l.now(podNames(3)...)
		b.step(t, "scale-down", 5*time.Minute)
	})
	require.Nil(t, b.pod(podName(3)))
}

// Danger: a disk that is lost is lost data, or a replica that answers "not found" for what it had.
func TestLostVolumeIsRebuiltFromThePeers(t *testing.T) {
	b := installed(t)
	before := b.get(t, "pvc/data-pairdb-1", "{.metadata.uid}")
	twoCopies(t, b, func() { b.step(t, "lose-volume", 10*time.Minute) })
	require.NotEqual(t, before, b.get(t, "pvc/data-pairdb-1", "{.metadata.uid}"))
	podtest.Eventually(t, time.Minute, "pairdb-1 is ready", func() bool { return isReady(b.pod("pairdb-1")) })
}
