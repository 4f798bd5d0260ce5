package tilttest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.starlark.net/starlark"

	"github.com/pairdb/pairdb/libs/localpod"
)

func TestPrometheusOfDevelopmentAsksEachProcessOfThePods(t *testing.T) {
	// A dashboard that is empty looks like a program that does nothing.
	run := &tilt{root: root(t), context: "kind-a", settings: map[string]starlark.Value{"monitoring": starlark.True}}
	require.NoError(t, run.run())
	listens, services, policy := map[string]any{}, map[string]bool{}, false
	for _, c := range containers(run.workloads()["pairdb"]) {
		for _, p := range list(c, "ports") {
			listens[fmt.Sprint(at(p, "name"))] = at(p, "containerPort")
		}
	}
	var config string
	for _, o := range run.objects {
		name := fmt.Sprint(at(o, "metadata", "name"))
		switch o["kind"] {
		case "Service":
			services[name+"."+fmt.Sprint(at(o, "metadata", "namespace"))+".svc"] = true
		case "ConfigMap":
			if name == "prometheus" {
				config = fmt.Sprint(at(o, "data", "prometheus.yaml"))
			}
			if name == "alerts" || name == "dashboards" {
				require.NotEmpty(t, at(o, "data"), name)
			}
		case "Namespace":
			// Else the network policy of the pods keeps Prometheus out.
			policy = policy || name == "pairdb-monitoring" && at(o, "metadata", "labels", "pairdb.io/monitoring") == "true"
		}
	}
	require.True(t, policy)
	parsed, err := decode(config)
	require.NoError(t, err)
	require.Len(t, parsed, 1)
	var jobs []string
	for _, s := range list(parsed[0], "scrape_configs") {
		job := fmt.Sprint(at(s, "job_name"))
		jobs = append(jobs, job)
		found := list(s, "dns_sd_configs")
		require.Len(t, found, 1, job)
		require.Equal(t, listens[job], at(found[0], "port"), job)
		for _, name := range list(found[0], "names") {
			require.True(t, services[fmt.Sprint(name)], "%v", name)
		}
	}
	want := localpod.Binaries()
	slices.Sort(want)
	slices.Sort(jobs)
	require.Equal(t, want, jobs, "the jobs that alerts and dashboards know")
	var mounted []string
	for _, c := range containers(run.workloads()["prometheus"]) {
		for _, m := range list(c, "volumeMounts") {
			mounted = append(mounted, fmt.Sprint(at(m, "mountPath")))
		}
	}
	for _, rules := range list(parsed[0], "rule_files") {
		require.Contains(t, mounted, strings.TrimSuffix(fmt.Sprint(rules), "/*.yaml"))
	}
}
