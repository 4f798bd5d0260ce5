package events

import (
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/event"
	"github.com/pairdb/pairdb/libs/localpod"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	clusterv1 "github.com/pairdb/pairdb/proto/pairdb/cluster/v1"
	eventv1 "github.com/pairdb/pairdb/proto/pairdb/event/v1"
)

// Danger: commands work in a test of their package and not in a pod.
func TestRealPodAnswersCommands(t *testing.T) {
	pods, _ := podtest.Start(t, localpod.Options{NoCompactor: true})
	b, pod := brokerOf(t, pods), pods.All()[0]
	command := func(args ...string) (string, error) {
		cmd := exec.Command(filepath.Join(podtest.Binaries(t), "pairctl"), append([]string{"command", "--nats", b.url(), "--node", pod.Name}, args...)...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	podtest.Eventually(t, 20*time.Second, "the agent answers", func() bool { _, err := command("status"); return err == nil })
	out, err := command("status")
	require.NoError(t, err, out)
	require.Contains(t, out, `"state": "serving"`)
	out, err = command("flush")
	require.NoError(t, err, out)
	out, err = command("snapshot", "--name", "by-command")
	require.NoError(t, err, out)
	require.Equal(t, "by-command", b.find(20*time.Second, event.SnapshotCreated).(*eventv1.SnapshotCreated).GetName())
	out, err = command("snapshot", "--name", "by-command")
	require.Error(t, err)
	require.Contains(t, out, "SNAPSHOT_EXISTS")
	out, err = command("snapshot", "--name", "../elsewhere")
	require.Error(t, err)
	require.Contains(t, out, "INVALID_ARGUMENT_SNAPSHOT_NAME")

	nc, err := nats.Connect(b.url())
	require.NoError(t, err)
	defer nc.Close()
	m, err := nc.Request("$SRV.PING.pairdb-node", nil, 5*time.Second)
	require.NoError(t, err)
	require.Contains(t, string(m.Data), pod.Name)
	pod.HealthAgent.Stop()
	out, err = command("status")
	require.Error(t, err)
	require.Contains(t, out, "no health-agent")
}

// Danger: data is moved over NATS in a test of its package and not in a pod, or by the wrong sidecar.
func TestRealMigratorAnswersCommands(t *testing.T) {
	pods, _ := podtest.Start(t, localpod.Options{NoCompactor: true, NoHealthAgent: true})
	b, pod := brokerOf(t, pods), pods.All()[0]
	command := func(args ...string) (string, error) {
		cmd := exec.Command(filepath.Join(podtest.Binaries(t), "pairctl"), append([]string{"command", "--nats", b.url(), "--node", pod.Name}, args...)...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	podtest.Eventually(t, 20*time.Second, "the migrator answers", func() bool { _, err := command("moves"); return err == nil })
	out, err := command("replicate", "--arg", `targets=[{"node_id": "nobody", "addr": "127.0.0.1:1"}]`, "--arg", "id=copy")
	require.NoError(t, err, out)
	out, err = command("moves", "--arg", "id=copy")
	require.NoError(t, err, out)
	require.Contains(t, out, `"node_id": "nobody"`)
	out, err = command("cancel", "--arg", "id=copy", "--arg", "reason=nobody is there")
	require.NoError(t, err, out)
	require.Contains(t, out, "STATE_CANCELLED")
	out, err = command("cancel", "--arg", "id=unknown")
	require.Error(t, err)
	require.Contains(t, out, "MOVE_NOT_FOUND")
	pod.Migrator.Stop()
	out, err = command("moves")
	require.Error(t, err)
	require.Contains(t, out, "no migrator")
}

// Danger: who watches the cluster over NATS does not learn that a member is gone.
func TestRealAgentsTellOfMembers(t *testing.T) {
	pods, _ := podtest.Start(t, localpod.Options{NoCompactor: true, Nodes: 3})
	b, first := brokerOf(t, pods), podtest.Client(t, pods.All()[0].Addr, client.Options{})
	// seen waits until the first pod has told that a member is so.
	seen := func(kind, member string) {
		podtest.Eventually(t, time.Minute, kind+" "+member, func() bool {
			for _, e := range b.events() {
				if e.Kind != kind || e.Node != "node-0" {
					continue
				}
				payload, err := e.Payload()
				require.NoError(t, err)
				if payload.(*eventv1.MembershipChanged).GetMember().GetDeclared().GetNodeId() == member {
					return true
				}
			}
			return false
		})
	}
	// Who is there when an agent begins is no news to it.
	podtest.Eventually(t, time.Minute, "the pods are a cluster", func() bool {
		r, err := first.Admin().Members(t.Context(), &adminv1.MembersRequest{})
		alive := 0
		for _, m := range r.GetMembers() {
			if m.GetLiveness() == clusterv1.Liveness_LIVENESS_ALIVE {
				alive++
			}
		}
		return err == nil && alive == 3
	})
	pods.All()[1].HealthAgent.Stop()
	seen(event.MembershipLeft, "node-1")
	require.NoError(t, pods.All()[1].HealthAgent.Start())
	seen(event.MembershipJoined, "node-1")
	pods.All()[2].Halt()
	seen(event.MembershipFailed, "node-2")
}
