package deploytest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/pairdb/pairdb/libs/identity/authority"
)

// natsUsers are those whose public keys the secret nats-auth has, as deploy/k8s/README.md makes it.
var natsUsers = []string{"storage_node", "health_agent", "migrator", "operator"}

// broker is what NATS of an overlay is given: its configuration, with secrets made for it.
type broker struct {
	options *server.Options
	seeds   map[string]string // of natsUsers: files
	ca      string            // a file; its certificate counts when there is TLS
}

// brokerOf puts the files of NATS' container below a directory, and reads the configuration as the server does.
func brokerOf(t *testing.T, objects []runtime.Object) broker {
	t.Helper()
	b := broker{seeds: map[string]string{}}
	set := setOf(t, objects, "nats")
	c := set.Spec.Template.Spec.Containers[0]
	root := t.TempDir() // of a container
	put := func(path, text string) string {
		path = filepath.Join(root, path)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	var keys strings.Builder
	for _, name := range natsUsers {
		user, err := nkeys.CreateUser()
		require.NoError(t, err)
		seed, err := user.Seed()
		require.NoError(t, err)
		public, err := user.PublicKey()
		require.NoError(t, err)
		b.seeds[name] = put("seeds/"+name, string(seed))
		fmt.Fprintf(&keys, "%s_key: %s\n", name, public)
	}
	ca, err := authority.Open(filepath.Join(root, "ca"))
	require.NoError(t, err)
	files, err := ca.Issue(authority.Leaf{File: "nats", Hosts: []string{"nats", "*.nats-headless", "127.0.0.1"}, Valid: time.Hour})
	require.NoError(t, err)
	b.ca = files.TLSCA
	secrets := map[string]map[string]string{
		"nats-auth": {"keys.conf": keys.String()},
		"nats-tls":  {"tls.crt": read(t, files.TLSCert), "tls.key": read(t, files.TLSKey), "ca.crt": read(t, files.TLSCA)},
	}
	for _, m := range c.VolumeMounts {
		for _, v := range set.Spec.Template.Spec.Volumes {
			switch {
			case v.Name != m.Name:
			case v.ConfigMap != nil:
				for _, o := range objects {
					if config, ok := o.(*corev1.ConfigMap); ok && config.Name == v.ConfigMap.Name {
						for name, text := range config.Data {
							put(filepath.Join(m.MountPath, name), strings.ReplaceAll(text, ": /etc/", ": "+root+"/etc/"))
						}
					}
				}
			case v.Secret != nil:
				require.Contains(t, secrets, v.Secret.SecretName)
				for name, text := range secrets[v.Secret.SecretName] {
					put(filepath.Join(m.MountPath, name), text)
				}
			}
		}
	}
	t.Setenv("POD_NAME", "nats-0")
	require.Equal(t, []string{"-c", "/etc/nats/nats.conf"}, c.Args)
	b.options, err = server.ProcessConfigFile(filepath.Join(root, c.Args[1]))
	require.NoError(t, err)
	return b
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(text)
}

// Danger: NATS does not start with the configuration that is shipped, listens elsewhere, or lets everybody in.
func TestNATSTakesItsConfiguration(t *testing.T) {
	for _, overlay := range Overlays {
		for name, objects := range map[string][]runtime.Object{"clear": render(t, overlay), "tls": secured(t, overlay)} {
			t.Run(overlay+"/"+name, func(t *testing.T) {
				set := setOf(t, objects, "nats")
				o := brokerOf(t, objects).options
				require.Equal(t, "nats-0", o.ServerName)
				require.True(t, o.JetStream)
				require.Equal(t, "/data", o.StoreDir)
				require.Equal(t, name == "tls", o.TLSConfig != nil, "who listens to the wire")
				ports := map[string]int32{}
				for _, p := range set.Spec.Template.Spec.Containers[0].Ports {
					ports[p.Name] = p.ContainerPort
				}
				require.EqualValues(t, ports["client"], o.Port)
				require.EqualValues(t, ports["monitor"], o.HTTPPort)
				if *set.Spec.Replicas == 1 {
					require.Empty(t, o.Cluster.Name)
					return
				}
				require.Equal(t, name == "tls", o.Cluster.TLSConfig != nil, "who listens between the servers")
				require.EqualValues(t, ports["routes"], o.Cluster.Port)
				require.Len(t, o.Routes, int(*set.Spec.Replicas))
				for i, route := range o.Routes {
					require.Equal(t, "nats-"+string(rune('0'+i))+"."+set.Spec.ServiceName, strings.Split(route.Host, ":")[0])
				}
				require.Len(t, o.Nkeys, len(natsUsers), "who has no key is refused")
			})
		}
	}
}

// Danger: a container that is taken over commands the cluster, or speaks for its nodes.
func TestUsersOfNATSMayDoWhatTheyNeedAndNoMore(t *testing.T) {
	b := brokerOf(t, secured(t, "prod"))
	o := b.options
	o.Host, o.Port, o.HTTPPort, o.StoreDir = "127.0.0.1", server.RANDOM_PORT, 0, t.TempDir()
	o.Cluster, o.Routes, o.NoLog, o.NoSigs = server.ClusterOpts{}, nil, true, true // one is enough for its users
	s, err := server.NewServer(o)
	require.NoError(t, err)
	go s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	require.True(t, s.ReadyForConnections(30*time.Second))
	url := fmt.Sprintf("tls://127.0.0.1:%d", s.Addr().(*net.TCPAddr).Port)

	_, err = nats.Connect(url, nats.RootCAs(b.ca))
	require.ErrorContains(t, err, "Authorization Violation", "somebody without a key")

	const event, cmd, inbox = "pairdb.pairdb.event.pairdb-0.node.ready", "pairdb.pairdb.cmd.pairdb-0.drain", "_INBOX.x"
	for name, may := range map[string]map[string]bool{
		"storage_node": {"pub " + event: true, "pub " + cmd: false, "sub " + cmd: false, "sub " + event: false, "sub " + inbox: true, "pub $JS.API.STREAM.DELETE.PAIRDB_EVENTS": false},
		"health_agent": {"pub " + event: false, "pub " + cmd: false, "sub " + cmd: true, "sub " + event: false, "pub " + inbox: true, "sub $SRV.PING": true},
		"migrator":     {"pub " + event: false, "pub " + cmd: false, "sub " + cmd: true, "sub " + event: false, "pub " + inbox: true, "sub $SRV.PING": true},
		"operator":     {"pub " + event: false, "pub " + cmd: true, "sub " + cmd: false, "sub " + event: true, "sub " + inbox: true},
	} {
		option, err := nats.NkeyOptionFromSeed(b.seeds[name])
		require.NoError(t, err)
		refused := make(chan error, 16)
		nc, err := nats.Connect(url, option, nats.RootCAs(b.ca), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
		require.NoError(t, err, name)
		for what, allowed := range may {
			verb, subject, _ := strings.Cut(what, " ")
			if verb == "pub" {
				require.NoError(t, nc.Publish(subject, nil))
			} else {
				_, err := nc.SubscribeSync(subject)
				require.NoError(t, err)
			}
			require.NoError(t, nc.Flush()) // a refusal comes before the answer to this
			select {
			case err := <-refused:
				require.False(t, allowed, "%s: %s: %v", name, what, err)
				require.ErrorIs(t, err, nats.ErrPermissionViolation)
			case <-time.After(100 * time.Millisecond):
				require.True(t, allowed, "%s may %s", name, what)
			}
		}
		nc.Close()
	}
}
