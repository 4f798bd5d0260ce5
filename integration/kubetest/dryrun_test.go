package kubetest

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/pairdb/pairdb/integration/deploytest"
)

// Danger: an overlay that nobody has applied for a while is refused by the API server, or warned about by its
// restricted level, on the day when it is needed.
func TestTheAPIServerTakesEveryOverlay(t *testing.T) {
	b := cluster(t)
	for _, overlay := range deploytest.Overlays {
		t.Run(overlay, func(t *testing.T) {
			// A namespace of its own, that really is there: what is in it is only tried.
			namespace := "pairdb-try-" + overlay
			objects, err := deploytest.Render(root(), overlay)
			require.NoError(t, err)
			list := corev1.List{}
			list.APIVersion, list.Kind = "v1", "List"
			dir := t.TempDir()
			write := func(name string, o any) string {
				text, err := json.Marshal(o)
				require.NoError(t, err)
				file := filepath.Join(dir, name)
				require.NoError(t, os.WriteFile(file, text, 0o600))
				return file
			}
			for _, o := range objects {
				if n, ok := o.(*corev1.Namespace); ok {
					n.Name = namespace
					b.must(t, "apply", "-f", write("namespace.json", n))
					t.Cleanup(func() { b.must(t, "delete", "namespace", namespace, "--wait=false") })
					continue
				}
				a, err := meta.Accessor(o)
				require.NoError(t, err)
				a.SetNamespace(namespace)
				list.Items = append(list.Items, rawOf(t, o))
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			out, err := b.do(ctx, "apply", "--server-side", "--dry-run=server", "--warnings-as-errors", "-f", write("objects.json", list))
			require.NoError(t, err)
			require.Len(t, strings.Split(out, "\n"), len(list.Items), out)
		})
	}
}

func rawOf(t *testing.T, o runtime.Object) runtime.RawExtension {
	t.Helper()
	text, err := json.Marshal(o)
	require.NoError(t, err)
	return runtime.RawExtension{Raw: text}
}
