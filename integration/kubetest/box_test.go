package kubetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/pairdb/pairdb/integration/podtest"
)

// allowed are the contexts of clusters that are made for tests: in any other one nothing is done.
var allowed = regexp.MustCompile(`^(kube-box|docker-desktop|minikube|kind-.+|k3d-.+)$`)

// box is a cluster, and the ways to it.
type box struct {
	kubeconfig, context string
	kubectl             []string // program and first arguments
	config              *rest.Config
}

// errNoCluster: there is none that tests may use.
var errNoCluster = errors.New("no cluster for tests: KUBE_BOX is not set, and no kubeconfig has a context kube-box, kind-*, k3d-*, docker-desktop or minikube that is current")

// find returns the cluster of KUBE_BOX, which it starts if need be, or that of the kubeconfig's current context.
var find = sync.OnceValues(func() (*box, error) {
	b := &box{kubectl: []string{"kubectl"}}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	if script := os.Getenv("KUBE_BOX"); script != "" {
		out, err := exec.Command(script, "up").Output()
		if err != nil {
			return nil, fmt.Errorf("%s up: %w", script, err)
		}
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		b.kubeconfig = lines[len(lines)-1]
		b.kubectl = []string{script, "kubectl"}
		rules.ExplicitPath = b.kubeconfig
	} else {
		b.kubeconfig = strings.Join(rules.Precedence, string(filepath.ListSeparator))
	}
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil)
	raw, err := loader.RawConfig()
	if err != nil {
		return nil, err
	}
	if !allowed.MatchString(raw.CurrentContext) {
		return nil, fmt.Errorf("%w (it is %q)", errNoCluster, raw.CurrentContext)
	}
	b.context = raw.CurrentContext
	b.config, err = loader.ClientConfig()
	return b, err
})

// cluster returns the cluster of the tests. Without one the test is skipped, or fails where CI=true.
func cluster(t *testing.T) *box {
	t.Helper()
	b, err := find()
	if errors.Is(err, errNoCluster) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	require.NoError(t, err)
	return b
}

// root is the directory of the repository, from which the commands of the documents are run.
func root() string {
	dir, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		panic(err) // the working directory is gone
	}
	return dir
}

// do runs kubectl and returns what it printed.
func (b *box) do(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, b.kubectl[0], append(slices.Clone(b.kubectl[1:]), args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+b.kubeconfig)
	cmd.Dir = root()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// must is do for commands that have to succeed within a minute.
func (b *box) must(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := b.do(ctx, args...)
	require.NoError(t, err)
	return out
}

// get returns a field of an object of our namespace by a JSON path.
func (b *box) get(t *testing.T, object, path string) string {
	t.Helper()
	return b.must(t, "-n", namespace, "get", object, "-o", "jsonpath="+path)
}

// shell runs a script as an operator would: from the root of the repository, kubectl on the path.
func (b *box) shell(t *testing.T, limit time.Duration, script string, env ...string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "bin")
	require.NoError(t, os.Mkdir(bin, 0o755))
	if len(b.kubectl) > 1 {
		shim := fmt.Sprintf("#!/bin/sh\nexec '%s' \"$@\"\n", strings.Join(b.kubectl, "' '"))
		require.NoError(t, os.WriteFile(filepath.Join(bin, "kubectl"), []byte(shim), 0o755))
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = root()
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+podtest.Binaries(t)+":"+os.Getenv("PATH"), "KUBECONFIG="+b.kubeconfig)
	cmd.Env = append(cmd.Env, env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A port-forward that is left behind by a script that was ended holds its pipes.
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	require.NoError(t, err, "%s\n--- stdout\n%s\n--- stderr\n%s", script, stdout.String(), stderr.String())
	return stdout.String()
}
