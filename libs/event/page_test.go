package event

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/libs/service/servicetest"
)

// Danger: a consumer is written for what a page says, and the page says what was sent last year.
func TestEventsPageIsTheCatalogue(t *testing.T) {
	var b strings.Builder
	b.WriteString("| kind | when | payload |\n|---|---|---|\n")
	for _, k := range Kinds() {
		fmt.Fprintf(&b, "| `%s` | %s | `%s` |\n", k.Name, k.When, k.Example.ProtoReflect().Descriptor().Name())
	}
	b.WriteString("\nAn example of each, its `data` alone:\n\n```json\n")
	for _, k := range Kinds() {
		data, err := EncodePayload(k.Name, k.Example)
		require.NoError(t, err)
		fmt.Fprintf(&b, "%s\n  %s\n", k.Name, data)
	}
	b.WriteString("```\n")
	servicetest.Section(t, "docs/EVENTS.md", "catalogue", b.String())
}

// Danger: a row that nobody can use: no time at which it is sent, a name that is no subject, twice.
func TestCatalogueIsWhole(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range Kinds() {
		require.False(t, seen[k.Name], k.Name)
		seen[k.Name] = true
		require.True(t, validKind(k.Name), k.Name)
		require.Len(t, strings.Split(k.Name, "."), 2, k.Name)
		require.True(t, unicode.IsUpper(rune(k.When[0])) && strings.HasSuffix(k.When, "."), "%s: a sentence says when", k.Name)
		require.NotNil(t, k.Example, k.Name)
	}
	_, ok := Lookup("node.unknown")
	require.False(t, ok)
}

// Danger: the code that a reader copies does not compile.
func TestSubscriberOfThePageIsTheExample(t *testing.T) {
	page, err := os.ReadFile("../../docs/EVENTS.md")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(page), "```go\n")
	require.True(t, ok)
	snippet, _, ok := strings.Cut(rest, "```")
	require.True(t, ok)
	code, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	require.Contains(t, string(code), strings.TrimSpace(snippet))
}
