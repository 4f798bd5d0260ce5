package kubetest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/pairdb/pairdb/integration/deploytest"
	"github.com/pairdb/pairdb/integration/podtest"
)

// patience is how long Kubernetes may take to start pods and to tell what is wrong with them.
const patience = 3 * time.Minute

// wrong is an installation of one pod in a namespace of its own, with something wrong in it. It has no NATS.
type wrong struct {
	*box
	t         *testing.T
	namespace string
}

// install renders the overlay of the tests, lets change make it wrong, and applies it. The data is in memory
// unless change says otherwise: a volume that was used once is not to be had again on every cluster.
func install(t *testing.T, change func(*appsv1.StatefulSet, *corev1.ConfigMap)) *wrong {
	t.Helper()
	return installDir(t, filepath.Join(root(), "deploy", "k8s", "overlays", "test"), change)
}

// installDir is install of another overlay.
func installDir(t *testing.T, dir string, change func(*appsv1.StatefulSet, *corev1.ConfigMap)) *wrong {
	t.Helper()
	name := strings.ToLower(t.Name()[4:])
	w := &wrong{box: cluster(t), t: t, namespace: "pairdb-wrong-" + name[:min(len(name), 40)]}
	objects, err := deploytest.RenderDir(dir)
	require.NoError(t, err)
	var set *appsv1.StatefulSet
	var config *corev1.ConfigMap
	for _, o := range objects {
		switch o := o.(type) {
		case *appsv1.StatefulSet:
			if o.Name == "pairdb" {
				set = o
			}
		case *corev1.ConfigMap:
			if strings.HasPrefix(o.Name, "pairdb-") {
				config = o
			}
		}
	}
	one := int32(1)
	set.Spec.Replicas, set.Spec.VolumeClaimTemplates = &one, nil
	set.Spec.Template.Spec.Volumes = append(set.Spec.Template.Spec.Volumes, inMemory("256Mi"))
	change(set, config)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if t.Failed() {
			out, _ := w.do(ctx, "-n", w.namespace, "describe", "pods")
			t.Log(out)
		}
		_, err := w.do(ctx, "delete", "namespace", w.namespace, "--wait=false", "--ignore-not-found")
		require.NoError(t, err)
	})
	for _, o := range objects {
		if n, ok := o.(*corev1.Namespace); ok {
			n.Name = w.namespace
			w.apply(n)
		}
	}
	for _, o := range objects {
		a, err := meta.Accessor(o)
		require.NoError(t, err)
		switch o.(type) {
		case *corev1.ConfigMap, *corev1.Service, *corev1.ServiceAccount:
			if a.SetNamespace(w.namespace); !strings.HasPrefix(a.GetName(), "nats") {
				w.apply(o)
			}
		}
	}
	set.Namespace = w.namespace
	w.apply(set) // when all that it needs is there
	return w
}

func inMemory(size string) corev1.Volume {
	limit := resource.MustParse(size)
	return corev1.Volume{Name: "data", VolumeSource: corev1.VolumeSource{
		EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &limit},
	}}
}

func (w *wrong) apply(o any) {
	w.t.Helper()
	text, err := json.Marshal(o)
	require.NoError(w.t, err)
	file := filepath.Join(w.t.TempDir(), "object.json")
	require.NoError(w.t, os.WriteFile(file, text, 0o600))
	w.must(w.t, "apply", "-f", file)
}

// container returns the container of a pod template.
func container(set *appsv1.StatefulSet, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{set.Spec.Template.Spec.InitContainers, set.Spec.Template.Spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	panic("no container " + name)
}

// pod returns what Kubernetes knows of a pod; the zero one while there is none.
func (w *wrong) pod(name string) corev1.Pod {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var p corev1.Pod
	if out, err := w.do(ctx, "-n", w.namespace, "get", "pod", name, "-o", "json"); err == nil {
		require.NoError(w.t, json.Unmarshal([]byte(out), &p))
	}
	return p
}

// terminated returns how a container ended last; the zero value while it never has.
func (w *wrong) terminated(pod, container string) corev1.ContainerStateTerminated {
	p := w.pod(pod)
	for _, s := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if s.Name != container {
			continue
		}
		for _, state := range []corev1.ContainerState{s.State, s.LastTerminationState} {
			if state.Terminated != nil {
				return *state.Terminated
			}
		}
	}
	return corev1.ContainerStateTerminated{}
}

// ends waits until a container has ended with an exit code, and returns its termination message.
func (w *wrong) ends(pod, container string, code int32) string {
	w.t.Helper()
	var end corev1.ContainerStateTerminated
	podtest.Eventually(w.t, patience, container+" ends", func() bool {
		end = w.terminated(pod, container)
		return end.Reason != ""
	})
	require.Equal(w.t, code, end.ExitCode, "%+v", end)
	return end.Message
}

// event waits for an event of an object whose text has all the words.
func (w *wrong) event(object string, words ...string) {
	w.t.Helper()
	podtest.Eventually(w.t, patience, fmt.Sprintf("an event of %s with %q", object, words), func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		out, err := w.do(ctx, "-n", w.namespace, "get", "events", "-o",
			`jsonpath={range .items[*]}{.involvedObject.name}{"\t"}{.reason}{" "}{.message}{"\n"}{end}`)
		if err != nil {
			return false
		}
		for line := range strings.SplitSeq(out, "\n") {
			name, text, _ := strings.Cut(line, "\t")
			all := name == object
			for _, word := range words {
				all = all && strings.Contains(text, word)
			}
			if all {
				return true
			}
		}
		return false
	})
}

func (w *wrong) ready(pod string) bool {
	for _, c := range w.pod(pod).Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func (w *wrong) becomesReady(pod string) {
	w.t.Helper()
	podtest.Eventually(w.t, patience, pod+" is ready", func() bool { return w.ready(pod) })
}

// verdict returns what the pod says of itself.
func (w *wrong) verdict(pod string) string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := w.do(ctx, "-n", w.namespace, "exec", pod, "-c", "health-agent", "--", "/health-agent", "probe", "http://127.0.0.1:9094/ready")
	return fmt.Sprint(out, err)
}

// pairctl runs the tool in a pod of its own and returns its exit code and what it said.
func (w *wrong) pairctl(name string, args ...string) (code int32, said string) {
	w.t.Helper()
	yes, no, user := true, false, int64(1005)
	p := &corev1.Pod{}
	p.APIVersion, p.Kind, p.Name, p.Namespace = "v1", "Pod", name, w.namespace
	p.Labels = map[string]string{"pairdb.io/client": "true"}
	p.Spec = corev1.PodSpec{
		RestartPolicy: corev1.RestartPolicyNever, AutomountServiceAccountToken: &no, EnableServiceLinks: &no,
		SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: &user, RunAsGroup: &user, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
		Containers: []corev1.Container{{
			Name: "pairctl", Image: "pairdb/pairctl:dev", ImagePullPolicy: corev1.PullIfNotPresent,
			Args: append([]string{"--addr", "pairdb-0.pairdb-headless:8080"}, args...), TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
			SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}},
		}},
	}
	w.apply(p)
	podtest.Eventually(w.t, patience, name+" ends", func() bool { return w.terminated(name, "pairctl").Reason != "" })
	return w.terminated(name, "pairctl").ExitCode, w.must(w.t, "-n", w.namespace, "logs", name)
}

// Danger: a key with a typing error is ignored, and the pod runs with the default.
func TestUnknownKeyIsTheTerminationMessage(t *testing.T) {
	w := install(t, func(_ *appsv1.StatefulSet, c *corev1.ConfigMap) { c.Data["PAIRDB_MEMTABLE_BYTE"] = "8MiB" })
	// It is the first container of the pod; the others wait for it.
	require.Contains(t, w.ends("pairdb-0", "health-agent", 2), "PAIRDB_MEMTABLE_BYTE: unknown key; the nearest known one is PAIRDB_MEMTABLE_BYTES")
}

// Danger: the pod starts without the keys of its gossip, and talks in the clear.
func TestMissingSecretHoldsThePodBack(t *testing.T) {
	prod, err := deploytest.Render(root(), "prod")
	require.NoError(t, err)
	var asked []corev1.Volume
	for _, o := range prod {
		if set, ok := o.(*appsv1.StatefulSet); ok && set.Name == "pairdb" {
			for _, v := range set.Spec.Template.Spec.Volumes {
				if v.Secret != nil && v.Secret.SecretName == "pairdb-gossip" {
					asked = append(asked, v)
				}
			}
		}
	}
	require.Len(t, asked, 1, "prod asks for the secret")
	w := install(t, func(set *appsv1.StatefulSet, _ *corev1.ConfigMap) {
		set.Spec.Template.Spec.Volumes = append(set.Spec.Template.Spec.Volumes, asked...)
		agent := container(set, "health-agent")
		agent.VolumeMounts = append(agent.VolumeMounts, corev1.VolumeMount{Name: asked[0].Name, MountPath: "/etc/pairdb/gossip", ReadOnly: true})
		agent.Env = append(agent.Env, corev1.EnvVar{Name: "PAIRDB_GOSSIP_KEYRING", Value: "/etc/pairdb/gossip/keyring"})
	})
	w.event("pairdb-0", "FailedMount", `secret "pairdb-gossip" not found`)
	for _, s := range w.pod("pairdb-0").Status.ContainerStatuses {
		require.Nil(t, s.State.Running, "%s has started", s.Name)
	}
	w.must(t, "-n", w.namespace, "create", "secret", "generic", "pairdb-gossip", "--from-literal=keyring=MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")
	w.becomesReady("pairdb-0")
}

// Danger: data lands on whatever disk there is, or nobody says why the pod does not start.
func TestWrongStorageClassIsSaid(t *testing.T) {
	w := install(t, func(set *appsv1.StatefulSet, _ *corev1.ConfigMap) {
		class := "no-such-class"
		set.Spec.Template.Spec.Volumes = set.Spec.Template.Spec.Volumes[:len(set.Spec.Template.Spec.Volumes)-1]
		claim := corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		}}
		claim.Name = "data"
		set.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{claim}
	})
	w.event("data-pairdb-0", "ProvisioningFailed", `"no-such-class" not found`)
	w.event("pairdb-0", "FailedScheduling", "unbound immediate PersistentVolumeClaims")
	require.Equal(t, corev1.PodPending, w.pod("pairdb-0").Status.Phase)
}

// Danger: a full volume ends the node, which then can't start, and reads are gone with it.
func TestFullVolumeRefusesWritesAndServesReads(t *testing.T) {
	w := install(t, func(set *appsv1.StatefulSet, _ *corev1.ConfigMap) {
		set.Spec.Template.Spec.Volumes[len(set.Spec.Template.Spec.Volumes)-1] = inMemory("1Mi") // less than the reserve
	})
	w.becomesReady("pairdb-0")
	require.Contains(t, w.verdict("pairdb-0"), "disk (full: ")
	code, out := w.pairctl("put", "put", "greeting", "hello")
	require.NotZero(t, code, out)
	require.Contains(t, out, "DISK_FULL")
	code, out = w.pairctl("get", "get", "greeting")
	require.EqualValues(t, 3, code, "a read is answered: %s", out)
	require.Empty(t, w.terminated("pairdb-0", "storage-node").Reason)
}

// Danger: a volume that can't be written is an endless loop without a reason.
func TestReadOnlyVolumeIsTheTerminationMessage(t *testing.T) {
	w := install(t, func(set *appsv1.StatefulSet, _ *corev1.ConfigMap) {
		node := container(set, "storage-node")
		for i := range node.VolumeMounts {
			node.VolumeMounts[i].ReadOnly = node.VolumeMounts[i].Name == "data"
		}
	})
	require.Contains(t, w.ends("pairdb-0", "storage-node", 5), "read-only file system")
	w.event("pairdb-0", "not ready", "node (no answer")
}

// Danger: two nodes answer under one name, and each has half of the writes.
func TestTwoPodsOfOneIdentityAreOnePodThatServes(t *testing.T) {
	same := func(set *appsv1.StatefulSet, _ *corev1.ConfigMap) {
		for _, name := range []string{"storage-node", "health-agent"} {
			for i, e := range container(set, name).Env {
				if e.Name == "PAIRDB_NODE_ID" {
					container(set, name).Env[i] = corev1.EnvVar{Name: e.Name, Value: "pairdb-0"}
				}
			}
		}
	}
	w := install(t, same)
	w.becomesReady("pairdb-0")
	w.must(t, "-n", w.namespace, "scale", "statefulset", "pairdb", "--replicas=2")
	w.event("pairdb-1", "Unhealthy", "duplicate-id (pairdb-0 was at")
	require.False(t, w.ready("pairdb-1"))
	require.True(t, w.ready("pairdb-0"))
	require.Empty(t, w.terminated("pairdb-0", "storage-node").Reason)
}

// Danger: two nodes write into one volume. A volume that one machine may mount is mounted by two pods there.
func TestTwoNodesOnOneVolumeAreOneThatServes(t *testing.T) {
	w := install(t, func(set *appsv1.StatefulSet, _ *corev1.ConfigMap) {
		second := container(set, "storage-node").DeepCopy()
		second.Name, second.Ports, second.Lifecycle = "second", nil, nil
		second.StartupProbe, second.LivenessProbe, second.ReadinessProbe = nil, nil, nil
		second.Env = append(second.Env, corev1.EnvVar{Name: "PAIRDB_GRPC_ADDR", Value: ":18080"}, corev1.EnvVar{Name: "PAIRDB_OPS_ADDR", Value: ":19091"},
			corev1.EnvVar{Name: "PAIRDB_SOCKET", Value: "/run/pairdb/second.sock"})
		set.Spec.Template.Spec.Containers = append(set.Spec.Template.Spec.Containers, *second)
	})
	require.Contains(t, w.ends("pairdb-0", "second", 3), "another process")
	require.Empty(t, w.terminated("pairdb-0", "storage-node").Reason)
}

// Danger: a compactor of another release writes tables that the node can't read, or nothing is merged any more and
// nobody says so.
func TestCompactorOfAnotherFormatIsRefused(t *testing.T) {
	b := cluster(t)
	dir := t.TempDir()
	worker := filepath.Join(root(), "services", "compactor", "internal", "worker", "worker.go")
	source, err := os.ReadFile(worker)
	require.NoError(t, err)
	changed := strings.Replace(string(source), "var Formats = []uint32{1}", "var Formats = []uint32{2}", 1)
	require.NotEqual(t, string(source), changed, "the line that says the format has moved")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "worker.go"), []byte(changed), 0o600))
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{worker: filepath.Join(dir, "worker.go")}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "overlay.json"), replace, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY compactor /compactor\nENTRYPOINT [\"/compactor\"]\n"), 0o600))
	run := func(name string, args ...string) {
		cmd := exec.Command(name, args...)
		cmd.Dir = filepath.Join(root(), "services")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "CONTEXT="+b.context)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s %v: %s", name, args, out)
	}
	run("go", "build", "-trimpath", "-overlay", filepath.Join(dir, "overlay.json"), "-o", filepath.Join(dir, "compactor"), "./compactor")
	const image = "pairdb/compactor:format-2"
	run("docker", "build", "-q", "-t", image, dir)
	t.Cleanup(func() { run("docker", "rmi", image) })
	run(filepath.Join(root(), "tilt", "load"), image)

	w := install(t, func(set *appsv1.StatefulSet, _ *corev1.ConfigMap) { container(set, "compactor").Image = image })
	require.Contains(t, w.ends("pairdb-0", "compactor", 6), "it knows the table formats [2], this node [1]: run a compactor of the node's release")
	// The right image, in place: the node goes on as if nothing had been.
	w.must(t, "-n", w.namespace, "set", "image", "pod/pairdb-0", "compactor=pairdb/compactor:dev")
	w.becomesReady("pairdb-0")
	require.Empty(t, w.terminated("pairdb-0", "storage-node").Reason)
}

// Danger: without NATS nothing starts.
func TestWithoutNATSThePodServes(t *testing.T) {
	w := install(t, func(*appsv1.StatefulSet, *corev1.ConfigMap) {})
	w.becomesReady("pairdb-0")
	require.Contains(t, w.verdict("pairdb-0"), "ready, degraded: events (NATS is not reached")
	code, out := w.pairctl("put", "put", "greeting", "hello")
	require.Zero(t, code, out)
	code, out = w.pairctl("get", "get", "greeting")
	require.Zero(t, code, out)
	require.Contains(t, out, "hello")
}
