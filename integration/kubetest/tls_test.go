package kubetest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/pairdb/pairdb/integration/deploytest"
	"github.com/pairdb/pairdb/integration/podtest"
)

// step runs a procedure of the page, word for word but for the namespace.
func (w *wrong) step(t *testing.T, name string, limit time.Duration, env ...string) string {
	t.Helper()
	all := steps(t)[name]
	require.Len(t, all, 1, "%s has no step %q", page, name)
	script := strings.NewReplacer("-n pairdb ", "-n "+w.namespace+" ", ".pairdb.svc", "."+w.namespace+".svc").Replace(all[0])
	return w.shell(t, limit, script, append(env, "NAMESPACE="+w.namespace)...)
}

// Danger: the component that is to shut everybody out shuts the pods out: their probes, their gossip, or what they ask
// of each other.
func TestPodsWithCertificatesAreAClusterThatNobodyElseReaches(t *testing.T) {
	dir := filepath.Join(filepath.Dir(overlay), "secure")
	require.NoError(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(`apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../test]
components: [../../components/tls]
`), 0o600))
	w := installDir(t, dir, func(set *appsv1.StatefulSet, _ *corev1.ConfigMap) {
		two := int32(2)
		set.Spec.Replicas = &two
	})
	w.nats(dir)
	tls := "TLS=" + filepath.Join(t.TempDir(), "tls")
	w.step(t, "tls-secrets", time.Minute, tls)
	podtest.Eventually(t, patience, "both pods are ready", func() bool {
		for i := range 2 {
			p := w.pod(podName(i))
			ready := false
			for _, c := range p.Status.Conditions {
				ready = ready || c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
			}
			if !ready {
				return false
			}
		}
		return true
	})
	out := w.step(t, "tls-client", time.Minute, tls)
	require.Contains(t, out, "hello")

	// They hear and know each other: gossip with a key, and calls over TLS.
	operator := `export PAIRDB_TLS_CERT="$TLS/operator.pem" PAIRDB_TLS_KEY="$TLS/operator.key" PAIRDB_TLS_CA="$TLS/ca.pem"
deploy/k8s/pairctl pairdb-1 --tls-server-name pairdb-1.pairdb-headless.` + w.namespace + `.svc `
	env := []string{tls, "NAMESPACE=" + w.namespace}
	podtest.Eventually(t, patience, "both are members, alive and ready", func() bool {
		return strings.Count(w.shell(t, time.Minute, operator+"members", env...), "alive") == 2
	})
	w.shell(t, 2*time.Minute, operator+"repair --wait", env...)
	second := strings.ReplaceAll(steps(t)["tls-client"][0], "pairdb-0", "pairdb-1")
	second = strings.NewReplacer(".pairdb.svc", "."+w.namespace+".svc", " put greeting hello", " get greeting").Replace(second)
	require.Contains(t, w.shell(t, time.Minute, second, env...), "hello", "what one has was brought to the other")

	// NATS shows the certificate that the pods expect, which nobody else knows, and has their events.
	require.Contains(t, w.shell(t, time.Minute, `
kubectl -n "$NAMESPACE" port-forward svc/nats :4222 >"$TLS/forward" &
trap 'kill $!' EXIT
until grep -q 'from 127' "$TLS/forward"; do sleep 0.2; done
port=$(sed -n 's/.*from 127.0.0.1:\([0-9]*\) .*/\1/p' "$TLS/forward")
export PAIRDB_NATS_CA="$TLS/ca.pem"
if PAIRDB_NATS_CA= pairctl events --nats "nats://localhost:$port" --since 1h --limit 1; then exit 1; fi 2>/dev/null
until pairctl events --nats "tls://localhost:$port" --since 1h --kind node.ready --limit 1 | grep node.ready; do sleep 0.5; done`, env...), "node.ready")

	// In the clear nobody is answered.
	out = w.shell(t, time.Minute, "if out=$(deploy/k8s/pairctl pairdb-0 get greeting 2>&1); then exit 1; fi; echo \"$out\"", env...)
	require.Contains(t, out, "--tls-cert")
}

// nats adds what installDir leaves out: the NATS of the overlay.
func (w *wrong) nats(dir string) {
	w.t.Helper()
	objects, err := deploytest.RenderDir(dir)
	require.NoError(w.t, err)
	for _, o := range objects {
		a, err := meta.Accessor(o)
		require.NoError(w.t, err)
		switch o.(type) {
		case *corev1.ConfigMap, *corev1.Service, *corev1.ServiceAccount, *appsv1.StatefulSet:
			if a.SetNamespace(w.namespace); strings.HasPrefix(a.GetName(), "nats") {
				w.apply(o)
			}
		}
	}
}
