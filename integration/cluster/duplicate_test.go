package cluster

import (
	"net/http"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/localpod"
)

func TestASecondPodOfOneNameIsKeptOut(t *testing.T) {
	// A volume that was copied, or a name that was given twice: two nodes would answer for one, and the
	// cluster would follow now this one and now that one.
	c := start(t, 1)
	c.see(joinLimit, 0, "UP ALIVE", 0)
	first := c.pods[0]
	// At once: else it answers for nothing, since nobody declares it.
	set, _ := podtest.Start(t, localpod.Options{Seeds: []string{first.GossipAddr}, Env: []string{"PAIRDB_JOIN=at-once"}})
	second := set.All()[0]
	require.Equal(t, first.Name, second.Name)
	both := &cluster{t: t, pods: []*localpod.Pod{first, second}, set: set, clients: []*client.Client{
		c.clients[0], podtest.Client(t, second.Addr, client.Options{RetryFor: -1}),
	}}

	both.judged(1, joinLimit, "the second one is told", func(v verdict) bool {
		return v.code == http.StatusServiceUnavailable && slices.Contains(v.reasons, "duplicate-id")
	})
	for range 20 {
		v := both.verdict(0)
		require.Equal(t, http.StatusOK, v.code, "the first one goes on: %v", v.reasons)
		r, err := both.members(0)
		require.NoError(t, err)
		require.Len(t, r.GetMembers(), 1)
		require.Equal(t, first.Addr, r.GetMembers()[0].GetDeclared().GetGrpcAddr())
		both.serves(0, "first")
	}
	set.Stop()
	both.judged(0, joinLimit, "all is well", func(v verdict) bool { return v.code == http.StatusOK && len(v.degraded) == 0 })
	require.Equal(t, "UP ALIVE", both.words(0, 0))
}
