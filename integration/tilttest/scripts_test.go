package tilttest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// stubs makes programs that write down how they are called, and do what their text says; it returns the
// directory, and the calls so far.
func stubs(t *testing.T, programs map[string]string) (dir string, calls func() []string) {
	t.Helper()
	dir = t.TempDir()
	log := filepath.Join(dir, "calls")
	for name, does := range programs {
		text := fmt.Sprintf("#!/bin/bash\necho \"%s $*\" >>%s\n%s\n", name, log, does)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755))
	}
	return dir, func() []string {
		b, err := os.ReadFile(log)
		if os.IsNotExist(err) {
			return nil
		}
		require.NoError(t, err)
		return strings.Split(strings.TrimSpace(string(b)), "\n")
	}
}

// script runs one of tilt/ with stubs in front of the programs of the machine.
func script(t *testing.T, stubs string, env []string, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(filepath.Join(root(t), "tilt", name), args...)
	cmd.Env = append(os.Environ(), "PATH="+stubs+":"+os.Getenv("PATH"), "KUBE_BOX=", "ARCH=")
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestEachClusterGetsImagesItsOwnWay(t *testing.T) {
	// An image that does not get into the cluster is a pod that waits for ever for a registry that has not got it.
	for context, want := range map[string]string{
		"kind-pairdb": "kind load docker-image --name pairdb a:1 b:2",
		"k3d-pairdb":  "k3d image import --cluster pairdb a:1 b:2",
		"minikube":    "minikube image load a:1\nminikube image load b:2",
		"kube-box":    "box load a:1 b:2",

		"docker-desktop": "", "rancher-desktop": "",
	} {
		dir, calls := stubs(t, map[string]string{"kind": "", "k3d": "", "minikube": "", "box": ""})
		out, err := script(t, dir, []string{"CONTEXT=" + context, "KUBE_BOX=" + filepath.Join(dir, "box")}, "load", "a:1", "b:2")
		require.NoError(t, err, "%s: %s", context, out)
		require.Equal(t, want, strings.Join(calls(), "\n"), context)
	}
	dir, _ := stubs(t, nil)
	out, err := script(t, dir, []string{"CONTEXT=production"}, "load", "a:1")
	require.Error(t, err)
	require.Contains(t, out, "production")
	out, err = script(t, dir, []string{"CONTEXT=kube-box"}, "load", "a:1")
	require.Error(t, err)
	require.Contains(t, out, "KUBE_BOX")
	for context := range map[string]bool{"kube-box": true, "kind-a": true, "k3d-a": true, "docker-desktop": true, "minikube": true, "rancher-desktop": true} {
		require.NoError(t, (&tilt{root: root(t), context: context}).run(), "tilt/load and tilt/cluster.tilt differ")
	}
}

func TestAChangeReachesOneContainerOfEachPodAndOnlyOnce(t *testing.T) {
	// A developer who looks at the old program looks for the mistake in the wrong place.
	const program = "compactor"
	none, _ := stubs(t, nil)
	out, err := script(t, none, nil, "compile", program)
	require.NoError(t, err, out)
	out, err = script(t, none, nil, "compile", program)
	require.NoError(t, err, out)
	require.Contains(t, out, "is as it was")

	dir, calls := stubs(t, map[string]string{
		// No image is there. What is built must be one program and one stage.
		"docker": `if [ "$1" = build ]; then find "${@: -1}" -type f -printf 'file %P\n' | sort >>"$(dirname "$0")/calls"; grep -c ^FROM "${@: -1}/Dockerfile" >>"$(dirname "$0")/calls"; fi`,
		// Two pods, which run what they were told to run.
		"kubectl": `here=$(dirname "$0")
case " $* " in
*" get pods "*) printf 'pod/pairdb-0\npod/pairdb-1\n' ;;
*" set image "*) echo "${@: -1}" | sed 's|=| host.test/|; s|$| true|' >"$here/runs" ;;
*" get pod/"*) cat "$here/runs" ;;
esac`,
	})
	out, err = script(t, dir, []string{"CONTEXT=docker-desktop"}, "in-place", program)
	require.NoError(t, err, out)
	b, err := os.ReadFile(filepath.Join(root(t), "bin", "tilt", program+".ref"))
	require.NoError(t, err)
	ref := strings.TrimSpace(string(b))
	require.Regexp(t, `^pairdb/compactor:tilt-[0-9a-f]{12}$`, ref)
	got := calls()
	require.Equal(t, "docker image ls -q "+ref, got[0])
	require.Contains(t, got[1], "docker build -q --build-arg TARGETARCH="+runtime.GOARCH)
	require.Equal(t, []string{"file Dockerfile", "file linux_" + runtime.GOARCH + "/" + program, "1"}, got[2:5])
	var set []string
	for _, call := range got[5:] {
		require.Contains(t, call, "kubectl --context docker-desktop --namespace pairdb ")
		if strings.Contains(call, " set ") {
			set = append(set, strings.TrimPrefix(call, "kubectl --context docker-desktop --namespace pairdb "))
		}
	}
	require.Equal(t, []string{"set image pod/pairdb-0 " + program + "=" + ref, "set image pod/pairdb-1 " + program + "=" + ref}, set)

	// The same content has the same name, so nothing is built and nothing starts again.
	dir, calls = stubs(t, map[string]string{"docker": "echo is-there"})
	out, err = script(t, dir, []string{"CONTEXT=docker-desktop"}, "image", program)
	require.NoError(t, err, out)
	require.Equal(t, []string{"docker image ls -q " + ref}, calls())

	out, err = script(t, dir, nil, "image", "nobody")
	require.Error(t, err)
	require.Contains(t, out, "tilt/compile nobody")
}
