package deploytest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
)

// Danger: NATS does not start with the configuration that is shipped, listens elsewhere, or lets everybody in.
func TestNATSTakesItsConfiguration(t *testing.T) {
	user, err := nkeys.CreateUser()
	require.NoError(t, err)
	public, err := user.PublicKey()
	require.NoError(t, err)
	for _, overlay := range Overlays {
		objects := render(t, overlay)
		set := setOf(t, objects, "nats")
		c := set.Spec.Template.Spec.Containers[0]
		root := t.TempDir() // of a container
		put := func(path, text string) {
			path = filepath.Join(root, path)
			require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
			require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		}
		for _, m := range c.VolumeMounts {
			for _, v := range set.Spec.Template.Spec.Volumes {
				switch {
				case v.Name != m.Name:
				case v.ConfigMap != nil:
					for _, o := range objects {
						if config, ok := o.(*corev1.ConfigMap); ok && config.Name == v.ConfigMap.Name {
							for name, text := range config.Data {
								put(filepath.Join(m.MountPath, name), text)
							}
						}
					}
				case v.Secret != nil: // as deploy/k8s/README.md makes it
					put(filepath.Join(m.MountPath, v.Secret.Items[0].Path), "authorization { users: [ { nkey: "+public+" } ] }\n")
				}
			}
		}
		t.Setenv("POD_NAME", "nats-0")
		require.Equal(t, []string{"-c", "/etc/nats/nats.conf"}, c.Args)
		o, err := server.ProcessConfigFile(filepath.Join(root, c.Args[1]))
		require.NoError(t, err, overlay)
		require.Equal(t, "nats-0", o.ServerName)
		require.True(t, o.JetStream)
		require.Equal(t, "/data", o.StoreDir)
		ports := map[string]int32{}
		for _, p := range c.Ports {
			ports[p.Name] = p.ContainerPort
		}
		require.EqualValues(t, ports["client"], o.Port)
		require.EqualValues(t, ports["monitor"], o.HTTPPort)
		if *set.Spec.Replicas == 1 {
			require.Empty(t, o.Cluster.Name, overlay)
			continue
		}
		require.EqualValues(t, ports["routes"], o.Cluster.Port)
		require.Len(t, o.Routes, int(*set.Spec.Replicas))
		for i, route := range o.Routes {
			require.Equal(t, "nats-"+string(rune('0'+i))+"."+set.Spec.ServiceName, strings.Split(route.Host, ":")[0])
		}
		require.Len(t, o.Nkeys, 1, "who has no key is refused")
		require.Equal(t, public, o.Nkeys[0].Nkey)
	}
}
