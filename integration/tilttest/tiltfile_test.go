package tilttest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/localpod"
)

func root(t testing.TB) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", ".."))
	require.NoError(t, err)
	return dir
}

// settings are ways to start Tilt.
func settings() map[string]map[string]starlark.Value {
	return map[string]map[string]starlark.Value{
		"tilt up":                              {},
		"tilt up -- --pods 3 --monitoring":     {"pods": starlark.String("3"), "monitoring": starlark.True},
		"tilt up -- --whole-pods --pods 1":     {"whole-pods": starlark.True, "pods": starlark.String("1")},
		"tilt up -- --monitoring --whole-pods": {"monitoring": starlark.True, "whole-pods": starlark.True},
	}
}

func TestAllThatTheTiltfileMentionsIsThere(t *testing.T) {
	// Nobody of the CI has Tilt. A name that is wrong is found by the developer who wants to begin.
	for name, s := range settings() {
		t.Run(name, func(t *testing.T) {
			tilt := &tilt{root: root(t), context: "kind-pairdb", settings: s}
			require.NoError(t, tilt.run())
			require.Empty(t, problems(t, tilt))
		})
	}
}

func TestOnlyClustersOfThisMachineAreUsed(t *testing.T) {
	// A Tiltfile that runs against whatever is current deploys to production one day.
	for context, allowed := range map[string]bool{
		"kube-box": true, "kind-a": true, "k3d-b": true, "docker-desktop": true, "minikube": true, "rancher-desktop": true,
		"production": false, "gke_kind-a": false, "": false,
	} {
		tilt := &tilt{root: root(t), context: context}
		err := tilt.run()
		if !allowed {
			require.ErrorContains(t, err, "kubectl config use-context", context)
			require.Empty(t, tilt.objects, context)
			continue
		}
		require.NoError(t, err, context)
		allow := tilt.of("allow_k8s_contexts")
		require.Len(t, allow, 1)
		require.Equal(t, []string{context}, allow[0].strings("contexts"))
	}
}

func TestSettingsThatAreWrongAreRefused(t *testing.T) {
	// Seventeen pods on a laptop are a laptop that is restarted.
	for _, pods := range []string{"0", "4", "-1", "many"} {
		tilt := &tilt{root: root(t), context: "kind-a", settings: map[string]starlark.Value{"pods": starlark.String(pods)}}
		require.Error(t, tilt.run(), pods)
		require.Empty(t, tilt.objects)
	}
}

func TestPodsAreAsManyAsWereAskedForAndKeepAsManyCopies(t *testing.T) {
	for _, pods := range []int{1, 3} {
		tilt := &tilt{root: root(t), context: "kind-a", settings: map[string]starlark.Value{"pods": starlark.String(strconv.Itoa(pods))}}
		require.NoError(t, tilt.run())
		set := tilt.workloads()["pairdb"]
		require.EqualValues(t, pods, at(set, "spec", "replicas"))
		var factors []any
		for _, o := range tilt.objects {
			if f := at(o, "data", "PAIRDB_REPLICATION_FACTOR"); f != nil {
				factors = append(factors, f)
			}
		}
		require.Equal(t, []any{strconv.Itoa(pods)}, factors)
	}
}

// at goes down into an object; nil where there is nothing.
func at(o any, keys ...string) any {
	for _, k := range keys {
		m, ok := o.(map[string]any)
		if !ok {
			return nil
		}
		o = m[k]
	}
	return o
}

func list(o any, keys ...string) []any {
	l, _ := at(o, keys...).([]any)
	return l
}

// workloads are what Tilt makes resources of, by name.
func (t *tilt) workloads() map[string]object {
	out := map[string]object{}
	for _, o := range t.objects {
		if kind := o["kind"]; kind == "StatefulSet" || kind == "Deployment" {
			out[fmt.Sprint(at(o, "metadata", "name"))] = o
		}
	}
	return out
}

// containers of a workload: name → container.
func containers(workload object) map[string]any {
	out := map[string]any{}
	pod := at(workload, "spec", "template", "spec")
	for _, c := range slices.Concat(list(pod, "initContainers"), list(pod, "containers")) {
		out[fmt.Sprint(at(c, "name"))] = c
	}
	return out
}

// ports that the containers of a workload listen on.
func ports(workload object) map[int]bool {
	out := map[int]bool{}
	for _, c := range containers(workload) {
		for _, p := range list(c, "ports") {
			if n, ok := at(p, "containerPort").(int); ok {
				out[n] = true
			}
		}
	}
	return out
}

var (
	resourceName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
	ownProgram   = regexp.MustCompile(`\./bin/pairctl ([a-z]+)([^&|]*)`)
	localURL     = regexp.MustCompile(`^http://localhost:(\d+)/`)
	portPair     = regexp.MustCompile(`^(\d+):(\d+)$`)
)

// checker collects what is wrong with an execution.
type checker struct {
	t    testing.TB
	tilt *tilt

	resources map[string]bool   // names
	made      map[string]string // path of a program → the resource that compiles it
	forwarded map[int]string    // port of this machine → resource
	found     []string
}

// problems returns what the Tiltfile mentions and is not there, one line each.
func problems(t testing.TB, run *tilt) []string {
	c := &checker{t: t, tilt: run, resources: map[string]bool{}, made: map[string]string{}, forwarded: map[int]string{}}
	c.collect()
	c.locals()
	c.workloads()
	c.images()
	c.order()
	c.configMaps()
	return c.found
}

func (c *checker) wrong(format string, args ...any) {
	c.found = append(c.found, fmt.Sprintf(format, args...))
}

// collect learns the names of resources, and what is compiled.
func (c *checker) collect() {
	for name := range c.tilt.workloads() {
		c.resources[name] = true
	}
	for _, r := range c.tilt.of("local_resource") {
		name := r.str("name")
		if c.resources[name] {
			c.wrong("two resources are called %s", name)
		}
		if !resourceName.MatchString(name) {
			c.wrong("%q is no name for tilt trigger", name)
		}
		c.resources[name] = true
		cmd := r.strings("cmd")
		if len(cmd) == 2 && cmd[0] == c.path("tilt/compile") {
			c.made[c.output(cmd[1])] = name
			c.sources(r, cmd[1])
		}
	}
}

func (c *checker) path(rel string) string { return filepath.Join(c.tilt.root, rel) }

// output is where tilt/compile puts a program.
func (c *checker) output(program string) string {
	if program == "pairctl" {
		return c.path("bin/pairctl")
	}
	return c.path("bin/images/linux_" + runtime.GOARCH + "/" + program)
}

// sources requires that a program is compiled anew when one of its packages changes, and only then.
func (c *checker) sources(r call, program string) {
	if program == "nats-server" {
		return // of other modules: their versions stand in go.mod
	}
	out, err := output(c.path("services"), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.Dir}}{{end}}", "./"+program)
	if err != nil {
		c.wrong("%s compiles %s, which Go does not know", r.str("name"), program)
		return
	}
	var want []string
	for dir := range strings.SplitSeq(strings.TrimSpace(out), "\n") {
		if strings.HasPrefix(dir, c.tilt.root+"/") {
			want = append(want, dir)
		}
	}
	for _, module := range []string{"services", "libs", "proto"} {
		want = append(want, c.path(module+"/go.mod"))
	}
	have := r.strings("deps")
	slices.Sort(want)
	slices.Sort(have)
	if !slices.Equal(want, have) {
		c.wrong("%s watches %v, and the program is made of %v", r.str("name"), have, want)
	}
}

// exists requires that a path is there, or is made by a resource that is waited for.
func (c *checker) exists(who, path string) {
	if !filepath.IsAbs(path) {
		c.wrong("%s mentions %s: a relative path means another place in each file", who, path)
		return
	}
	if _, made := c.made[path]; made {
		return
	}
	if _, err := os.Stat(path); err != nil || strings.HasPrefix(path, c.path("bin")+"/") {
		c.wrong("%s mentions %s, which is not there", who, path)
	}
}

// tools are programs that LOCAL_DEVELOPMENT.md asks for.
var tools = []string{"kubectl", "go", "docker"}

// command requires that what is to be run is there.
func (c *checker) command(who string, cmd []string, isList bool) {
	if len(cmd) == 0 || cmd[0] == "" {
		return
	}
	if !isList {
		c.shell(who, cmd[0])
		return
	}
	if slices.Contains(tools, cmd[0]) {
		return
	}
	info, err := os.Stat(cmd[0])
	if err != nil || info.Mode()&0o111 == 0 {
		c.wrong("%s runs %s, which is no program", who, cmd[0])
		return
	}
	for _, program := range cmd[1:] {
		_, err := os.Stat(c.path("services/" + program + "/main.go"))
		if err != nil && program != "nats-server" {
			c.wrong("%s: there is no program %s", who, program)
		}
	}
}

// shell looks at a line for the shell: the commands and flags of pairctl must be pairctl's.
func (c *checker) shell(who, line string) {
	calls := ownProgram.FindAllStringSubmatch(line, -1)
	if len(calls) == 0 {
		c.wrong("%s runs %q, of which nothing is ours", who, line)
	}
	for _, m := range calls {
		help, err := output("", filepath.Join(podtest.Binaries(c.t), "pairctl"), m[1], "--help")
		if err != nil || !strings.Contains(help, "pairctl "+m[1]+" ") {
			c.wrong("%s: pairctl has no command %s", who, m[1])
			continue
		}
		for _, word := range strings.Fields(m[2]) {
			if strings.HasPrefix(word, "--") && !regexp.MustCompile(regexp.QuoteMeta(word)+`\b`).MatchString(help) {
				c.wrong("%s: pairctl %s has no flag %s", who, m[1], word)
			}
		}
	}
	if _, made := c.made[c.path("bin/pairctl")]; !made {
		c.wrong("%s runs ./bin/pairctl, which nothing compiles", who)
	}
}

func (c *checker) locals() {
	for _, r := range c.tilt.of("local_resource") {
		name := r.str("name")
		for _, path := range r.strings("deps") {
			c.exists(name, path)
		}
		if dir := r.str("dir"); dir != "" {
			c.exists(name, dir)
		}
		_, isList := r.args["cmd"].(*starlark.List)
		c.command(name, r.strings("cmd"), isList)
		_, isList = r.args["serve_cmd"].(*starlark.List)
		c.command(name, r.strings("serve_cmd"), isList)
		c.kubectlForward(name, r.strings("serve_cmd"))
		if r.is("auto_init", true) && len(r.strings("labels")) == 0 {
			c.wrong("%s has no label", name)
		}
		if program, ok := strings.CutSuffix(name, "-in-place"); ok {
			c.inPlace(name, program, r)
		}
	}
}

// inPlace requires that a container of the pods is meant, and that it waits for them.
func (c *checker) inPlace(name, program string, r call) {
	if cmd := r.strings("cmd"); len(cmd) != 2 || cmd[0] != c.path("tilt/in-place") || cmd[1] != program {
		c.wrong("%s runs %v", name, cmd)
	}
	if _, ok := containers(c.tilt.workloads()["pairdb"])[program]; !ok {
		c.wrong("%s: the pods have no container %s", name, program)
	}
	if r.is("auto_init", true) || !slices.Contains(r.strings("resource_deps"), "pairdb") {
		c.wrong("%s does not wait for the pods", name)
	}
	if !slices.Contains(r.strings("deps"), c.output(program)) {
		c.wrong("%s does not watch its program", name)
	}
}

// kubectlForward takes note of ports that kubectl forwards.
func (c *checker) kubectlForward(name string, cmd []string) {
	if !slices.Contains(cmd, "port-forward") {
		return
	}
	set := c.tilt.workloads()["pairdb"]
	replicas, _ := at(set, "spec", "replicas").(int)
	pods := 0
	for _, arg := range cmd {
		if n, ok := strings.CutPrefix(arg, "pod/pairdb-"); ok {
			pods++
			if i, err := strconv.Atoi(n); err != nil || i >= replicas {
				c.wrong("%s forwards to %s, and there are %d pods", name, arg, replicas)
			}
		}
		if m := portPair.FindStringSubmatch(arg); m != nil {
			local, _ := strconv.Atoi(m[1])
			remote, _ := strconv.Atoi(m[2])
			c.forward(name, local, remote, set)
		}
	}
	if pods != 1 || !slices.Contains(cmd, fmt.Sprint(at(set, "metadata", "namespace"))) || !slices.Contains(cmd, c.tilt.context) {
		c.wrong("%s: %v names no pod of ours", name, cmd)
	}
}

func (c *checker) forward(name string, local, remote int, workload object) {
	if other, taken := c.forwarded[local]; taken {
		c.wrong("%s and %s take port %d of this machine", other, name, local)
	}
	c.forwarded[local] = name
	if !ports(workload)[remote] {
		c.wrong("%s forwards to port %d, where no container listens", name, remote)
	}
}

func (c *checker) workloads() {
	var configured []string
	for _, r := range c.tilt.of("k8s_resource") {
		name := r.str("workload")
		workload, ok := c.tilt.workloads()[name]
		if !ok {
			c.wrong("k8s_resource(%q): no workload is called so", name)
			continue
		}
		configured = append(configured, name)
		for _, v := range r.values("port_forwards") {
			p, ok := v.(*starlarkstruct.Struct)
			if !ok {
				c.wrong("%s forwards %s: port_forward() says which port of the container", name, v)
				continue
			}
			c.forward(name, number(p, "local_port"), number(p, "container_port"), workload)
		}
		if len(r.strings("labels")) == 0 {
			c.wrong("%s has no label", name)
		}
	}
	for name := range c.tilt.workloads() {
		if !slices.Contains(configured, name) {
			c.wrong("%s is deployed and not configured", name)
		}
	}
	if len(c.tilt.objects) < 10 {
		c.wrong("%d objects are deployed", len(c.tilt.objects))
	}
	for _, r := range c.tilt.of("link") {
		m := localURL.FindStringSubmatch(r.str("url"))
		if m == nil {
			c.wrong("the link %s leads off this machine", r.str("url"))
			continue
		}
		if port, _ := strconv.Atoi(m[1]); c.forwarded[port] == "" {
			c.wrong("the link %s leads to a port that nothing forwards", r.str("url"))
		}
	}
	for _, p := range c.tilt.of("http_get_action") {
		if port, _ := strconv.Atoi(p.args["port"].String()); c.forwarded[port] == "" {
			c.wrong("a probe asks port %d, which nothing forwards", port)
		}
	}
	for _, port := range []int{8080, 9091, 9092, 9093, 9094} {
		if c.forwarded[port] == "" {
			c.wrong("port %d of the first pod is not forwarded: pairctl and the documents use it", port)
		}
	}
}

func number(s *starlarkstruct.Struct, field string) int {
	v, err := s.Attr(field)
	if err != nil {
		return 0
	}
	n, _ := starlark.AsInt32(v)
	return n
}

var targets = regexp.MustCompile(`(?m)^FROM scratch AS (\S+)$`)

func (c *checker) images() {
	used := map[string]bool{}
	for _, w := range c.tilt.workloads() {
		for _, container := range containers(w) {
			name, _, _ := strings.Cut(fmt.Sprint(at(container, "image")), ":")
			used[name] = true
		}
	}
	dockerfile, err := os.ReadFile(c.path("deploy/docker/Dockerfile"))
	require.NoError(c.t, err)
	built := map[string]bool{}
	for _, b := range c.tilt.of("custom_build") {
		ref := b.str("ref")
		built[ref] = true
		if !used[ref] {
			c.wrong("the image %s is built, and no container uses it", ref)
		}
		if !slices.ContainsFunc(targets.FindAllStringSubmatch(string(dockerfile), -1), func(m []string) bool { return "pairdb/"+m[1] == ref }) {
			c.wrong("the Dockerfile has no target for %s", ref)
		}
		cmd := b.strings("command")
		c.command(ref, cmd, true)
		program := cmd[len(cmd)-1]
		if cmd[0] != c.path("tilt/image") || "pairdb/"+strings.TrimSuffix(program, "-server") != ref {
			c.wrong("%s is made by %v", ref, cmd)
		}
		if !slices.Contains(b.strings("deps"), c.output(program)) {
			c.wrong("%s is not made anew with its program", ref)
		}
		for _, path := range b.strings("deps") {
			c.exists(ref, path)
		}
		if b.str("outputs_image_ref_to") != c.path("bin/tilt/"+program+".ref") {
			c.wrong("%s: tilt/image writes bin/tilt/%s.ref, not %s", ref, program, b.str("outputs_image_ref_to"))
		}
		if !b.is("skips_local_docker", false) || !b.is("disable_push", false) {
			c.wrong("%s: Tilt would push what tilt/load has loaded", ref)
		}
	}
	for name := range used {
		if strings.HasPrefix(name, "pairdb/") && !built[name] {
			c.wrong("containers use the image %s, which is not built", name)
		}
	}
	for _, b := range localpod.Binaries() {
		if !built["pairdb/"+b] {
			c.wrong("nothing builds %s", b)
		}
	}
}

// order requires that resources wait for resources that are there, never in a circle, and that what is
// deployed waits for the programs in it.
func (c *checker) order() {
	waits := map[string][]string{}
	for _, r := range c.tilt.of("local_resource") {
		waits[r.str("name")] = r.strings("resource_deps")
		if cmd := strings.Join(r.strings("cmd"), " "); strings.Contains(cmd, "./bin/pairctl") && !slices.Contains(r.strings("resource_deps"), c.made[c.path("bin/pairctl")]) {
			c.wrong("%s does not wait for pairctl", r.str("name"))
		}
	}
	for _, r := range c.tilt.of("k8s_resource") {
		waits[r.str("workload")] = r.strings("resource_deps")
	}
	for name, deps := range waits {
		for _, d := range deps {
			if !c.resources[d] {
				c.wrong("%s waits for %s, which is no resource", name, d)
			}
		}
	}
	for name, w := range c.tilt.workloads() {
		for _, container := range containers(w) {
			image, _, _ := strings.Cut(fmt.Sprint(at(container, "image")), ":")
			for path, by := range c.made {
				program := filepath.Base(path)
				if "pairdb/"+strings.TrimSuffix(program, "-server") == image && !slices.Contains(waits[name], by) {
					c.wrong("%s does not wait for %s", name, by)
				}
			}
		}
	}
	var circle func(name string, way []string) bool
	circle = func(name string, way []string) bool {
		if slices.Contains(way, name) {
			return true
		}
		return slices.ContainsFunc(waits[name], func(d string) bool { return circle(d, append(way, name)) })
	}
	for name := range waits {
		if circle(name, nil) {
			c.wrong("%s waits for itself", name)
		}
	}
}

// configMaps requires that what pods mount, or take their environment from, is deployed.
func (c *checker) configMaps() {
	have := map[string]bool{}
	for _, o := range c.tilt.objects {
		if o["kind"] == "ConfigMap" {
			have[fmt.Sprint(at(o, "metadata", "namespace"), "/", at(o, "metadata", "name"))] = true
		}
	}
	for name, w := range c.tilt.workloads() {
		namespace := at(w, "metadata", "namespace")
		var wanted []any
		for _, v := range list(w, "spec", "template", "spec", "volumes") {
			wanted = append(wanted, at(v, "configMap", "name"))
		}
		for _, container := range containers(w) {
			for _, e := range list(container, "envFrom") {
				wanted = append(wanted, at(e, "configMapRef", "name"))
			}
		}
		for _, m := range wanted {
			if m != nil && !have[fmt.Sprint(namespace, "/", m)] {
				c.wrong("%s needs the ConfigMap %v/%v", name, namespace, m)
			}
		}
	}
}

// A mistake is a text of a file below the top that is replaced by one that is wrong.
type mistake struct{ file, old, new string }

func TestEachKindOfMistakeIsFound(t *testing.T) {
	// A check that can't fail is worse than none.
	mistakes := map[string]mistake{
		"a file that is not there":         {"tilt/programs.tilt", "/deploy/docker/Dockerfile", "/deploy/docker/Containerfile"},
		"a script that is not there":       {"tilt/programs.tilt", "ROOT + '/tilt/image'", "ROOT + '/tilt/img'"},
		"a program that is not there":      {"Tiltfile", "'compactor', ", "'compacter', "},
		"an image that nobody uses":        {"Tiltfile", "PROGRAMS + ['nats-server']:\n    image", "PROGRAMS + ['nats-server', 'pairctl']:\n    image"},
		"an image that nobody builds":      {"Tiltfile", "PROGRAMS + ['nats-server']:\n    image", "PROGRAMS:\n    image"},
		"a workload that is not there":     {"tilt/pods.tilt", "        'nats',\n", "        'nats-server',\n"},
		"a dependency that is not there":   {"tilt/pods.tilt", "['nats'] +", "['natz'] +"},
		"a circle":                         {"tilt/pods.tilt", "resource_deps=[compile_resource('nats-server')]", "resource_deps=['pairdb']"},
		"a program that is not waited for": {"tilt/pods.tilt", "'compactor', 'migrator', 'health-agent']]", "'compactor', 'migrator']]"},
		"a port of no container":           {"tilt/pods.tilt", "port_forward(8222, 8222", "port_forward(8222, 8223"},
		"a port that is taken":             {"tilt/pods.tilt", "port_forward(4222, 4222", "port_forward(9091, 4222"},
		"a port that is missing":           {"tilt/pods.tilt", "port_forward(9094, 9094", "port_forward(9194, 9094"},
		"an argument that is misspelt":     {"tilt/pods.tilt", "port_forwards=PORTS", "port_forward=PORTS"},
		"an argument of the wrong type":    {"tilt/pods.tilt", "port_forward(4222, 4222", "port_forward('4222', 4222"},
		"a function that Tilt has not":     {"tilt/pods.tilt", "encode_yaml_stream(objects)", "to_yaml(objects)"},
		"an overlay that is not there":     {"tilt/pods.tilt", "overlays/dev", "overlays/development"},
		"a file that is not loaded":        {"Tiltfile", "'./tilt/pods.tilt'", "'./tilt/pod.tilt'"},
		"an extension":                     {"Tiltfile", "'./tilt/pods.tilt'", "'ext://pods'"},
		"a command that pairctl has not":   {"tilt/buttons.tilt", "pairctl status", "pairctl state"},
		"a flag that pairctl has not":      {"tilt/buttons.tilt", "--timeout 30s", "--within 30s"},
		"pairctl that is not waited for":   {"tilt/buttons.tilt", "resource_deps=[compile_resource('pairctl')]", "resource_deps=[]"},
		"sources that are not watched":     {"tilt/programs.tilt", "        deps=deps,", "        deps=deps[1:],"},
		"sources of others that are":       {"tilt/programs.tilt", "        deps=deps,", "        deps=deps + [ROOT + '/libs/client'],"},
		"a relative path":                  {"tilt/programs.tilt", "ROOT + '/services/go.mod'", "'services/go.mod'"},
		"a setting that is not defined":    {"Tiltfile", "config.define_string('pods'", "config.define_string('nodes'"},
		"a name with a space":              {"tilt/buttons.tilt", "'put-get'", "'put get'"},
		"a ref that tilt/image writes not": {"tilt/programs.tilt", "/bin/tilt/%s.ref", "/bin/tilt/%s.image"},
		"an image that Tilt would push":    {"tilt/programs.tilt", "disable_push=True", "disable_push=False"},
		"in place before there is a pod":   {"tilt/programs.tilt", "        auto_init=False,\n        resource_deps=['pairdb'],", "        resource_deps=['pairdb'],"},
		"a link to nowhere":                {"tilt/pods.tilt", "'http://localhost:%d/ready' % (9094 + shift)", "'http://localhost:%d/ready' % (9095 + shift)"},
		"a pod that is not there":          {"tilt/pods.tilt", "'pod/pairdb-%d' % i", "'pod/pairdb-%d' % (i + 1)"},
		"a probe of nothing":               {"tilt/pods.tilt", "port=9091 + shift", "port=9081 + shift"},
		"a map that is not deployed":       {"tilt/monitoring.tilt", "_config_map('alerts'", "_config_map('alarms'"},
		"a folder that is not there":       {"tilt/monitoring.tilt", "MONITORING + '/dashboards'", "MONITORING + '/boards'"},
		"a resource without a label":       {"tilt/pods.tilt", "        labels=['nats'],\n", ""},
	}
	for name, m := range mistakes {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join(root(t), m.file))
			require.NoError(t, err)
			require.Equal(t, 1, strings.Count(string(text), m.old), "%q in %s", m.old, m.file)
			for _, s := range settings() {
				tilt := &tilt{
					root: root(t), context: "kind-pairdb", settings: s,
					replaced: map[string]string{m.file: strings.Replace(string(text), m.old, m.new, 1)},
				}
				if err := tilt.run(); err != nil || len(problems(t, tilt)) > 0 {
					return
				}
			}
			t.Error("nothing was found")
		})
	}
}
