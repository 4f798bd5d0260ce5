package kubetest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/pairdb/pairdb/integration/podtest"
)

const (
	// namespace is that of the overlays.
	namespace = "pairdb"
	// name is that of the StatefulSet, and of the service that clients use.
	name = "pairdb"
	// readyBar is how soon after `kubectl apply` a cluster of three, whose images are there, must be ready.
	readyBar = time.Minute
	// converge is how soon every owner must have what was acknowledged: twice the bar of 40 s, since pods,
	// Kubernetes and this test share a few cores.
	converge = 80 * time.Second
	// records is how many keys the load has.
	records = 2_000
)

// overlay is a copy of the overlay of the tests, so that a procedure may edit it.
var overlay string

var containers = []string{"storage-node", "compactor", "migrator", "health-agent"}

// suite is what the tests share: one installation, and one load, so that each test also checks what those before
// it have acknowledged.
var suite struct {
	once   sync.Once
	tried  bool
	took   time.Duration
	load   *load
	failed bool
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "kubetest")
	if err != nil {
		panic(err)
	}
	overlay = filepath.Join(dir, "overlays", "test")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(root(), "deploy", "k8s"))); err != nil {
		panic(err)
	}
	code := m.Run()
	if suite.load != nil {
		suite.load.close()
	}
	if b, err := find(); err == nil && suite.tried {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		if _, err := b.do(ctx, "delete", "namespace", namespace, "--timeout=3m"); err != nil {
			fmt.Fprintln(os.Stderr, "the namespace stays:", err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// installed returns the cluster with three pods that are ready: the first test that asks installs it, as the page
// says. Each test leaves it so. What is still being deleted of a run before is waited for.
func installed(t *testing.T) *box {
	t.Helper()
	b := cluster(t)
	suite.once.Do(func() {
		suite.tried = true
		podtest.Eventually(t, 3*time.Minute, "no namespace of that name is being deleted", func() bool {
			return b.must(t, "get", "namespace", "--field-selector=status.phase=Terminating,metadata.name="+namespace, "-o", "name") == ""
		})
		begun := time.Now()
		b.step(t, "install", 5*time.Minute)
		suite.took = time.Since(begun)
	})
	require.Positive(t, suite.took, "the installation failed")
	t.Cleanup(func() {
		if t.Failed() {
			b.tell(t)
		}
	})
	b.ready(t, 3)
	return b
}

// tell logs how everything is.
func (b *box) tell(t *testing.T) {
	for _, args := range [][]string{
		{"-n", namespace, "get", "pods,pvc,statefulsets", "-o", "wide"},
		{"-n", namespace, "get", "events", "--sort-by=.lastTimestamp"},
		{"-n", namespace, "logs", "-l", "app.kubernetes.io/component=storage", "--all-containers", "--prefix", "--tail=40", "--max-log-requests=30"},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		out, err := b.do(ctx, args...)
		cancel()
		lines := strings.Split(out, "\n")
		t.Logf("kubectl %s: %v\n%s", strings.Join(args, " "), err, strings.Join(lines[max(0, len(lines)-200):], "\n"))
	}
}

// podName is the name of a pod by its ordinal.
func podName(i int) string { return name + "-" + strconv.Itoa(i) }

func podNames(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = podName(i)
	}
	return out
}

// pod returns what Kubernetes knows of a pod; nil while there is none.
func (b *box) pod(pod string) *corev1.Pod {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := b.do(ctx, "-n", namespace, "get", "pod", pod, "-o", "json")
	if err != nil {
		return nil
	}
	var p corev1.Pod
	if err := json.Unmarshal([]byte(out), &p); err != nil {
		return nil
	}
	return &p
}

func isReady(p *corev1.Pod) bool {
	if p == nil || p.DeletionTimestamp != nil {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// status returns the status of a container of a pod, the empty one if there is none.
func status(p *corev1.Pod, container string) corev1.ContainerStatus {
	if p != nil {
		for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
			if c.Name == container {
				return c
			}
		}
	}
	return corev1.ContainerStatus{}
}

// ready waits until the first n pods are ready.
func (b *box) ready(t *testing.T, n int) {
	t.Helper()
	for _, pod := range podNames(n) {
		podtest.Eventually(t, 3*time.Minute, pod+" is ready", func() bool { return isReady(b.pod(pod)) })
	}
}

// theLoad returns the load of the suite.
func theLoad(t *testing.T, b *box) *load {
	t.Helper()
	if suite.load == nil {
		u, err := newTunnels(b.config)
		require.NoError(t, err)
		suite.load = newLoad(u.dial, records, podNames(3)...)
	}
	return suite.load
}

// underLoad does something while clients write, and requires that every write came to success and that every
// owner has, in the end, exactly what was acknowledged since the first test.
func underLoad(t *testing.T, b *box, f func(l *load)) {
	t.Helper()
	l := theLoad(t, b)
	require.False(t, suite.failed, "a test before this one has lost something")
	suite.failed = true // until it is known better
	l.begin(t)
	f(l)
	l.end(t)
	l.holds(t, converge)
	suite.failed = false
}

// twoCopies is underLoad with writes that two owners have acknowledged: what is to survive the loss of a disk. All
// that was acknowledged before is on every owner, or the test before has failed.
func twoCopies(t *testing.T, b *box, f func()) {
	t.Helper()
	theLoad(t, b).quorum = true
	defer func() { suite.load.quorum = false }()
	underLoad(t, b, func(*load) { f() })
}
