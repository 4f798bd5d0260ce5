package deploytest

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/pairdb/pairdb/integration/podtest"
)

var update = flag.Bool("update", false, "write the rules of the monitoring component")

var root = filepath.Join("..", "..")

func render(t *testing.T, overlay string) []runtime.Object {
	t.Helper()
	objects, err := Render(root, overlay)
	require.NoError(t, err)
	return objects
}

func setOf(t *testing.T, objects []runtime.Object, name string) *appsv1.StatefulSet {
	t.Helper()
	for _, o := range objects {
		if s, ok := o.(*appsv1.StatefulSet); ok && s.Name == name {
			return s
		}
	}
	t.Fatalf("no StatefulSet %s", name)
	return nil
}

// copied returns copies that may be changed.
func copied(objects []runtime.Object) []runtime.Object {
	out := make([]runtime.Object, len(objects))
	for i, o := range objects {
		out[i] = o.DeepCopyObject()
	}
	return out
}

// Danger: one field is lost in a patch, and a container runs as root, or without a limit.
func TestOverlaysAreAsSafeAsTheyPromise(t *testing.T) {
	for _, overlay := range Overlays {
		require.Empty(t, Check(render(t, overlay)), overlay)
	}
}

// secured renders an overlay with the component tls.
func secured(t *testing.T, overlay string) []runtime.Object {
	t.Helper()
	objects, err := RenderDir(withComponents(t, overlay, "tls"))
	require.NoError(t, err)
	return objects
}

// withComponents returns a directory with a kustomization of an overlay and components.
func withComponents(t *testing.T, overlay string, components ...string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Join(root, "deploy", "k8s"))))
	mine := filepath.Join(dir, "mine")
	require.NoError(t, os.Mkdir(mine, 0o755))
	text := fmt.Sprintf("resources: [../overlays/%s]\ncomponents:\n", overlay)
	for _, c := range components {
		text += "  - ../components/" + c + "\n"
	}
	require.NoError(t, os.WriteFile(filepath.Join(mine, "kustomization.yaml"), []byte(text), 0o600))
	return mine
}

// Danger: a component that is only ever read loses what the overlay promises, or half of the probes.
func TestOverlaysWithCertificatesAreAsSafe(t *testing.T) {
	for _, overlay := range Overlays {
		objects := secured(t, overlay)
		require.Empty(t, Check(objects), overlay)
		set := setOf(t, objects, "pairdb")
		files := 0
		for _, v := range set.Spec.Template.Spec.Volumes {
			if v.Name == "tls" || v.Name == "gossip" {
				files++
				require.EqualValues(t, 0o440, *v.Secret.DefaultMode, "others do not read %s", v.Name)
			}
		}
		require.Equal(t, 2, files)
		for _, c := range containers(&set.Spec.Template.Spec) {
			require.True(t, slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "tls" && m.ReadOnly }), c.Name)
			for name, p := range map[string]*corev1.Probe{"liveness": c.LivenessProbe, "readiness": c.ReadinessProbe, "startup": c.StartupProbe} {
				switch {
				case p == nil:
				case p.HTTPGet != nil:
					require.Equal(t, corev1.URISchemeHTTPS, p.HTTPGet.Scheme, "%s of %s", name, c.Name)
				case p.Exec != nil:
					require.Contains(t, strings.Join(p.Exec.Command, " "), "https://127.0.0.1:", "%s of %s", name, c.Name)
				default:
					t.Errorf("%s of %s speaks no TLS", name, c.Name)
				}
			}
		}
		for _, o := range objects {
			if m, ok := o.(*corev1.ConfigMap); ok && strings.HasPrefix(m.Name, "pairdb-") {
				for key, file := range map[string]string{"PAIRDB_TLS_CERT": "/etc/pairdb/tls/tls.crt", "PAIRDB_TLS_KEY": "/etc/pairdb/tls/tls.key", "PAIRDB_TLS_CA": "/etc/pairdb/tls/ca.crt", "PAIRDB_GOSSIP_KEYRING": "/etc/pairdb/gossip/keyring", "PAIRDB_NATS_URL": "tls://nats:4222", "PAIRDB_NATS_CA": "/etc/pairdb/tls/ca.crt"} {
					require.Equal(t, file, m.Data[key])
				}
			}
			if s, ok := o.(*corev1.Service); ok && strings.HasPrefix(s.Name, "pairdb") {
				require.Nil(t, s.Spec.Ports[0].AppProtocol, "what is encrypted is no h2c")
			}
		}
	}
}

// Danger: a check that can't fail. Whatever is taken away from a manifest has to be noticed, where it was.
func TestEveryLostFieldIsNoticed(t *testing.T) {
	no, yes := false, true
	ofContainers := map[string]func(c *corev1.Container){
		"image version":   func(c *corev1.Container) { c.Image, _, _ = strings.Cut(c.Image, ":") },
		"latest":          func(c *corev1.Container) { c.Image, _, _ = strings.Cut(c.Image, ":"); c.Image += ":latest" },
		"pull policy":     func(c *corev1.Container) { c.ImagePullPolicy = "" },
		"message":         func(c *corev1.Container) { c.TerminationMessagePolicy = "" },
		"context":         func(c *corev1.Container) { c.SecurityContext = nil },
		"user":            func(c *corev1.Container) { c.SecurityContext.RunAsUser = nil },
		"non-root":        func(c *corev1.Container) { c.SecurityContext.RunAsNonRoot = nil },
		"root of files":   func(c *corev1.Container) { c.SecurityContext.ReadOnlyRootFilesystem = nil },
		"escalation":      func(c *corev1.Container) { c.SecurityContext.AllowPrivilegeEscalation = nil },
		"privileged":      func(c *corev1.Container) { c.SecurityContext.Privileged = &yes },
		"capabilities":    func(c *corev1.Container) { c.SecurityContext.Capabilities = nil },
		"one more":        func(c *corev1.Container) { c.SecurityContext.Capabilities.Add = []corev1.Capability{"NET_ADMIN"} },
		"memory limit":    func(c *corev1.Container) { delete(c.Resources.Limits, corev1.ResourceMemory) },
		"cpu limit":       func(c *corev1.Container) { delete(c.Resources.Limits, corev1.ResourceCPU) },
		"memory request":  func(c *corev1.Container) { delete(c.Resources.Requests, corev1.ResourceMemory) },
		"cpu request":     func(c *corev1.Container) { delete(c.Resources.Requests, corev1.ResourceCPU) },
		"liveness":        func(c *corev1.Container) { c.LivenessProbe = nil },
		"port of a probe": func(c *corev1.Container) { c.LivenessProbe.HTTPGet.Port = intstr.FromString("nothing") },
		"period":          func(c *corev1.Container) { c.LivenessProbe.PeriodSeconds = 0 },
		"volume":          func(c *corev1.Container) { c.VolumeMounts[0].Name = "nothing" },
		"secret": func(c *corev1.Container) {
			c.Env = append(c.Env, corev1.EnvVar{Name: "X", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{}}})
		},
	}
	ofPods := map[string]func(p *corev1.PodSpec){
		"token":    func(p *corev1.PodSpec) { p.AutomountServiceAccountToken = nil },
		"links":    func(p *corev1.PodSpec) { p.EnableServiceLinks = nil },
		"host":     func(p *corev1.PodSpec) { p.HostNetwork = true },
		"account":  func(p *corev1.PodSpec) { p.ServiceAccountName = "default" },
		"context":  func(p *corev1.PodSpec) { p.SecurityContext = &corev1.PodSecurityContext{} },
		"seccomp":  func(p *corev1.PodSpec) { p.SecurityContext.SeccompProfile = nil },
		"group":    func(p *corev1.PodSpec) { p.SecurityContext.FSGroup = nil },
		"user":     func(p *corev1.PodSpec) { p.SecurityContext.RunAsUser = nil },
		"non-root": func(p *corev1.PodSpec) { p.SecurityContext.RunAsNonRoot = &no },
		"host path": func(p *corev1.PodSpec) {
			p.Volumes = append(p.Volumes, corev1.Volume{Name: "x", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{}}})
		},
		"unlimited": func(p *corev1.PodSpec) {
			p.Volumes = append(p.Volumes, corev1.Volume{Name: "x", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
		},
	}
	ofStorage := map[string]func(p *corev1.PodSpec){
		"sidecar":         func(p *corev1.PodSpec) { p.InitContainers[0].RestartPolicy = nil },
		"startup":         func(p *corev1.PodSpec) { p.Containers[0].StartupProbe = nil },
		"readiness":       func(p *corev1.PodSpec) { p.Containers[0].ReadinessProbe = nil },
		"verdict":         func(p *corev1.PodSpec) { p.InitContainers[0].ReadinessProbe = nil },
		"command":         func(p *corev1.PodSpec) { p.InitContainers[0].ReadinessProbe.Exec.Command[0] = "sh" },
		"too ready":       func(p *corev1.PodSpec) { p.Containers[1].ReadinessProbe = p.Containers[1].LivenessProbe },
		"drain":           func(p *corev1.PodSpec) { p.Containers[0].Lifecycle = nil },
		"grace":           func(p *corev1.PodSpec) { *p.TerminationGracePeriodSeconds = 30 },
		"spread":          func(p *corev1.PodSpec) { p.Affinity = nil },
		"tables writable": func(p *corev1.PodSpec) { p.Containers[1].VolumeMounts[1].ReadOnly = false },
		"whole volume":    func(p *corev1.PodSpec) { p.Containers[1].VolumeMounts[2].SubPath = "" },
		"volume of all": func(p *corev1.PodSpec) {
			p.InitContainers[1].VolumeMounts = append(p.InitContainers[1].VolumeMounts, corev1.VolumeMount{Name: "data", MountPath: "/x"})
		},
		"one less": func(p *corev1.PodSpec) { p.Containers = p.Containers[:1] },
	}
	for _, overlay := range Overlays {
		tried := 0
		rendered := render(t, overlay)
		noticed := func(name, where string, change func(objects []runtime.Object)) {
			t.Helper()
			objects := copied(rendered)
			change(objects)
			found := Check(objects)
			require.True(t, slices.ContainsFunc(found, func(f string) bool { return strings.HasPrefix(f, where) }), "%s: %s of %s is lost, and found is %q", overlay, name, where, found)
			tried++
		}
		for _, set := range []string{"pairdb", "nats"} {
			for name, change := range ofPods {
				noticed(name, "StatefulSet "+set, func(objects []runtime.Object) { change(&setOf(t, objects, set).Spec.Template.Spec) })
			}
			for i, c := range containers(&setOf(t, rendered, set).Spec.Template.Spec) {
				for name, change := range ofContainers {
					noticed(name, "StatefulSet "+set+", "+c.Name, func(objects []runtime.Object) {
						change(containers(&setOf(t, objects, set).Spec.Template.Spec)[i])
					})
				}
			}
		}
		for name, change := range ofStorage {
			noticed(name, "StatefulSet pairdb", func(objects []runtime.Object) { change(&setOf(t, objects, "pairdb").Spec.Template.Spec) })
		}
		for kind, where := range map[string]string{"Namespace": "overlay", "PodDisruptionBudget": "overlay", "ConfigMap": "StatefulSet pairdb, storage-node"} {
			objects := slices.DeleteFunc(copied(rendered), func(o runtime.Object) bool { return o.GetObjectKind().GroupVersionKind().Kind == kind })
			require.True(t, slices.ContainsFunc(Check(objects), func(f string) bool { return strings.HasPrefix(f, where) }), kind)
		}
		require.Greater(t, tried, 5*len(ofContainers))
	}
}

// Danger: a field with a typing error is ignored by lenient tools, and the safety that it stands for is not there.
func TestUnknownFieldsAreRefused(t *testing.T) {
	_, err := Decode([]byte("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {enableServiceLink: false}\n"))
	require.ErrorContains(t, err, "enableServiceLink")
}

// environment is what a container's process would see: the shared map, then its own variables.
func environment(t *testing.T, objects []runtime.Object, c *corev1.Container) map[string]string {
	t.Helper()
	env := map[string]string{}
	for _, from := range c.EnvFrom {
		for _, o := range objects {
			if m, ok := o.(*corev1.ConfigMap); ok && m.Name == from.ConfigMapRef.Name {
				maps.Copy(env, m.Data)
			}
		}
	}
	fields := map[string]string{
		"metadata.name": "pairdb-0", "metadata.namespace": "pairdb", "status.podIP": "10.0.0.7",
		"metadata.labels['topology.kubernetes.io/zone']": "",
	}
	for _, e := range c.Env {
		value := e.Value
		if e.ValueFrom != nil {
			var ok bool
			value, ok = fields[e.ValueFrom.FieldRef.FieldPath]
			require.True(t, ok, e.ValueFrom.FieldRef.FieldPath)
		}
		env[e.Name] = os.Expand(strings.NewReplacer("$(", "${", ")", "}").Replace(value), func(name string) string {
			got, ok := env[name]
			require.True(t, ok, "%s of %s refers to %s, which does not stand before it", e.Name, c.Name, name)
			return got
		})
	}
	return env
}

// Danger: the keys of a shipped map are not the code's, a port of a manifest is not the one that is listened on.
func TestBinariesTakeTheConfigurationOfTheirContainers(t *testing.T) {
	bin := podtest.Binaries(t)
	for _, overlay := range Overlays {
		objects := render(t, overlay)
		for _, c := range containers(&setOf(t, objects, "pairdb").Spec.Template.Spec) {
			name, _, _ := strings.Cut(strings.TrimPrefix(c.Image, "pairdb/"), ":")
			require.Equal(t, c.Name, name)
			env := environment(t, objects, c)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			cmd := exec.CommandContext(ctx, filepath.Join(bin, name), "--print-config")
			for k, v := range env {
				cmd.Env = append(cmd.Env, k+"="+v)
			}
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			cancel()
			require.NoError(t, err, "%s of %s: %s", name, overlay, stderr.String())
			for _, e := range c.Env {
				if strings.HasPrefix(e.Name, "PAIRDB_") {
					require.Contains(t, string(out), e.Name+"=", "%s has no such key", name)
				}
			}
			listens := map[string]bool{}
			for _, m := range regexp.MustCompile(`_ADDR="?[^\n"]*:(\d+)`).FindAllStringSubmatch(string(out), -1) {
				listens[m[1]] = true
			}
			for _, p := range c.Ports {
				require.True(t, listens[fmt.Sprint(p.ContainerPort)], "%s does not listen on %d: %v", name, p.ContainerPort, listens)
			}
		}
		page, err := os.ReadFile(filepath.Join(root, "docs", "CONFIGURATION.md"))
		require.NoError(t, err)
		for _, o := range objects {
			m, ok := o.(*corev1.ConfigMap)
			if !ok || !strings.HasPrefix(m.Name, "pairdb-") {
				continue
			}
			require.NotEmpty(t, m.Data)
			for key := range m.Data {
				require.Contains(t, string(page), "| `"+key+"` |", overlay)
			}
		}
	}
}

// Danger: a preStop or a probe runs a command that the binary does not have; Kubernetes goes on without a word.
func TestCommandsOfTheManifestsExist(t *testing.T) {
	bin := podtest.Binaries(t)
	p := setOf(t, render(t, "prod"), "pairdb").Spec.Template.Spec
	for _, command := range [][]string{p.Containers[0].Lifecycle.PreStop.Exec.Command, p.InitContainers[0].ReadinessProbe.Exec.Command} {
		args := append(slices.Clone(command[1:]), "one argument too many")
		out, err := exec.CommandContext(t.Context(), filepath.Join(bin, command[0]), args...).CombinedOutput()
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit)
		require.NotContains(t, string(out), "unknown argument", "%q", command)
		require.Contains(t, string(out), command[1]+":", "it is the command that complains: %q", command)
	}
}

// Danger: the table of the socket and the users of the containers drift apart, and a sidecar is refused.
func TestUsersOfImagesAndManifestsAreEqual(t *testing.T) {
	dockerfile, err := os.ReadFile(filepath.Join(root, "deploy", "docker", "Dockerfile"))
	require.NoError(t, err)
	env, err := os.ReadFile(filepath.Join(root, "deploy", "k8s", "base", "pairdb.env"))
	require.NoError(t, err)
	for name, uid := range users {
		_, stage, ok := strings.Cut(string(dockerfile), "FROM scratch AS "+name+"\n")
		require.True(t, ok, "the Dockerfile has no target %s", name)
		stage, _, _ = strings.Cut(stage, "\nFROM ")
		require.Contains(t, stage, fmt.Sprintf("USER %d:", uid), name)
		if name != "nats" {
			require.Contains(t, stage, fmt.Sprintf("USER %d:%d\n", uid, group), name)
			require.Contains(t, stage, fmt.Sprintf("ENTRYPOINT [\"/%s\"]", name))
			require.Regexp(t, fmt.Sprintf(`PAIRDB_SOCKET_UIDS=.*\b%d=`, uid), string(env))
		}
	}
	mod, err := os.ReadFile(filepath.Join(root, "integration", "go.mod"))
	require.NoError(t, err)
	image := setOf(t, render(t, "prod"), "nats").Spec.Template.Spec.Containers[0].Image
	require.Contains(t, string(mod), "github.com/nats-io/nats-server/v2 v"+strings.TrimPrefix(image, "nats:")+"\n", "the NATS that is deployed is the one that is tested")
}

// Danger: alerts are copied by hand, and those of the cluster are last year's.
func TestRulesOfTheComponentAreThoseOfMonitoring(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Generated of deploy/monitoring/alerts: make docs writes it.\napiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: pairdb\n  labels:\n    app.kubernetes.io/name: pairdb\nspec:\n  groups:\n")
	files, err := filepath.Glob(filepath.Join(root, "deploy", "monitoring", "alerts", "*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var groups []any
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		_, list, ok := strings.Cut(string(text), "groups:\n")
		require.True(t, ok, file)
		for line := range strings.Lines(list) {
			if strings.TrimSpace(line) != "" {
				b.WriteString("  ")
			}
			b.WriteString(line)
		}
		var rules struct{ Groups []any }
		require.NoError(t, yaml.Unmarshal(text, &rules))
		groups = append(groups, rules.Groups...)
	}
	path := filepath.Join(root, "deploy", "k8s", "components", "monitoring", "prometheusrule.yaml")
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(b.String()), 0o644))
	}
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, b.String(), string(text), "make docs")
	var rule struct{ Spec struct{ Groups []any } }
	require.NoError(t, yaml.Unmarshal(text, &rule))
	require.Equal(t, groups, rule.Spec.Groups)
}

// Danger: the monitor asks ports by names that no container has, and there are no metrics, nor alerts.
func TestMonitorNamesThePortsOfThePods(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "deploy", "k8s", "components", "monitoring", "podmonitor.yaml"))
	require.NoError(t, err)
	var monitor struct {
		Spec struct {
			Selector struct {
				MatchLabels map[string]string `yaml:"matchLabels"`
			}
			PodMetricsEndpoints []struct{ Port, Path string } `yaml:"podMetricsEndpoints"`
		}
	}
	require.NoError(t, yaml.Unmarshal(text, &monitor))
	plain, err := os.ReadFile(filepath.Join(root, "deploy", "monitoring", "prometheus-kubernetes.yaml"))
	require.NoError(t, err)
	set := setOf(t, render(t, "prod"), "pairdb")
	for k, v := range monitor.Spec.Selector.MatchLabels {
		require.Equal(t, v, set.Spec.Template.Labels[k])
	}
	var asked []string
	for _, e := range monitor.Spec.PodMetricsEndpoints {
		require.Equal(t, "/metrics", e.Path)
		asked = append(asked, e.Port)
	}
	require.Contains(t, string(plain), "pairdb;("+strings.Join(asked, "|")+")")
	for _, c := range containers(&set.Spec.Template.Spec) {
		require.Contains(t, asked, c.Name)
		require.True(t, slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == c.Name }), "%s has no port of its name", c.Name)
	}
}

// Danger: a cluster with certificates looks well because nothing of it is scraped.
func TestMonitorOfACertifiedClusterHasACertificate(t *testing.T) {
	all, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), withComponents(t, "prod", "tls", "monitoring", "monitoring-tls"))
	require.NoError(t, err)
	type key struct{ Name, Key string }
	type secret struct{ Secret key }
	var monitor struct {
		Spec struct {
			PodMetricsEndpoints []struct {
				Port, Scheme string
				TLSConfig    struct {
					CA, Cert   secret
					KeySecret  key    `yaml:"keySecret"`
					ServerName string `yaml:"serverName"`
				} `yaml:"tlsConfig"`
			} `yaml:"podMetricsEndpoints"`
		}
	}
	for _, r := range all.Resources() {
		if r.GetKind() == "PodMonitor" {
			text, err := r.AsYAML()
			require.NoError(t, err)
			require.NoError(t, yaml.Unmarshal(text, &monitor))
		}
	}
	require.Len(t, monitor.Spec.PodMetricsEndpoints, len(users)-1, "one for each container of a pod")
	for _, e := range monitor.Spec.PodMetricsEndpoints {
		require.Equal(t, "https", e.Scheme, e.Port)
		require.Equal(t, key{"pairdb-monitor", "ca.crt"}, e.TLSConfig.CA.Secret, e.Port)
		require.Equal(t, key{"pairdb-monitor", "tls.crt"}, e.TLSConfig.Cert.Secret, e.Port)
		require.Equal(t, key{"pairdb-monitor", "tls.key"}, e.TLSConfig.KeySecret, e.Port)
		require.Equal(t, "pairdb-0.pairdb-headless.pairdb.svc", e.TLSConfig.ServerName, "a name that the certificates of docs/DEPLOYMENT.md have")
	}
}
