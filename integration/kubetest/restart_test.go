package kubetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
)

// Danger: an update of the cluster that clients notice as more than a pause, or that loses what they were told is
// stored.
func TestRollingRestartUnderLoadLosesNothing(t *testing.T) {
	b := installed(t)
	before := b.uids(3)
	underLoad(t, b, func(*load) { b.step(t, "restart", 10*time.Minute) })
	for pod, uid := range b.uids(3) {
		require.NotEqual(t, before[pod], uid, "%s is the pod of before", pod)
	}
}

// Danger: a machine that goes takes what only its pod had acknowledged. Each pod goes once, one of them without a
// goodbye.
func TestAnyPodMayBeDeleted(t *testing.T) {
	b := installed(t)
	underLoad(t, b, func(*load) {
		for i, pod := range podNames(3) {
			before := b.uids(3)[pod]
			if i == 1 {
				b.must(t, "-n", namespace, "delete", "pod", pod, "--grace-period=0", "--force")
			} else {
				b.step(t, "delete-pod", 4*time.Minute, "POD="+pod)
			}
			podtest.Eventually(t, 2*time.Minute, pod+" is back", func() bool {
				p := b.pod(pod)
				return isReady(p) && string(p.UID) != before
			})
		}
	})
}

// Danger: a process that ends takes its neighbours with it, or does not come back.
func TestEachContainerRestartsAlone(t *testing.T) {
	b := installed(t)
	const pod = "pairdb-1"
	underLoad(t, b, func(*load) {
		for _, container := range containers {
			before := b.restarts(pod)
			b.step(t, "restart-container", 2*time.Minute, "POD="+pod, "CONTAINER="+container, "TAG=next")
			before[container]++
			podtest.Eventually(t, 2*time.Minute, container+" has restarted, and nothing else", func() bool {
				p := b.pod(pod)
				return isReady(p) && fmt.Sprint(b.restarts(pod)) == fmt.Sprint(before)
			})
		}
	})
}

// uids returns who the pods are: a new pod of an old name has another.
func (b *box) uids(n int) map[string]string {
	out := map[string]string{}
	for _, pod := range podNames(n) {
		if p := b.pod(pod); p != nil {
			out[pod] = string(p.UID)
		}
	}
	return out
}

// restarts returns how often each container of a pod was started again.
func (b *box) restarts(pod string) map[string]int32 {
	p := b.pod(pod)
	out := map[string]int32{}
	for _, c := range containers {
		out[c] = status(p, c).RestartCount
	}
	return out
}
