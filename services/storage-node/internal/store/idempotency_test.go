package store

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/causal"
	"github.com/pairdb/pairdb/libs/vfs"
	"github.com/pairdb/pairdb/libs/vfs/crashfs"
	"github.com/pairdb/pairdb/services/storage-node/internal/engine"
)

// repeated requires that got is the answer first, given again.
func repeated(t require.TestingT, first, got WriteResult) {
	require.True(t, got.Replayed)
	require.False(t, first.Replayed)
	require.Equal(t, first.Outcome, got.Outcome)
	require.Equal(t, first.Siblings, got.Siblings)
	require.Equal(t, causal.Equal, first.Clock.Compare(got.Clock))
}

// Danger: a repeat writes once more, over what came since; or gets another answer than the first time.
func TestARepeatGetsTheFirstAnswerAndChangesNothing(t *testing.T) {
	coordinator := causal.Clock{{Node: "c", Counter: 2}}
	older := causal.Clock{{Node: "c", Counter: 1}}
	for name, c := range map[string]struct {
		r    WriteRequest
		want causal.Outcome
	}{
		"applied":   {WriteRequest{Value: []byte("v")}, causal.Applied},
		"condition": {WriteRequest{Value: []byte("v"), Condition: valueIs("there")}, causal.Applied},
		"expiring":  {WriteRequest{Value: []byte("v"), TTL: 1}, causal.Applied},
		"sibling":   {WriteRequest{Value: []byte("v"), Causality: seen(nil)}, causal.SiblingKept},
		"stale":     {WriteRequest{Value: []byte("v"), Causality: plain(older...)}, causal.Stale},
		"duplicate": {WriteRequest{Value: []byte("there"), Causality: plain(coordinator...)}, causal.Duplicate},
	} {
		t.Run(name, func(t *testing.T) {
			f, w := newFake(), newWall()
			s := open(t, f, Options{Now: w.Now})
			put(t, s, "k", "there", plain(coordinator...))
			c.r.Tenant, c.r.Key, c.r.IdempotencyKey = "t", "k", "request 1"
			first, err := s.Write(bg, c.r)
			require.NoError(t, err)
			require.Equal(t, c.want, first.Outcome)
			require.Equal(t, 2, f.submits, "one batch holds both")
			put(t, s, "k", "since", Causality{})
			w.move(time.Hour)
			for range 2 {
				got, err := s.Write(bg, c.r)
				require.NoError(t, err)
				repeated(t, first, got)
			}
			require.Equal(t, 3, f.submits)
			require.Equal(t, "since", values(read(t, s, "k")))
		})
	}
	s := open(t, newFake(), Options{})
	del := DeleteRequest{Tenant: "t", Key: "k", IdempotencyKey: "1"}
	put(t, s, "k", "v", Causality{})
	first, err := s.Delete(bg, del)
	require.NoError(t, err)
	put(t, s, "k", "since", Causality{})
	got, err := s.Delete(bg, del)
	require.NoError(t, err)
	repeated(t, first, got)
	require.True(t, read(t, s, "k").Found)
}

// Danger: another request is swallowed because it has the idempotency key of an earlier one.
func TestAnotherRequestUnderTheSameIdempotencyKeyIsRefused(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{})
	base := WriteRequest{
		Tenant: "t", Key: "k", Value: []byte("v"), TTL: 5, Condition: absent, IdempotencyKey: "1",
		Causality: seen(causal.Clock{{Node: "a", Counter: 1}}),
	}
	first, err := s.Write(bg, base)
	require.NoError(t, err)
	submits := f.submits
	for name, change := range map[string]func(*WriteRequest){
		"key":              func(r *WriteRequest) { r.Key = "kv" },
		"value":            func(r *WriteRequest) { r.Value = []byte("w") },
		"no value":         func(r *WriteRequest) { r.Value = nil },
		"key and value":    func(r *WriteRequest) { r.Key, r.Value = "kv", nil },
		"ttl":              func(r *WriteRequest) { r.TTL = 6 },
		"no ttl":           func(r *WriteRequest) { r.TTL = 0 },
		"counter":          func(r *WriteRequest) { r.Context = causal.Clock{{Node: "a", Counter: 2}} },
		"node":             func(r *WriteRequest) { r.Context = causal.Clock{{Node: "b", Counter: 1}} },
		"empty context":    func(r *WriteRequest) { r.Context = nil },
		"no context":       func(r *WriteRequest) { r.Causality = Causality{} },
		"clock":            func(r *WriteRequest) { r.Causality = plain(base.Context...) },
		"no condition":     func(r *WriteRequest) { r.Condition = nil },
		"never seen":       func(r *WriteRequest) { r.Condition = clockIs(nil) },
		"clock condition":  func(r *WriteRequest) { r.Condition = clockIs(base.Context) },
		"digest condition": func(r *WriteRequest) { r.Condition = valueIs("v") },
		"other digest":     func(r *WriteRequest) { r.Condition = valueIs("w") },
	} {
		r := base
		change(&r)
		_, err := s.Write(bg, r)
		require.Equal(t, ReasonKeyReused, ReasonOf(err), name)
	}
	_, err = s.Delete(bg, DeleteRequest{Tenant: "t", Key: "k", Causality: base.Causality, Condition: absent, IdempotencyKey: "1"})
	require.Equal(t, ReasonKeyReused, ReasonOf(err))
	require.Equal(t, submits, f.submits)
	require.Equal(t, "v", values(read(t, s, "k")))

	again, err := s.Write(bg, base)
	require.NoError(t, err)
	repeated(t, first, again)
	base.Tenant = "u" // its keys are its own
	other, err := s.Write(bg, base)
	require.NoError(t, err)
	require.False(t, other.Replayed)
}

// Danger: what differs in one request and not in another has one digest.
func TestTheDigestOfARequestTellsItsPartsApart(t *testing.T) {
	seenDigests := map[[32]byte]string{}
	for name, o := range map[string]Op{
		"delete": {Kind: Delete}, "put": {Kind: Put}, "key": {Kind: Put, Key: "a"}, "value": {Kind: Put, Value: []byte("a")},
		"two entries":      {Kind: Put, Causality: seen(causal.Clock{{Node: "a", Counter: 1}, {Node: "b", Counter: 1}})},
		"one entry":        {Kind: Put, Causality: seen(causal.Clock{{Node: "a", Counter: 1}})},
		"empty context":    {Kind: Put, Causality: seen(nil)},
		"clock condition":  {Kind: Put, Condition: clockIs(causal.Clock{{Node: "a", Counter: 1}})},
		"digest condition": {Kind: Put, Condition: &Condition{When: DigestEquals, Digest: []byte{1}}},
		"ttl":              {Kind: Put, TTL: 1},
	} {
		d := digestOf(&o)
		require.Empty(t, seenDigests[d], name)
		seenDigests[d] = name
	}
	raised := Op{Kind: Put, Causality: seen(causal.Clock{{Node: "a", Counter: 1, Raised: 9}})}
	require.Equal(t, "one entry", seenDigests[digestOf(&raised)], "when an entry was raised does not travel")
	repeat := Op{Kind: Put, Causality: plain(causal.Entry{Node: "a", Counter: 2})}
	require.Equal(t, "put", seenDigests[digestOf(&repeat)], "a coordinator raises its clock for each attempt")
}

// Danger: a refusal is remembered, and the repeat that would succeed is refused for a day.
func TestRefusedWritesAreNotRemembered(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{Limits: causal.Limits{MaxSiblings: 1}})
	put(t, s, "k", "v", Causality{})
	write := func(r WriteRequest) (WriteResult, error) {
		r.Tenant, r.Key = "t", "k"
		return s.Write(bg, r)
	}
	conditional := WriteRequest{Condition: absent, IdempotencyKey: "condition"}
	_, err := write(conditional)
	conditionFailed(t, err)
	concurrent := WriteRequest{Causality: seen(nil), IdempotencyKey: "siblings"}
	_, err = write(concurrent)
	require.Equal(t, ReasonTooManySiblings, ReasonOf(err))
	stalled := WriteRequest{Condition: valueIs("v"), IdempotencyKey: "engine"}
	f.failed = errPowerCut
	_, err = write(stalled)
	require.ErrorIs(t, err, errPowerCut)
	f.failed = nil
	_, err = s.Write(bg, WriteRequest{Tenant: "t", Key: "k", TTL: -1, IdempotencyKey: "invalid"})
	require.Equal(t, ReasonTTL, ReasonOf(err))
	require.Len(t, f.keys, 1)

	got, err := write(stalled)
	require.NoError(t, err)
	require.False(t, got.Replayed)
	require.NoError(t, second(s.Delete(bg, DeleteRequest{Tenant: "t", Key: "k"})))
	got, err = write(conditional)
	require.NoError(t, err)
	require.False(t, got.Replayed)
}

// Danger: a repeat is taken for a new request within the day, or a new one for a repeat after it.
func TestARequestIsRememberedForADayToTheSecond(t *testing.T) {
	w := newWall()
	w.move(300 * time.Millisecond)
	f := newFake()
	s := open(t, f, Options{Now: w.Now})
	r := WriteRequest{Tenant: "t", Key: "k", Value: []byte("v"), IdempotencyKey: "1"}
	first, err := s.Write(bg, r)
	require.NoError(t, err)
	w.move(24*time.Hour + 699*time.Millisecond)
	got, err := s.Write(bg, r)
	require.NoError(t, err)
	repeated(t, first, got)
	w.move(time.Millisecond) // the next whole second
	other := r
	other.Value = []byte("w")
	got, err = s.Write(bg, other)
	require.NoError(t, err)
	require.False(t, got.Replayed)
	require.Equal(t, "w", values(read(t, s, "k")))
	_, err = s.Write(bg, r)
	require.Equal(t, ReasonKeyReused, ReasonOf(err), "now it is that of the other one")
}

// Danger: repeats that run together write twice; or writers that hold two stripes wait for each other
// for ever.
func TestConcurrentRepeatsWriteOnce(t *testing.T) {
	f := newFake()
	f.beforeSubmit = func(int) { runtime.Gosched() }
	s := open(t, f, Options{})
	const requests, repeats = 100, 4
	var written [requests]atomic.Int64
	var wg sync.WaitGroup
	for g := range repeats {
		wg.Go(func() {
			for i := range requests {
				i = (i*(2*g+1) + g) % requests // each in another order
				r, err := s.Write(bg, WriteRequest{Tenant: "t", Key: fmt.Sprint(i % 7), Value: fmt.Append(nil, i), Causality: seen(nil), IdempotencyKey: fmt.Sprint(i)})
				if err != nil {
					t.Errorf("write: %v", err)
				}
				if !r.Replayed {
					written[i].Add(1)
				}
			}
		})
	}
	wg.Wait()
	total := 0
	for i := range written {
		require.EqualValues(t, 1, written[i].Load(), i)
	}
	for i := range 7 {
		total += len(strings.Fields(values(read(t, s, fmt.Sprint(i)))))
	}
	require.Equal(t, requests, total)
}

// Danger: a repeat is answered on the word of a first write that a crash then takes away.
func TestARepeatWaitsForTheFirst(t *testing.T) {
	for _, reused := range []bool{false, true} {
		for _, crash := range []bool{false, true} {
			t.Run(fmt.Sprint("reused ", reused, " crash ", crash), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFake()
					s := open(t, f, Options{})
					f.hold()
					defer f.release()
					r := WriteRequest{Tenant: "t", Key: "k", Value: []byte("v"), IdempotencyKey: "1"}
					type answer struct {
						r   WriteResult
						err error
					}
					first, again := make(chan answer, 1), make(chan answer, 1)
					write := func(to chan answer, r WriteRequest) {
						res, err := s.Write(bg, r)
						to <- answer{res, err}
					}
					go write(first, r)
					synctest.Wait()
					repeat := r
					if reused {
						repeat.Value = []byte("other")
					}
					go write(again, repeat)
					synctest.Wait()
					require.Empty(t, again, "answered before the first is durable")
					if crash {
						after := open(t, f.crash(), Options{})
						require.ErrorIs(t, (<-first).err, errPowerCut)
						require.ErrorIs(t, (<-again).err, errPowerCut)
						got, err := after.Write(bg, repeat)
						require.NoError(t, err)
						require.False(t, got.Replayed)
						return
					}
					f.release()
					one, two := <-first, <-again
					require.NoError(t, one.err)
					if reused {
						require.Equal(t, ReasonKeyReused, ReasonOf(two.err))
						return
					}
					require.NoError(t, two.err)
					repeated(t, one.r, two.r)
				})
			})
		}
	}
}

// Danger: the key or what it holds is taken beyond its limits; the system's own tenant is reached from
// outside.
func TestEveryLimitOfAnIdempotencyKeyHasTwoSides(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{})
	for key, ok := range map[string]bool{
		"k": true, strings.Repeat("k", 128): true, "ä 日本:/_": true, "\ufffd": true,
		strings.Repeat("k", 129): false, "a\x00": false, "a\tb": false, "a\nb": false, "\x7f": false, "\u0085": false, "\xff": false,
	} {
		_, err := s.Write(bg, WriteRequest{Tenant: "t", Key: "k", IdempotencyKey: key})
		_, derr := s.Delete(bg, DeleteRequest{Tenant: "t", Key: "k", IdempotencyKey: key + "d"})
		if ok {
			require.NoError(t, err, "%q", key)
			continue
		}
		require.Equal(t, ReasonIdempotencyKey, ReasonOf(err), "%q", key)
		require.Equal(t, ReasonIdempotencyKey, ReasonOf(derr), "%q", key)
	}
	require.Equal(t, ReasonIdempotencyKey, ReasonOf(checkIdempotencyKey("")))
	_, err := s.Read(bg, idempotencyTenant, "k", nil)
	require.Equal(t, ReasonTenant, ReasonOf(err))
	_, err = s.Write(bg, WriteRequest{Tenant: idempotencyTenant, Key: "k"})
	require.Equal(t, ReasonTenant, ReasonOf(err))
	err = s.Stream(bg, StreamRequest{Tenant: idempotencyTenant}, nil)
	require.Equal(t, ReasonTenant, ReasonOf(err))
}

// Danger: dropping a tenant leaves answers of its former life, or takes those of another one.
func TestWhatIsRememberedOfATenantLiesTogether(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{})
	tenants := []string{"a", "a ", "ab", "b", strings.Repeat("t", 256)}
	for _, tenant := range tenants {
		for _, key := range []string{"!", "a", "\U0010ffff", strings.Repeat("\uffff", 42)} {
			_, err := s.Write(bg, WriteRequest{Tenant: tenant, Key: "k", IdempotencyKey: key})
			require.NoError(t, err)
		}
	}
	for _, tenant := range tenants {
		lower, upper := idempotencyBounds(tenant)
		found := 0
		for key := range f.keys {
			if key >= string(lower) && key < string(upper) {
				require.True(t, strings.HasPrefix(key, idempotencyTenant+"\x00"+tenant+"\x00"))
				found++
			}
		}
		require.Equal(t, 4, found)
	}
}

// Danger: an answer with a clock that is larger than that of any one value can't be read back; or
// makes the batch larger than the engine takes.
func TestLargeAnswersAreRememberedOrRefused(t *testing.T) {
	clock := func(from, n int) causal.Clock {
		c := make(causal.Clock, n)
		for i := range c {
			c[i] = causal.Entry{Node: fmt.Sprintf("%05d", from+i), Counter: 1}
		}
		return c
	}
	s := open(t, newFake(), Options{})
	put(t, s, "k", "1", plain(clock(0, 1000)...))
	r := WriteRequest{Tenant: "t", Key: "k", Value: []byte("2"), Causality: plain(clock(1000, 1000)...), IdempotencyKey: "1"}
	first, err := s.Write(bg, r)
	require.NoError(t, err)
	require.Len(t, first.Clock, 2000)
	got, err := s.Write(bg, r)
	require.NoError(t, err)
	repeated(t, first, got)

	f := newFake()
	s = open(t, f, Options{EngineBatchBytes: 30_000})
	put(t, s, "k", "1", plain(clock(0, 1000)...))
	_, err = s.Write(bg, r)
	require.Equal(t, ReasonTooManySiblings, ReasonOf(err))
	require.Equal(t, "1", values(read(t, s, "k")))
	require.Len(t, f.keys, 1)
}

// Danger: damage of what is remembered passes for a request that was never made, and it is done twice.
func TestDamageOfWhatIsRememberedIsAnError(t *testing.T) {
	f := newFake()
	s := open(t, f, Options{})
	r := WriteRequest{Tenant: "t", Key: "k", IdempotencyKey: "1"}
	_, err := s.Write(bg, r)
	require.NoError(t, err)
	name := idempotencyTenant + "\x00t\x001"
	good := f.keys[name][0].value
	rec, err := causal.Decode(good)
	require.NoError(t, err)
	rec.Siblings[0].Value = rec.Siblings[0].Value[:10]
	for _, bad := range [][]byte{good[:len(good)-1], rec.Encode(nil)} {
		f.keys[name][0].value = bad
		_, err = s.Write(bg, r)
		require.Equal(t, ReasonCorruptedData, ReasonOf(err))
	}
	require.Equal(t, 1, f.submits)
}

// FuzzAnswer: what is read back from a table is read or refused, and never taken for something else.
func FuzzAnswer(f *testing.F) {
	f.Add(appendAnswer(nil, [32]byte{1}, &WriteResult{Outcome: causal.Applied, Siblings: 1, Clock: causal.Clock{{Node: "n", Counter: 7}}}))
	f.Add(appendAnswer(nil, [32]byte{}, &WriteResult{}))
	f.Add([]byte{answerVersion})
	f.Fuzz(func(t *testing.T, b []byte) {
		digest, r, err := parseAnswer(b)
		if err != nil {
			require.Equal(t, WriteResult{}, r)
			return
		}
		again, same, err := parseAnswer(appendAnswer(nil, digest, &r))
		require.NoError(t, err)
		require.Equal(t, digest, again)
		require.Equal(t, r, same)
	})
}

// Danger: after a restart of the node the repeat is done again.
func TestIdempotencyKeysSurviveARestart(t *testing.T) {
	for _, flush := range []bool{false, true} {
		fs := vfs.NewMem()
		e := openReal(t, fs, 1<<20)
		s := open(t, realEngine{e}, Options{})
		put(t, s, "k", "0", Causality{})
		r := WriteRequest{Tenant: "t", Key: "k", Value: []byte("1"), Causality: seen(nil), IdempotencyKey: "1"}
		first, err := s.Write(bg, r)
		require.NoError(t, err)
		require.Equal(t, causal.SiblingKept, first.Outcome)
		put(t, s, "k", "2", Causality{})
		if flush {
			require.NoError(t, e.Flush(bg))
		}
		require.NoError(t, e.Close())
		e = openReal(t, fs, 1<<20)
		s = open(t, realEngine{e}, Options{})
		got, err := s.Write(bg, r)
		require.NoError(t, err)
		repeated(t, first, got)
		require.Equal(t, "2", values(read(t, s, "k")))
		r.Value = []byte("3")
		_, err = s.Write(bg, r)
		require.Equal(t, ReasonKeyReused, ReasonOf(err))
		require.NoError(t, e.Close())
	}
}

// Danger: a power cut leaves the write without its idempotency key, and the repeat does it again; or the
// key without the write, and the repeat is answered for nothing.
func TestAPowerCutKeepsAWriteAndItsIdempotencyKeyOrNeither(t *testing.T) {
	fs := crashfs.New()
	options := func(fs vfs.FS) engine.Options {
		return engine.Options{
			FS: fs, Clock: realClock{}, Rand: rand.New(rand.NewPCG(1, 2)), Sync: engine.SyncNever,
			MemtableBytes: 1 << 20, LogSegmentBytes: 1 << 20, ReserveBytes: -1, KeepMemtablesAtClose: true,
		}
	}
	e, err := engine.Open("data", options(fs))
	require.NoError(t, err)
	defer func() { require.NoError(t, e.Close()) }()
	s := open(t, realEngine{e}, Options{AckBeforeDurable: true})
	const writes = 20
	request := func(i int) WriteRequest {
		return WriteRequest{Tenant: "t", Key: fmt.Sprint("k", i), Value: make([]byte, 300), IdempotencyKey: fmt.Sprint("r", i)}
	}
	for i := range writes {
		_, err := s.Write(bg, request(i))
		require.NoError(t, err)
	}
	kept, lost := 0, 0
	for _, mode := range crashfs.Modes() {
		image, err := engine.Open("data", options(fs.CrashImage(mode, rand.New(rand.NewPCG(3, 4)))))
		require.NoError(t, err)
		after := open(t, realEngine{image}, Options{AckBeforeDurable: true})
		for i := range writes {
			there := read(t, after, fmt.Sprint("k", i)).Found
			got, err := after.Write(bg, request(i))
			require.NoError(t, err)
			require.Equal(t, there, got.Replayed, "%v: write %d", mode, i)
			if there {
				kept++
			} else {
				lost++
			}
		}
		require.NoError(t, image.Close())
	}
	require.Positive(t, kept)
	require.Positive(t, lost)
}

// Danger: what is remembered stays for ever, or for the grace of tombstones, which is ten times its day;
// or is collected while it still counts.
func TestWhatIsRememberedIsCollectedAfterItsDay(t *testing.T) {
	w := newWall()
	var cut uint64
	e := collecting(t, vfs.NewMem(), &cut)
	defer func() { require.NoError(t, e.Close()) }()
	const grace = 240 * time.Hour
	s := open(t, realEngine{e}, Options{Now: w.Now, GCGrace: grace})
	r := WriteRequest{Tenant: "t", Key: "k", IdempotencyKey: "1"}
	first, err := s.Write(bg, r)
	require.NoError(t, err)
	lower, _ := idempotencyBounds("t")
	w.move(24*time.Hour - time.Second)
	again, err := s.Write(bg, r)
	require.NoError(t, err)
	repeated(t, first, again)
	w.move(time.Second)
	for _, after := range []time.Duration{0, time.Millisecond} {
		cut = causal.Timestamp(w.Now().Add(after - grace))
		require.NoError(t, e.Compact(bg, nil, nil, nil))
		_, found, err := e.Get(append(lower, '1'), nil)
		require.NoError(t, err)
		require.Equal(t, after == 0, found)
	}
	require.True(t, read(t, s, "k").Found)
}
