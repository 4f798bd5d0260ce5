package store

import (
	"crypto/sha256"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
)

var absent = &Condition{When: Absent}

func clockIs(c causal.Clock) *Condition { return &Condition{When: ClockEquals, Clock: c} }

func valueIs(value string) *Condition {
	sum := sha256.Sum256([]byte(value))
	return &Condition{When: DigestEquals, Digest: sum[:]}
}

// conditionFailed requires the refusal, and returns the clock that it carries.
func conditionFailed(t require.TestingT, err error) causal.Clock {
	require.Equal(t, ReasonConditionFailed, ReasonOf(err), "%v", err)
	var e *Error
	require.ErrorAs(t, err, &e)
	return e.Clock
}

// Danger: a condition lets a write pass that would have had to be refused, or refuses one that holds;
// or a refused write changes something.
func TestConditionsAreJudgedUponTheStateOfTheKey(t *testing.T) {
	w := newWall()
	states := map[string]func(s *Store){
		"never": func(*Store) {},
		"live":  func(s *Store) { put(t, s, "k", "old", Causality{}); put(t, s, "k", "v", Causality{}) },
		"empty": func(s *Store) { put(t, s, "k", "", Causality{}) },
		"deleted": func(s *Store) {
			put(t, s, "k", "v", Causality{})
			require.NoError(t, second(s.Delete(bg, DeleteRequest{Tenant: "t", Key: "k"})))
		},
		"expired": func(s *Store) {
			require.NoError(t, second(s.Write(bg, WriteRequest{Tenant: "t", Key: "k", Value: []byte("v"), TTL: 1})))
			w.move(time.Second)
		},
		"siblings": func(s *Store) { put(t, s, "k", "loser", Causality{}); put(t, s, "k", "v", seen(nil)) },
		"half": func(s *Store) {
			put(t, s, "k", "v", Causality{})
			require.NoError(t, second(s.Delete(bg, DeleteRequest{Tenant: "t", Key: "k", Causality: seen(nil)})))
		},
	}
	for _, c := range []struct {
		name      string
		condition func(now causal.Clock) *Condition
		holds     string // in these states
	}{
		{"absent", func(causal.Clock) *Condition { return absent }, "never deleted expired"},
		{"clock", clockIs, "never live empty deleted expired siblings half"},
		{"no clock", func(causal.Clock) *Condition { return clockIs(nil) }, "never"},
		{"newer clock", func(now causal.Clock) *Condition { return clockIs(now.With(causal.Dot{Node: "x", Counter: 1}, 0)) }, ""},
		{"older clock", func(now causal.Clock) *Condition {
			if len(now) > 0 && now[0].Counter > 1 {
				return clockIs(causal.Clock{{Node: now[0].Node, Counter: 1}})
			}
			return clockIs(causal.Clock{{Node: "x", Counter: 1}})
		}, ""},
		{"value", func(causal.Clock) *Condition { return valueIs("v") }, "live siblings half"},
		{"loser", func(causal.Clock) *Condition { return valueIs("loser") }, ""},
		{"no value", func(causal.Clock) *Condition { return valueIs("") }, "empty"},
	} {
		for state, prepare := range states {
			for _, kind := range []string{"write", "delete", "batch", "atomic", "atomic with another"} {
				t.Run(c.name+"/"+state+"/"+kind, func(t *testing.T) {
					f := newFake()
					s := open(t, f, Options{Now: w.Now})
					prepare(s)
					before, submits := read(t, s, "k"), f.submits
					condition := c.condition(before.Clock)
					var err error
					switch op := (Op{Kind: Put, Key: "k", Value: []byte("new"), Condition: condition}); kind {
					case "write":
						_, err = s.Write(bg, WriteRequest{Tenant: "t", Key: "k", Value: []byte("new"), Condition: condition})
					case "delete":
						_, err = s.Delete(bg, DeleteRequest{Tenant: "t", Key: "k", Condition: condition})
					case "atomic with another":
						another := Op{Kind: Put, Key: "other", Value: []byte("new")}
						_, err = s.BatchWrite(bg, BatchWriteRequest{Tenant: "t", Ops: []Op{another, op}, Atomic: true})
					default:
						var r []OpResult
						r, err = s.BatchWrite(bg, BatchWriteRequest{Tenant: "t", Ops: []Op{op}, Atomic: kind == "atomic"})
						if err == nil {
							err = r[0].Err
						}
					}
					if strings.Contains(" "+c.holds+" ", " "+state+" ") {
						require.NoError(t, err)
						require.NotEqual(t, before, read(t, s, "k"))
						return
					}
					clock := conditionFailed(t, err)
					require.Equal(t, causal.Equal, before.Clock.Compare(clock))
					require.Equal(t, submits, f.submits)
					require.Equal(t, before.Value, read(t, s, "k").Value)
				})
			}
		}
	}
}

// Danger: an operation of a batch is judged by the state before the batch; or a refused atomic batch
// tells of writes that it never made.
func TestConditionsSeeTheOperationsInFrontOfThem(t *testing.T) {
	coordinator := causal.Clock{{Node: "c", Counter: 7}}
	ops := []Op{
		{Kind: Put, Key: "k", Value: []byte("1"), Condition: absent},
		{Kind: Put, Key: "k", Value: []byte("2"), Condition: valueIs("1")},
		{Kind: Delete, Key: "k", Condition: valueIs("2")},
		{Kind: Put, Key: "k", Value: []byte("3"), Condition: absent},
		{Kind: Put, Key: "k", Value: []byte("4"), Causality: plain(coordinator...)},
	}
	for _, atomic := range []bool{false, true} {
		f := newFake()
		s := open(t, f, Options{})
		for i, r := range batch(t, s, atomic, ops...) {
			require.NoError(t, r.Err, i)
		}
		require.Equal(t, 1, f.submits)
		require.Equal(t, "3 4", values(read(t, s, "k")))

		// Refused upon what stands in front.
		last := Op{Kind: Put, Key: "n", Value: []byte("no"), Condition: absent}
		refused := []Op{{Kind: Put, Key: "m", Value: []byte("m")}, {Kind: Put, Key: "n", Value: []byte("1"), Causality: plain(coordinator...)}, last}
		r, err := s.BatchWrite(bg, BatchWriteRequest{Tenant: "t", Ops: refused, Atomic: atomic})
		if atomic {
			require.Empty(t, conditionFailed(t, err), "the key was never written")
			require.ErrorContains(t, err, "operation 2:")
			require.Equal(t, 1, f.submits)
			require.False(t, read(t, s, "m").Found)
			continue
		}
		require.NoError(t, err)
		require.NoError(t, r[0].Err)
		require.NoError(t, r[1].Err)
		require.Equal(t, causal.Equal, conditionFailed(t, r[2].Err).Compare(coordinator))
		require.Equal(t, "1", values(read(t, s, "n")))
	}
}

// values returns the live values of a key, sorted, with blanks between.
func values(r ReadResult) string {
	var out []string
	for _, s := range r.Siblings {
		if !s.Tombstone {
			out = append(out, string(s.Value))
		}
	}
	if len(r.Siblings) == 0 && r.Found {
		out = []string{string(r.Value)}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// Danger: a refusal is told on the word of a write that a crash then takes away.
func TestRefusalsWaitForWhatTheyRestOn(t *testing.T) {
	for _, kind := range []string{"write", "batch", "atomic", "siblings"} {
		for _, crash := range []bool{false, true} {
			t.Run(fmt.Sprint(kind, " crash ", crash), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFake()
					s := open(t, f, Options{Limits: causal.Limits{MaxSiblings: 1}})
					f.hold()
					defer f.release()
					first := make(chan error, 1)
					go func() {
						first <- second(s.Write(bg, WriteRequest{Tenant: "t", Key: "k", Value: []byte("v")}))
					}()
					synctest.Wait() // applied, not durable

					op, reason := Op{Kind: Put, Key: "k", Condition: absent}, ReasonConditionFailed
					if kind == "siblings" {
						op, reason = Op{Kind: Put, Key: "k", Causality: seen(nil)}, ReasonTooManySiblings
					}
					done := make(chan error, 1)
					go func() {
						if kind == "write" {
							done <- second(s.Write(bg, WriteRequest{Tenant: "t", Key: "k", Condition: absent}))
							return
						}
						r, err := s.BatchWrite(bg, BatchWriteRequest{Tenant: "t", Ops: []Op{op}, Atomic: kind != "batch"})
						if err == nil {
							err = r[0].Err
						}
						done <- err
					}()
					synctest.Wait()
					require.Empty(t, done, "refused before what it rests on was durable")
					if crash {
						f.crash()
						require.ErrorIs(t, <-first, errPowerCut)
						require.ErrorIs(t, <-done, errPowerCut)
						return
					}
					f.release()
					require.NoError(t, <-first)
					require.Equal(t, reason, ReasonOf(<-done))
				})
			})
		}
	}
}

// Danger: an operation is refused for what another one in front of it did, and that is never applied.
func TestARefusalGoesWithTheBatchThatItRestsOn(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{EngineBatchBytes: 1500})
	f.beforeSubmit = func(n int) {
		if n == 2 {
			f.mu.Lock()
			f.failed = errPowerCut
			f.mu.Unlock()
		}
	}
	var ops []Op
	for _, key := range []string{"a", "b"} {
		ops = append(ops, Op{Kind: Put, Key: key, Value: make([]byte, 1000)}, Op{Kind: Put, Key: key, Condition: absent})
	}
	r := batch(t, s, false, ops...)
	lost := 0
	for i, key := range []string{"a", "b"} {
		first, refused := r[2*i].Err, r[2*i+1].Err
		require.Equal(t, first == nil, read(t, s, key).Found)
		if first == nil {
			conditionFailed(t, refused)
			continue
		}
		lost++
		require.ErrorIs(t, refused, errPowerCut)
	}
	require.Equal(t, 1, lost)
}

// Danger: what came between the read and the write was not seen by the condition.
func TestAConditionIsJudgedAgainWhenItsReadIsOvertaken(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{})
	f.beforeSubmit = func(n int) {
		if n == 1 {
			ingested := causal.Record{Siblings: []causal.Sibling{{Dot: causal.Dot{Node: "m", Counter: 1}, Value: []byte("ingested")}}}
			b := f.NewBatch()
			b.Merge([]byte("t\x00k"), ingested.Encode(nil))
			require.NoError(t, second(f.Submit(b)))
		}
	}
	_, err := s.Write(bg, WriteRequest{Tenant: "t", Key: "k", Value: []byte("v"), Condition: absent})
	require.NotEmpty(t, conditionFailed(t, err))
	require.Equal(t, "ingested", values(read(t, s, "k")))
}

// Danger: two of those who create a key at the same time both succeed; or a counter by compare and
// set loses a step.
func TestOneOfManyConditionalWritersWins(t *testing.T) {
	f := newFake()
	f.beforeSubmit = func(int) { runtime.Gosched() }
	s := open(t, f, Options{})
	var created, steps atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, err := s.Write(bg, WriteRequest{Tenant: "t", Key: "k", Value: []byte("v"), Condition: absent})
			if err == nil {
				created.Add(1)
			} else {
				conditionFailed(t, err)
			}
			for range 20 {
				r := read(t, s, "n")
				_, err := s.Write(bg, WriteRequest{Tenant: "t", Key: "n", Value: append(r.Value, 'x'), Condition: clockIs(r.Clock)})
				if err == nil {
					steps.Add(1)
				} else {
					conditionFailed(t, err)
				}
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, created.Load())
	require.Positive(t, steps.Load())
	require.Len(t, read(t, s, "n").Value, int(steps.Load()))
}

// Danger: a condition that says nothing is taken for one that holds; or a limit is off by one.
func TestEveryLimitOfAConditionHasTwoSides(t *testing.T) {
	s := open(t, newFake(), Options{})
	clock := func(n int) causal.Clock {
		c := make(causal.Clock, n)
		for i := range c {
			c[i] = causal.Entry{Node: fmt.Sprintf("%05d", i), Counter: 1}
		}
		return c
	}
	digest := func(n int) *Condition { return &Condition{When: DigestEquals, Digest: make([]byte, n)} }
	for name, c := range map[string]struct {
		condition *Condition
		want      Reason
	}{
		"none":            {nil, ""},
		"absent":          {absent, ""},
		"says nothing":    {&Condition{}, ReasonCondition},
		"unknown":         {&Condition{When: DigestEquals + 1}, ReasonCondition},
		"no digest":       {digest(0), ReasonCondition},
		"digest - 1":      {digest(31), ReasonCondition},
		"digest":          {digest(32), ReasonConditionFailed},
		"digest + 1":      {digest(33), ReasonCondition},
		"no clock":        {clockIs(nil), ""},
		"clock":           {clockIs(clock(1000)), ReasonConditionFailed},
		"clock + 1":       {clockIs(clock(1001)), ReasonClock},
		"counter 0":       {clockIs(causal.Clock{{Node: "i"}}), ReasonClock},
		"id":              {clockIs(causal.Clock{{Node: strings.Repeat("i", 128), Counter: 1}}), ReasonConditionFailed},
		"id + 1":          {clockIs(causal.Clock{{Node: strings.Repeat("i", 129), Counter: 1}}), ReasonClock},
		"twice":           {clockIs(causal.Clock{{Node: "i", Counter: 1}, {Node: "i", Counter: 2}}), ReasonClock},
		"of the future":   {clockIs(causal.Clock{{Node: s.Actor(), Counter: 1 << 40}}), ReasonClock},
		"of another node": {clockIs(causal.Clock{{Node: "other", Counter: 1 << 40}}), ReasonConditionFailed},
	} {
		_, err := s.Write(bg, WriteRequest{Tenant: "t", Key: "w" + name, Condition: c.condition})
		require.Equal(t, c.want, ReasonOf(err), name)
		_, err = s.Delete(bg, DeleteRequest{Tenant: "t", Key: "d" + name, Condition: c.condition})
		require.Equal(t, c.want, ReasonOf(err), name)
		r := batch(t, s, false, Op{Kind: Put, Key: "b" + name, Condition: c.condition})
		require.Equal(t, c.want, ReasonOf(r[0].Err), name)
		require.Equal(t, c.want == "", read(t, s, "w"+name).Found, name)
	}
	sib := []causal.Sibling{{Dot: causal.Dot{Node: "m", Counter: 1}}}
	r := batch(t, s, false, Op{Kind: Repair, Key: "r", Siblings: sib, Condition: absent})
	require.Equal(t, ReasonCondition, ReasonOf(r[0].Err))

	// What a condition brings counts towards the size of a batch.
	ops := []Op{{Kind: Put, Key: "0000", Value: make([]byte, MaxValueBytes)}, {Kind: Put, Key: "0001", Value: make([]byte, MaxBatchBytes-MaxValueBytes-8-32)}}
	ops[1].Condition = digest(32)
	require.Equal(t, ReasonConditionFailed, ReasonOf(batch(t, s, false, ops...)[1].Err))
	ops[1].Value = append(ops[1].Value, 0)
	_, err := s.BatchWrite(bg, BatchWriteRequest{Tenant: "t", Ops: ops})
	require.Equal(t, ReasonBatch, ReasonOf(err))
}
