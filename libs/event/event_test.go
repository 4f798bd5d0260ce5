package event

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	eventv1 "github.com/pairdb/pairdb/proto/pairdb/event/v1"
)

// -update is the flag of servicetest, which this package's page test uses.
func updating() bool { return flag.Lookup("update").Value.String() == "true" }

// example is the event of a kind as the golden files have it.
func example(t *testing.T, k Kind) Event {
	t.Helper()
	data, err := EncodePayload(k.Name, k.Example)
	require.NoError(t, err)
	return Event{
		ID: "node-0.5e1a77c09b3d2f46.7", Kind: k.Name, Cluster: "pairdb", Node: "node-0",
		Time: time.Date(2026, time.November, 30, 8, 15, 0, 123_000_000, time.UTC), Sequence: 7, Data: data,
	}
}

// Danger: a changed envelope or payload breaks every consumer that is out there, silently.
func TestEveryKindIsOnTheWireAsItWas(t *testing.T) {
	for _, k := range Kinds() {
		t.Run(k.Name, func(t *testing.T) {
			e := example(t, k)
			b, err := e.Encode()
			require.NoError(t, err)
			var pretty bytes.Buffer
			require.NoError(t, json.Indent(&pretty, b, "", "  "))
			pretty.WriteByte('\n')
			name := filepath.Join("testdata", k.Name+".json")
			if updating() {
				require.NoError(t, os.MkdirAll("testdata", 0o770))
				require.NoError(t, os.WriteFile(name, pretty.Bytes(), 0o660))
			}
			want, err := os.ReadFile(name)
			require.NoError(t, err)
			require.Equal(t, string(want), pretty.String())

			back, err := Decode(want)
			require.NoError(t, err)
			payload, err := back.Payload()
			require.NoError(t, err)
			require.True(t, proto.Equal(k.Example, payload))
			require.JSONEq(t, string(e.Data), string(back.Data))
			back.Data = e.Data
			require.Equal(t, e, back)
		})
	}
}

// Danger: a golden file of a kind that is gone says that it is still sent.
func TestGoldenFilesAreThoseOfTheCatalogue(t *testing.T) {
	names, err := filepath.Glob(filepath.Join("testdata", "*.json"))
	require.NoError(t, err)
	require.Len(t, names, len(Kinds()))
	for _, name := range names {
		_, ok := Lookup(strings.TrimSuffix(filepath.Base(name), ".json"))
		require.True(t, ok, name)
	}
}

// Danger: an id with a line break ends the header that drops repeats, a huge payload fills the outbox.
func TestWhatCanNotBeAnEventIsRefused(t *testing.T) {
	good := example(t, Kinds()[0])
	for name, change := range map[string]func(*Event){
		"no id":               func(e *Event) { e.ID = "" },
		"long id":             func(e *Event) { e.ID = strings.Repeat("x", MaxIDBytes+1) },
		"id with a break":     func(e *Event) { e.ID = "a\nb" },
		"id with a space":     func(e *Event) { e.ID = "a b" },
		"id not ASCII":        func(e *Event) { e.ID = "ä" },
		"no kind":             func(e *Event) { e.Kind = "" },
		"kind with wildcard":  func(e *Event) { e.Kind = "node.>" },
		"kind with empty":     func(e *Event) { e.Kind = "node..started" },
		"no node":             func(e *Event) { e.Node = "" },
		"long node":           func(e *Event) { e.Node = strings.Repeat("n", maxNameBytes+1) },
		"no cluster":          func(e *Event) { e.Cluster = "" },
		"no time":             func(e *Event) { e.Time = time.Time{} },
		"time far ahead":      func(e *Event) { e.Time = time.Date(10000, 1, 2, 0, 0, 0, 0, time.UTC) },
		"no data":             func(e *Event) { e.Data = nil },
		"data no object":      func(e *Event) { e.Data = json.RawMessage(`[]`) },
		"data no JSON":        func(e *Event) { e.Data = json.RawMessage(`{"a":`) },
		"data with something": func(e *Event) { e.Data = json.RawMessage(`{}{}`) },
		"large data":          func(e *Event) { e.Data = json.RawMessage(`{"a":"` + strings.Repeat("x", MaxPayloadBytes) + `"}`) },
	} {
		t.Run(name, func(t *testing.T) {
			e := good
			change(&e)
			_, err := e.Encode()
			require.ErrorIs(t, err, ErrInvalid)
			require.Less(t, len(err.Error()), 300)
		})
	}
}

// Danger: what is no event of ours is taken for one, or ends the reader.
func TestForeignMessagesAreRefusedWithAReason(t *testing.T) {
	good, err := example(t, Kinds()[0]).Encode()
	require.NoError(t, err)
	replace := func(old, replacement string) []byte {
		out := bytes.Replace(good, []byte(old), []byte(replacement), 1)
		require.NotEqual(t, good, out, old)
		return out
	}
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"empty":            {nil, "no CloudEvent"},
		"cut off":          {good[:len(good)-5], "no CloudEvent"},
		"too long":         {bytes.Repeat([]byte(" "), MaxEncodedBytes+1), "at most"},
		"other version":    {replace(`"1.0"`, `"7.0"`), "no CloudEvent"},
		"other type":       {replace(`"pairdb.node.started"`, `"com.example.started"`), "does not begin with"},
		"other source":     {replace(`"/pairdb/pairdb/node-0"`, `"/elsewhere"`), "the source"},
		"sequence no text": {replace(`"7"`, `7`), "pairdbsequence"},
		"sequence no number": {
			replace(`"7"`, `"seven"`), "pairdbsequence"},
		"other media": {replace(`application/json`, `application/xml`), "data"},
	} {
		_, err := Decode(c.b)
		require.ErrorIs(t, err, ErrInvalid, name)
		require.ErrorContains(t, err, c.want, name)
	}
}

// Danger: a reader that is older than a node stops at the first kind or field that it does not know.
func TestNewerKindsAndFieldsAreTaken(t *testing.T) {
	e := example(t, Kinds()[0])
	e.Kind, e.Data = "moon.landed", json.RawMessage(`{"a":1}`)
	b, err := e.Encode()
	require.NoError(t, err)
	back, err := Decode(b)
	require.NoError(t, err)
	_, err = back.Payload()
	require.ErrorIs(t, err, ErrUnknownKind)

	m, err := DecodePayload(NodeReady, []byte(`{"took_ms":"5","colour":"blue"}`))
	require.NoError(t, err)
	require.EqualValues(t, 5, m.(*eventv1.NodeReady).GetTookMs())
}

// Danger: the payload of one kind is published under the name of another.
func TestPayloadsAreOfTheirKind(t *testing.T) {
	_, err := EncodePayload(NodeReady, &eventv1.NodeStopping{})
	require.ErrorIs(t, err, ErrInvalid)
	_, err = EncodePayload("moon.landed", &eventv1.NodeStopping{})
	require.ErrorIs(t, err, ErrUnknownKind)
	_, err = EncodePayload(NodeStopping, &eventv1.NodeStopping{Reason: strings.Repeat("x", MaxPayloadBytes)})
	require.ErrorIs(t, err, ErrInvalid)
	for _, data := range []string{``, `[]`, `{"took_ms":{}}`, `{"took_ms":"x"}`, `{`} {
		_, err = DecodePayload(NodeReady, []byte(data))
		require.ErrorIs(t, err, ErrInvalid, data)
	}
}

// Danger: two nodes share a subject, or a name with a dot changes which node is meant.
func TestNamesSurviveSubjectsAndSources(t *testing.T) {
	name := rapid.OneOf(
		rapid.StringMatching(`[A-Za-z0-9._-]{1,100}`),
		rapid.Map(rapid.SliceOfN(rapid.Byte(), 1, 100), func(b []byte) string { return string(b) }),
	)
	rapid.Check(t, func(t *rapid.T) {
		cluster, node := name.Draw(t, "cluster"), name.Draw(t, "node")
		kind := rapid.SampledFrom(Kinds()).Draw(t, "kind").Name
		c, n, k, err := ParseSubject(Subject(cluster, node, kind))
		require.NoError(t, err)
		require.Equal(t, []string{cluster, node, kind}, []string{c, n, k})
		require.NotContains(t, Token(node), ".")
		c, n, err = parseSource(source(cluster, node))
		require.NoError(t, err)
		require.Equal(t, []string{cluster, node}, []string{c, n})
	})
	require.Equal(t, "pairdb.eu%2Ewest.event.node-0%2Epods.disk.full", Subject("eu.west", "node-0.pods", DiskFull))
	require.Equal(t, "pairdb.*.event.*.>", Filter("", "", ""))
	require.Equal(t, "pairdb.%2A.event.n.>", Filter("*", "n", ""))
	require.Equal(t, "pairdb.c.cmd.n%2E1.flush", CommandSubject("c", "n.1", "flush"))
}

func TestSubjectsOfOthersAreRefused(t *testing.T) {
	// Danger: a second way to write a subject slips past a permission that names the first.
	for _, s := range []string{
		"", "pairdb", "pairdb.c.event.n", "pairdb.c.cmd.n.flush", "other.c.event.n.disk.full", "pairdb..event.n.disk.full",
		"pairdb.c.event.n.", "pairdb.c.event.n%2e1.disk.full", "pairdb.c.event.n%41.disk.full", "pairdb.c.event.n%.disk.full",
		"pairdb.c.event.n%2.disk.full", "pairdb.c.event.n%zz.disk.full", "pairdb.c.event.n.disk.*", "pairdb.c.event.ä.disk.full",
	} {
		_, _, _, err := ParseSubject(s)
		require.ErrorIs(t, err, ErrInvalid, s)
	}
}

// Danger: a stream that forgets ids before the outbox forgets events has one of them twice.
func TestStreamRemembersIDsLongerThanEventsWait(t *testing.T) {
	s := Stream()
	require.Greater(t, s.Duplicates, MaxWait)
	require.GreaterOrEqual(t, s.MaxAge, s.Duplicates)
	require.Greater(t, int(s.MaxMsgSize), MaxEncodedBytes+2*MaxIDBytes)
	require.Equal(t, []string{"pairdb.*.event.*.>"}, s.Subjects)
}

func FuzzDecode(f *testing.F) {
	for _, k := range Kinds() {
		b, err := os.ReadFile(filepath.Join("testdata", k.Name+".json"))
		if err == nil {
			f.Add(b)
		}
	}
	f.Add([]byte(`{"specversion":"1.0","id":"1","source":"/pairdb/a%2Fb/%00","type":"pairdb.x","time":"2026-01-01T00:00:00Z","data":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Decode(b)
		if err != nil {
			return
		}
		// What was taken can be passed on, and means the same.
		again, err := e.Encode()
		require.NoError(t, err)
		back, err := Decode(again)
		require.NoError(t, err)
		require.JSONEq(t, string(e.Data), string(back.Data))
		e.Data, back.Data = nil, nil
		require.Equal(t, e, back)
		_, _, _, err = ParseSubject(e.Subject())
		require.NoError(t, err)
	})
}
