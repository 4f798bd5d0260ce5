package deploytest

import (
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// group is that of all files of a pod.
const group = 2000

// users are the user ids of the containers, which the table of the socket names, and of the images.
var users = map[string]int64{"storage-node": 1001, "compactor": 1002, "migrator": 1003, "health-agent": 1004, "nats": 1000}

// findings collects what is wrong.
type findings struct {
	where string
	list  []string
}

func (f *findings) want(ok bool, format string, args ...any) {
	if !ok {
		f.list = append(f.list, f.where+": "+fmt.Sprintf(format, args...))
	}
}

// Check returns what is wrong with the objects of an overlay, each with the object and the container; nothing if
// they are as safe and as complete as deploy/k8s promises. It is a pure function.
func Check(objects []runtime.Object) []string {
	f := &findings{}
	var sets []*appsv1.StatefulSet
	var restricted, denied bool
	budgets := map[string]bool{}
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.Namespace:
			restricted = o.Labels["pod-security.kubernetes.io/enforce"] == "restricted"
		case *appsv1.StatefulSet:
			sets = append(sets, o)
		case *corev1.ServiceAccount:
			f.where = "ServiceAccount " + o.Name
			f.want(isFalse(o.AutomountServiceAccountToken), "automountServiceAccountToken is not false")
		case *policyv1.PodDisruptionBudget:
			one := intstr.FromInt32(1)
			budgets[o.Name] = o.Spec.MaxUnavailable != nil && *o.Spec.MaxUnavailable == one
		case *networkingv1.NetworkPolicy:
			if len(o.Spec.PodSelector.MatchLabels) == 0 && len(o.Spec.PolicyTypes) == 2 && o.Spec.Ingress == nil && o.Spec.Egress == nil {
				denied = true
			}
		}
	}
	f.where = "overlay"
	f.want(restricted, "the namespace does not enforce the restricted level")
	f.want(denied, "no network policy denies what the others do not allow")
	f.want(len(sets) == 2, "%d StatefulSets, two are expected", len(sets))
	f.want(budgets["pairdb"], "no disruption budget of one pod")
	for _, set := range sets {
		checkPod(f, "StatefulSet "+set.Name, &set.Spec.Template.Spec, objects)
		for _, c := range containers(&set.Spec.Template.Spec) {
			checkContainer(f, set, c, objects)
		}
		if set.Name == "pairdb" {
			checkStorage(f, set)
		}
	}
	checkServices(f, objects, sets)
	return f.list
}

func containers(p *corev1.PodSpec) []*corev1.Container {
	var out []*corev1.Container
	for _, list := range [][]corev1.Container{p.InitContainers, p.Containers} {
		for i := range list {
			out = append(out, &list[i])
		}
	}
	return out
}

func isTrue(b *bool) bool  { return b != nil && *b }
func isFalse(b *bool) bool { return b != nil && !*b }

func checkPod(f *findings, where string, p *corev1.PodSpec, objects []runtime.Object) {
	f.where = where
	f.want(isFalse(p.AutomountServiceAccountToken), "automountServiceAccountToken is not false")
	f.want(isFalse(p.EnableServiceLinks), "enableServiceLinks is not false")
	f.want(!p.HostNetwork && !p.HostPID && !p.HostIPC, "it shares a namespace of the machine")
	account := false
	for _, o := range objects {
		a, ok := o.(*corev1.ServiceAccount)
		account = account || ok && a.Name == p.ServiceAccountName
	}
	f.want(account, "service account %q is not there", p.ServiceAccountName)
	s := p.SecurityContext
	if s == nil {
		s = &corev1.PodSecurityContext{}
	}
	f.want(isTrue(s.RunAsNonRoot), "runAsNonRoot is not true")
	f.want(s.RunAsUser != nil && *s.RunAsUser > 0, "runAsUser is not set")
	f.want(s.RunAsGroup != nil && s.FSGroup != nil && *s.RunAsGroup == *s.FSGroup, "runAsGroup is not fsGroup")
	f.want(s.SeccompProfile != nil && s.SeccompProfile.Type == corev1.SeccompProfileTypeRuntimeDefault, "seccomp is not RuntimeDefault")
	for _, v := range p.Volumes {
		f.want(v.HostPath == nil, "volume %s is a path of the machine", v.Name)
		f.want(v.EmptyDir == nil || v.EmptyDir.SizeLimit != nil, "volume %s has no limit", v.Name)
	}
}

func checkContainer(f *findings, set *appsv1.StatefulSet, c *corev1.Container, objects []runtime.Object) {
	f.where = "StatefulSet " + set.Name + ", " + c.Name
	_, tag, _ := strings.Cut(c.Image, ":")
	f.want(tag != "" && tag != "latest", "image %q has no version", c.Image)
	f.want(c.ImagePullPolicy == corev1.PullIfNotPresent, "imagePullPolicy is not IfNotPresent")
	f.want(c.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError, "the end of its log is no termination message")

	s := c.SecurityContext
	if s == nil {
		s = &corev1.SecurityContext{}
	}
	f.want(s.RunAsUser != nil && *s.RunAsUser == users[c.Name], "runAsUser is not %d", users[c.Name])
	f.want(isTrue(s.RunAsNonRoot), "runAsNonRoot is not true")
	f.want(isTrue(s.ReadOnlyRootFilesystem), "readOnlyRootFilesystem is not true")
	f.want(isFalse(s.AllowPrivilegeEscalation), "allowPrivilegeEscalation is not false")
	f.want(!isTrue(s.Privileged), "it is privileged")
	f.want(s.Capabilities != nil && slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) && len(s.Capabilities.Add) == 0, "capabilities are not dropped")
	for _, r := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		want, limit := c.Resources.Requests[r], c.Resources.Limits[r]
		f.want(!want.IsZero() && want.Cmp(limit) <= 0, "requests %s of %s, and its limit is %s", want.String(), r, limit.String())
	}
	f.want(c.LivenessProbe != nil, "no liveness probe")
	for name, p := range map[string]*corev1.Probe{"liveness": c.LivenessProbe, "readiness": c.ReadinessProbe, "startup": c.StartupProbe} {
		checkProbe(f, c, name, p)
	}
	checkMounts(f, set, c)
	for _, from := range c.EnvFrom {
		found := false
		for _, o := range objects {
			m, ok := o.(*corev1.ConfigMap)
			found = found || ok && from.ConfigMapRef != nil && m.Name == from.ConfigMapRef.Name
		}
		f.want(found, "its environment comes from what is not there")
	}
	for _, e := range c.Env {
		f.want(e.ValueFrom == nil || e.ValueFrom.SecretKeyRef == nil, "%s is a secret in the environment: mount it", e.Name)
	}
}

// checkProbe wants a probe to ask what the container has, and to say how often and how long.
func checkProbe(f *findings, c *corev1.Container, name string, p *corev1.Probe) {
	if p == nil {
		return
	}
	has := func(port intstr.IntOrString) bool {
		return slices.ContainsFunc(c.Ports, func(have corev1.ContainerPort) bool {
			return port.Type == intstr.String && have.Name == port.StrVal || port.Type == intstr.Int && have.ContainerPort == port.IntVal
		})
	}
	switch {
	case p.HTTPGet != nil:
		f.want(has(p.HTTPGet.Port), "its %s probe asks port %s, which it does not have", name, p.HTTPGet.Port.String())
	case p.GRPC != nil:
		f.want(has(intstr.FromInt32(p.GRPC.Port)), "its %s probe asks port %d, which it does not have", name, p.GRPC.Port)
	case p.Exec != nil:
		f.want(len(p.Exec.Command) > 0 && p.Exec.Command[0] == "/"+c.Name, "its %s probe runs %q, and the image has nothing but /%s", name, p.Exec.Command, c.Name)
	default:
		f.want(false, "its %s probe asks nothing", name)
	}
	f.want(p.PeriodSeconds > 0 && p.TimeoutSeconds > 0 && p.FailureThreshold > 0, "its %s probe leaves times to defaults", name)
}

func checkMounts(f *findings, set *appsv1.StatefulSet, c *corev1.Container) {
	have := map[string]bool{}
	for _, v := range set.Spec.Template.Spec.Volumes {
		have[v.Name] = true
	}
	for _, v := range set.Spec.VolumeClaimTemplates {
		have[v.Name] = true
	}
	for _, m := range c.VolumeMounts {
		f.want(have[m.Name], "it mounts %s, which is no volume", m.Name)
	}
}

// checkStorage checks what is so for the pods of storage nodes alone.
func checkStorage(f *findings, set *appsv1.StatefulSet) {
	f.where = "StatefulSet pairdb"
	p := set.Spec.Template.Spec
	names := []string{}
	by := map[string]*corev1.Container{}
	for _, c := range containers(&p) {
		names = append(names, c.Name)
		by[c.Name] = c
	}
	if !slices.Equal(names, []string{"health-agent", "migrator", "storage-node", "compactor"}) || len(p.InitContainers) != 2 {
		f.want(false, "its containers are %v: two sidecars, the node and the compactor are expected", names)
		return
	}
	for _, c := range p.InitContainers {
		f.want(c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways, "%s is no sidecar: the node would wait for its end", c.Name)
		f.want(c.StartupProbe == nil, "the node would wait for the startup probe of %s", c.Name)
	}
	f.want(p.SecurityContext.FSGroup != nil && *p.SecurityContext.FSGroup == group, "the group of its files is not %d", group)
	f.want(set.Spec.ServiceName == "pairdb-headless", "its names are not of pairdb-headless")
	f.want(by["storage-node"].StartupProbe != nil, "storage-node: no startup probe")
	f.want(by["storage-node"].ReadinessProbe != nil, "storage-node: no readiness probe")
	f.want(by["health-agent"].ReadinessProbe != nil, "health-agent: no readiness probe")
	for _, name := range []string{"compactor", "migrator"} {
		f.want(by[name].ReadinessProbe == nil, "%s has a readiness probe: the pod would be out of service while it is away", name)
	}
	l := by["storage-node"].Lifecycle
	f.want(l != nil && l.PreStop != nil && l.PreStop.Exec != nil, "storage-node: nothing drains it")
	f.want(p.TerminationGracePeriodSeconds != nil && *p.TerminationGracePeriodSeconds >= 60+25+10+10, "its grace is shorter than drain, node, migrator and health-agent may take")
	f.want(len(p.TopologySpreadConstraints) > 0 && p.Affinity != nil && p.Affinity.PodAntiAffinity != nil, "its pods are not spread")
	mounts := map[string]corev1.VolumeMount{}
	for _, m := range by["compactor"].VolumeMounts {
		mounts[m.MountPath] = m
		f.want(m.Name != "data" || m.SubPath != "", "compactor: it has the whole volume")
	}
	f.want(mounts["/var/lib/pairdb/sst"].SubPath == "sst" && mounts["/var/lib/pairdb/sst"].ReadOnly, "compactor: sst is not read-only")
	f.want(mounts["/var/lib/pairdb/staging"].SubPath == "staging" && !mounts["/var/lib/pairdb/staging"].ReadOnly, "compactor: staging is not there")
	for _, name := range []string{"migrator", "health-agent"} {
		for _, m := range by[name].VolumeMounts {
			f.want(m.Name != "data", "%s: it has the volume", name)
		}
	}
	for _, v := range p.Volumes {
		if v.Name == "run" {
			f.want(v.EmptyDir != nil && v.EmptyDir.Medium == corev1.StorageMediumMemory, "the socket is not in memory")
		}
	}
	keep := appsv1.RetainPersistentVolumeClaimRetentionPolicyType
	r := set.Spec.PersistentVolumeClaimRetentionPolicy
	f.want(r != nil && r.WhenDeleted == keep && r.WhenScaled == keep, "a volume could be deleted with its pod")
}

// checkServices wants each port of a service to lead to a container.
func checkServices(f *findings, objects []runtime.Object, sets []*appsv1.StatefulSet) {
	for _, o := range objects {
		s, ok := o.(*corev1.Service)
		if !ok {
			continue
		}
		f.where = "Service " + s.Name
		selector := labels.SelectorFromSet(s.Spec.Selector)
		for _, port := range s.Spec.Ports {
			leads := slices.ContainsFunc(sets, func(set *appsv1.StatefulSet) bool {
				return selector.Matches(labels.Set(set.Spec.Template.Labels)) && slices.ContainsFunc(containers(&set.Spec.Template.Spec), func(c *corev1.Container) bool {
					return slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == port.TargetPort.StrVal })
				})
			})
			f.want(leads, "port %s leads nowhere", port.Name)
		}
		if strings.HasSuffix(s.Name, "-headless") {
			f.want(s.Spec.ClusterIP == corev1.ClusterIPNone && s.Spec.PublishNotReadyAddresses, "pods that are not ready have no name")
		}
	}
	for _, o := range objects {
		if p, ok := o.(*policyv1.PodDisruptionBudget); ok {
			f.where = "PodDisruptionBudget " + p.Name
			selector, err := metav1.LabelSelectorAsSelector(p.Spec.Selector)
			f.want(err == nil && slices.ContainsFunc(sets, func(set *appsv1.StatefulSet) bool {
				return selector.Matches(labels.Set(set.Spec.Template.Labels))
			}), "it is of no pods")
		}
	}
}
