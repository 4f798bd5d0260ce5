package gossip

import (
	"encoding/base64"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/membership"
)

func TestThreeMeetOneFailsOneLeaves(t *testing.T) {
	// A failure that is seen late sends requests to a dead node; a goodbye that looks like a failure
	// wakes people at night.
	t.Parallel()
	a := start(t, "a", nil)
	eventually(t, func() bool { return a.View().Joined }, "the first member has nobody to join")
	b := start(t, "b", seeds(a))
	c := start(t, "c", seeds(a))
	meet(t, a, b, c)
	require.Equal(t, "b:8080", c.sees("b").Meta.GRPCAddr, "c has met b through a")
	require.Equal(t, b.Addr(), c.sees("b").Addr)

	b.SetMeta(Meta{GRPCAddr: "b:8080", Ready: true, Degraded: 6, DiskPercent: 50})
	eventually(t, func() bool { m := a.sees("b").Meta; return m.Ready && m.Degraded == 6 && m.DiskPercent == 50 }, "news of b")

	died := time.Now()
	c.crash(t)
	for _, m := range []*member{a, b} {
		eventually(t, func() bool { return m.sees("c").Liveness == Down }, "%s sees the failure", m.o.NodeID)
	}
	require.Less(t, time.Since(died), 10*time.Second)
	require.Equal(t, membership.Up, a.sees("c").Declared.State, "silence declares nothing")

	require.NoError(t, b.Close())
	eventually(t, func() bool { return a.sees("b").Liveness == Left }, "b went")

	var changes []string
	for _, tr := range a.Transitions() {
		if tr.Member.Liveness != Suspect && tr.From != Suspect || tr.Member.Liveness == Down {
			changes = append(changes, tr.Member.Declared.NodeID+" "+tr.Member.Liveness.String())
		}
	}
	require.ElementsMatch(t, []string{"b alive", "c alive", "c down", "b left"}, changes, "each once")
	require.Empty(t, a.Transitions())
	for _, kind := range []string{msgPing, msgPingAnswered, msgPushPullSent, msgPushPullReceived, msgAlive, msgJoin, msgUpdate, msgLeave} {
		require.Positive(t, a.messages(kind), kind)
	}
	for _, reason := range refusedReasons {
		require.Zero(t, a.refused(reason), reason)
	}
}

func TestWhatWasThereIsNoNews(t *testing.T) {
	// An agent that restarts would report the whole cluster as joined.
	t.Parallel()
	a := start(t, "a", nil)
	b := start(t, "b", seeds(a))
	meet(t, a, b)
	eventually(t, func() bool { return b.View().Joined }, "joined")
	require.Empty(t, b.Transitions())
}

func TestWhoGoesBeforeTheJoinIsNews(t *testing.T) {
	// Others may reach an agent before it reaches a seed; who leaves in between would never be missed.
	t.Parallel()
	now := time.UnixMilli(1000)
	v := newView("a", Meta{}, now)
	v.observe("b", Alive, &Meta{since: 7}, "127.0.0.1:1", now)
	require.Empty(t, v.takeTransitions(), "who was there")
	require.True(t, v.leaves("b", 7, now))
	v.lost("b", now)
	got := v.takeTransitions()
	require.Len(t, got, 1)
	require.Equal(t, Alive, got[0].From)
	require.Equal(t, Left, got[0].Member.Liveness)
}

func TestDeclarationsReachEverybodyAtOnce(t *testing.T) {
	// Every 15 s a push/pull would bring them; an operator who waits that long for each step gives up.
	t.Parallel()
	a := start(t, "a", nil)
	b := start(t, "b", seeds(a))
	c := start(t, "c", seeds(a, b))
	meet(t, a, b, c)
	said := time.Now()
	want := b.declare(t, membership.Draining, 2)
	for _, m := range []*member{a, c} {
		eventually(t, func() bool { return m.View().Declared["b"] == want }, "%s", m.o.NodeID)
	}
	require.Less(t, time.Since(said), 10*time.Second)
	require.NoError(t, a.Merge(membership.Declaration{NodeID: "b", Version: 1, State: membership.Removed, VirtualNodes: 1}))
	require.Equal(t, want, a.View().Declared["b"], "old news change nothing")
	// One who comes later gets the whole map.
	d := start(t, "d", seeds(c))
	eventually(t, func() bool { return len(d.View().Declared) == 3 }, "the map")
	require.Equal(t, a.View().Declared, d.View().Declared)
}

// unchanged checks that nothing of the view has changed since before.
func unchanged(t *testing.T, m *member, before View) {
	t.Helper()
	now := m.View()
	require.Equal(t, before.Declared, now.Declared)
	require.Equal(t, len(before.Members), len(now.Members))
	require.Equal(t, 1, m.view.alive())
	require.Empty(t, m.Transitions())
}

func TestOtherClustersAndNoiseAreRefusedAndChangeNothing(t *testing.T) {
	// Whoever reaches the port must not get into the list, nor fill the log.
	t.Parallel()
	valid := Meta{GRPCAddr: "x:1"}.encode()
	junk := []byte("junk")
	for name, c := range map[string]struct {
		reason string
		attack func(t *testing.T, a *member)
		again  bool // the attack can be repeated
	}{
		"another cluster": {reason: refusedLabel, attack: func(t *testing.T, a *member) {
			other := start(t, "x", func(o *Options) { o.ClusterID = "c2"; o.Seeds = []string{a.Addr()} })
			eventually(t, func() bool { return other.log.count("no seed answers") > 0 }, "x can't join")
			require.False(t, other.View().Joined)
		}},
		"noise": {refusedLabel, func(t *testing.T, a *member) { packet(t, a, junk) }, true},
		"noise with the label": {refusedPacket, func(t *testing.T, a *member) {
			packet(t, a, labelled(cluster, []byte{200, 1, 2, 3}))
		}, true},
		"a header that ends": {refusedLabel, func(t *testing.T, a *member) { packet(t, a, []byte{244, 9, 'c'}) }, true},
		"a message that ends": {refusedPacket, func(t *testing.T, a *member) {
			packet(t, a, labelled(cluster, aliveMessage("x", 1, valid)[:20]))
		}, true},
		"oversize meta": {refusedMeta, func(t *testing.T, a *member) {
			packet(t, a, labelled(cluster, aliveMessage("x", 1, append(valid, make([]byte, maxMetaBytes)...))))
		}, true},
		"malformed meta": {refusedMeta, func(t *testing.T, a *member) {
			packet(t, a, labelled(cluster, aliveMessage("x", 1, junk)))
		}, true},
		"a name that is none": {refusedMeta, func(t *testing.T, a *member) {
			packet(t, a, labelled(cluster, aliveMessage("x/y", 1, valid)))
		}, true},
		"another program with the label": {reason: refusedMeta, attack: func(t *testing.T, a *member) {
			r := startRaw(t, "x", cluster, junk, nil)
			_, err := r.list.Join([]string{a.Addr()})
			require.NoError(t, err)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := start(t, "a", nil)
			a.declare(t, membership.Up, 1)
			eventually(t, func() bool { return a.View().Joined }, "joined")
			before := a.View()
			c.attack(t, a)
			eventually(t, func() bool { return a.refused(c.reason) > 0 }, "counted")
			if c.again {
				c.attack(t, a)
				eventually(t, func() bool { return a.refused(c.reason) > 1 }, "counted again")
			}
			require.Equal(t, 1, a.log.count("gossip refused", "reason="+c.reason), "logged once per peer")
			unchanged(t, a, before)
		})
	}
}

func TestStatesAndMessagesThatCantBeReadChangeNothing(t *testing.T) {
	// The declared map is for good: half of a bad one would stay.
	t.Parallel()
	a := start(t, "a", nil)
	a.declare(t, membership.Up, 1)
	before := a.View()
	good, err := membership.Encode(membership.Map{"x": {NodeID: "x", Version: 1, State: membership.Up, VirtualNodes: 1}})
	require.NoError(t, err)
	r := startRaw(t, "x", cluster, Meta{}.encode(), good[:len(good)-1])
	_, err = r.list.Join([]string{a.Addr()})
	require.NoError(t, err)
	eventually(t, func() bool { return a.refused(refusedState) > 0 }, "state")
	require.Equal(t, before.Declared, a.View().Declared)

	for _, n := range r.list.Members() {
		if n.Name == "a" {
			for _, m := range [][]byte{{}, {99}, {kindLeave, 0xff}, {kindLeave, 1, '/'}, append([]byte{kindDeclarations}, good[1:]...)} {
				require.NoError(t, r.list.SendBestEffort(n, m))
			}
		}
	}
	eventually(t, func() bool { return a.refused(refusedMessage) == 5 }, "messages")
	require.Equal(t, before.Declared, a.View().Declared)
}

func TestALeaveThatComesLateIsNoFailure(t *testing.T) {
	// Packets overtake each other: the end of a member may arrive before its goodbye.
	t.Parallel()
	now := time.UnixMilli(1000)
	v := newView("a", Meta{}, now)
	v.set(func(v *view) { v.joined = true })
	v.observe("b", Alive, &Meta{since: 7}, "127.0.0.1:1", now)
	require.False(t, v.leaves("x", 7, now), "nobody")
	require.False(t, v.leaves("b", 6, now), "an earlier life")
	v.lost("b", now)
	require.Equal(t, Down, v.memberLocked("b").Liveness)
	require.True(t, v.leaves("b", 7, now))
	require.False(t, v.leaves("b", 7, now), "said once")
	require.Equal(t, Left, v.memberLocked("b").Liveness)
	v.observe("b", Alive, &Meta{since: 8}, "127.0.0.1:1", now)
	v.lost("b", now)
	require.Equal(t, Down, v.memberLocked("b").Liveness, "the next life did not say so")
}

func TestMoreMembersThanMayBeAreRefused(t *testing.T) {
	// A peer that invents members must not grow this process without end.
	t.Parallel()
	a := start(t, "a", nil)
	full := make([]membership.Declaration, membership.MaxMembers)
	for i := range full {
		full[i] = membership.Declaration{NodeID: "n" + strings.Repeat("0", i%50) + string(rune('a'+i/50)), Version: 1, State: membership.Up, VirtualNodes: 1}
	}
	require.NoError(t, a.Merge(full...))
	require.ErrorIs(t, a.Merge(membership.Declaration{NodeID: "more", Version: 1, State: membership.Up, VirtualNodes: 1}), membership.ErrTooMany)
	one, err := membership.Encode(membership.Map{"x": {NodeID: "x", Version: 1, State: membership.Up, VirtualNodes: 1}})
	require.NoError(t, err)
	delegate{a.Gossip}.NotifyMsg(append([]byte{kindDeclarations}, one...))
	require.Equal(t, 1, a.refused(refusedMembers))

	now := time.Now()
	for _, d := range full {
		require.True(t, a.view.room(d.NodeID))
		a.view.observe(d.NodeID, Alive, &Meta{}, "127.0.0.1:1", now)
	}
	require.False(t, a.view.room("more"))
	require.True(t, a.view.room(full[0].NodeID))
}

func TestOnlyThoseWithAKeyTalk(t *testing.T) {
	// Without the encryption anybody in the network could drain a cluster.
	t.Parallel()
	dir := t.TempDir()
	keyring := func(name string, keys ...[]byte) func(o *Options) {
		path := filepath.Join(dir, name)
		writeKeys(t, path, keys...)
		return func(o *Options) { o.Keyring = path }
	}
	a := start(t, "a", keyring("a", key(1)))
	before := a.View()
	for id, change := range map[string]func(o *Options){"wrong": keyring("wrong", key(2)), "plain": func(*Options) {}} {
		n := a.refused(refusedEncryption)
		other := start(t, id, func(o *Options) { change(o); o.Seeds = []string{a.Addr()} })
		eventually(t, func() bool { return a.refused(refusedEncryption) > n }, "%s is counted", id)
		eventually(t, func() bool { return other.log.count("no seed answers") > 0 }, "%s can't join", id)
		require.False(t, other.View().Joined)
	}
	packet(t, a, labelled(cluster, aliveMessage("x", 1, Meta{}.encode())))
	n := a.refused(refusedEncryption)
	eventually(t, func() bool { packet(t, a, labelled(cluster, []byte("junk"))); return a.refused(refusedEncryption) > n }, "a packet")
	require.Equal(t, 1, a.log.count("gossip refused", "reason="+refusedEncryption), "one peer, one reason")
	unchanged(t, a, before)

	b := start(t, "b", func(o *Options) { keyring("b", key(1))(o); o.Seeds = []string{a.Addr()} })
	meet(t, a, b)
}

func TestKeysRotateWhileMembersTalk(t *testing.T) {
	// A rotation that needs a restart is one that is never done.
	t.Parallel()
	dir := t.TempDir()
	paths := map[string]string{"a": filepath.Join(dir, "a"), "b": filepath.Join(dir, "b")}
	ringed := func(id string, more func(o *Options)) *member {
		writeKeys(t, paths[id], key(1))
		return start(t, id, func(o *Options) {
			o.Keyring, o.keyringEvery = paths[id], 5*time.Millisecond
			if more != nil {
				more(o)
			}
		})
	}
	a := ringed("a", nil)
	b := ringed("b", seeds(a))
	meet(t, a, b)
	for step, keys := range [][][]byte{
		{key(1), key(2)}, // add
		{key(2), key(1)}, // use
		{key(2)},         // remove
	} {
		for _, m := range []*member{a, b} {
			writeKeys(t, paths[m.o.NodeID], keys...)
			eventually(t, func() bool { return sameKeys(keys, m.ring.GetKeys()) }, "step %d at %s", step, m.o.NodeID)
			// Between the two of them a step is half done, and they talk.
			m.SetMeta(Meta{DiskPercent: 10*step + len(m.o.NodeID), Version: m.o.NodeID})
			other := a
			if m == a {
				other = b
			}
			eventually(t, func() bool { return other.sees(m.o.NodeID).Meta.DiskPercent == 10*step+1 }, "step %d from %s", step, m.o.NodeID)
		}
	}
	require.Zero(t, a.refused(refusedEncryption)+b.refused(refusedEncryption))

	// A file that is emptied or broken changes nothing but the verdict.
	for _, text := range []string{"", base64.StdEncoding.EncodeToString(key(1))[:7]} {
		require.NoError(t, os.WriteFile(paths["a"], []byte(text), 0o600))
		eventually(t, func() bool { return a.View().Keyring != "" }, "said")
		require.True(t, sameKeys([][]byte{key(2)}, a.ring.GetKeys()))
		writeKeys(t, paths["a"], key(2))
		eventually(t, func() bool { return a.View().Keyring == "" }, "well again")
	}
}

func TestASecondMemberOfOneNameSaysSoAndChangesNothing(t *testing.T) {
	// Two nodes that write under one name lose writes of both: the one that came second must know, and
	// the first must not go with it.
	t.Parallel()
	first := start(t, "n", func(o *Options) { o.Meta.Incarnation = "i1" })
	b := start(t, "b", seeds(first))
	meet(t, first, b)
	second := start(t, "n", func(o *Options) { seeds(b)(o); o.Meta.Incarnation = "i2" })
	eventually(t, func() bool { return strings.Contains(second.View().Duplicate, first.Addr()) }, "it learns of it")
	require.Equal(t, first.Addr(), b.sees("n").Addr)
	n, flapped := second.refused(refusedDuplicate), false
	eventually(t, func() bool {
		flapped = flapped || second.View().Duplicate == ""
		return second.refused(refusedDuplicate) >= n+3
	}, "it asks again")
	require.False(t, flapped)
	require.Empty(t, first.View().Duplicate)
	require.Positive(t, b.refused(refusedDuplicate))

	third := start(t, "n", func(o *Options) { seeds(b)(o); o.Meta.Incarnation = "i3" })
	eventually(t, func() bool { return third.View().Duplicate != "" }, "so does a third")
	require.NoError(t, third.Close())
	b.SetMeta(Meta{Version: "after"})
	eventually(t, func() bool { return first.sees("b").Meta.Version == "after" }, "the first is there")
	require.Equal(t, Alive, b.sees("n").Liveness, "the leave of a duplicate is nobody's")

	// The name is free when the first goes.
	require.NoError(t, first.Close())
	eventually(t, func() bool { m := b.sees("n"); return m.Liveness == Alive && m.Addr == second.Addr() }, "the second is a member")
	eventually(t, func() bool { return second.View().Duplicate == "" }, "and says so")
}

func TestAnEarlierLifeIsNoDuplicateAtFirst(t *testing.T) {
	// A pod that was killed comes back with another address before the others noticed.
	t.Parallel()
	dead := start(t, "n", func(o *Options) { o.Meta.Incarnation = "i1" })
	b := start(t, "b", seeds(dead))
	meet(t, dead, b)
	dead.crash(t)
	again := start(t, "n", func(o *Options) { seeds(b)(o); o.Meta.Incarnation = "i1" })
	eventually(t, func() bool { return again.refused(refusedDuplicate) > 0 }, "b holds the old address")
	said := ""
	eventually(t, func() bool {
		if d := again.View().Duplicate; d != "" {
			said = d
		}
		m := b.sees("n")
		return m.Liveness == Alive && m.Addr == again.Addr()
	}, "it takes its place")
	require.Empty(t, said)
	eventually(t, func() bool { return !again.View().Contested }, "and knows")
}

func TestSeedsThatComeLateAreFound(t *testing.T) {
	// Pods start in any order, and DNS knows them later still.
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	late := l.Addr().String()
	require.NoError(t, l.Close())
	b := start(t, "b", func(o *Options) { o.Seeds = []string{"no..name:1", late} })
	eventually(t, func() bool { return b.log.count("no seed answers") == 1 }, "said once")
	v := b.View()
	require.True(t, v.Unanswered && !v.Joined)
	a := start(t, "a", func(o *Options) { o.Addr = late })
	meet(t, a, b)
	eventually(t, func() bool { v := b.View(); return v.Joined && !v.Unanswered }, "joined")
}

func TestASeedThatIsOneselfIsNone(t *testing.T) {
	// The first pod of a StatefulSet finds only itself behind the name of the service.
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	own := l.Addr().String()
	require.NoError(t, l.Close())
	_, port, err := net.SplitHostPort(own)
	require.NoError(t, err)
	a := start(t, "a", func(o *Options) {
		o.Addr, o.Seeds = own, []string{own, dnsPrefix + own, dnsPrefix + "localhost:" + port}
	})
	eventually(t, func() bool { return a.View().Joined }, "joined")
}

func TestMembersThatWentAreFoundAgainWithoutSeeds(t *testing.T) {
	// A network that was split for long must not stay two clusters when it is whole again.
	t.Parallel()
	a := start(t, "a", nil)
	b := start(t, "b", seeds(a))
	meet(t, a, b)
	addr := b.Addr()
	b.crash(t)
	eventually(t, func() bool { return a.sees("b").Liveness == Down }, "gone")
	again := start(t, "b", func(o *Options) { o.Addr = addr })
	eventually(t, func() bool { return a.sees("b").Liveness == Alive && again.View().Declared["a"].Version == 1 }, "found")
}

func TestUnusableAddressesAndKeysAreErrors(t *testing.T) {
	// The agent says why gossip does not run, and tries again.
	t.Parallel()
	a := start(t, "a", nil)
	for name, change := range map[string]func(o *Options){
		"taken":     func(o *Options) { o.Addr = a.Addr() },
		"no ip":     func(o *Options) { o.Addr = "localhost:0" },
		"advertise": func(o *Options) { o.Advertise = "here" },
		"keys":      func(o *Options) { o.Keyring = "missing" },
	} {
		o := a.o
		change(&o)
		_, err := Open(o)
		require.Error(t, err, name)
	}
}

func TestWhatCouldNotBeOpenedLeavesItsAddress(t *testing.T) {
	// A pod that starts without a network gets one later: the address must not be taken by the first attempt then.
	t.Parallel()
	a := start(t, "a", nil)
	addr, o := a.Addr(), a.o
	a.crash(t)
	o.Addr, o.ClusterID = addr, strings.Repeat("c", 300) // memberlist says no when it has the address
	_, err := Open(o)
	require.ErrorContains(t, err, "too long")
	start(t, "a", func(o *Options) { o.Addr = addr })
}

func TestRefusalsAreLoggedOncePerPeerAndBounded(t *testing.T) {
	// A log that an attacker fills hides what matters.
	m := start(t, "a", nil)
	r := newRefusals(m.o.Log, m.o.Metrics)
	for i := range maxRefusalsLogged + 50 {
		peer := net.JoinHostPort(net.IPv4(10, 0, byte(i>>8), byte(i)).String(), "1")
		r.note(refusedPacket, peer, "x")
		r.note(refusedPacket, strings.Replace(peer, ":1", ":2", 1), "x")
	}
	require.Equal(t, 2*(maxRefusalsLogged+50), m.refused(refusedPacket))
	require.Equal(t, maxRefusalsLogged, m.log.count("gossip refused"))
}
