package arch

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write generated pages instead of comparing them")

const optionsHead = `# Options of the engine

Generated from the comments of [options.go](../services/storage-node/internal/engine/options.go) by
` + "`cd integration && go test ./arch -run OptionsPage -update`" + `. What an operator may set is in
[CONFIGURATION.md](CONFIGURATION.md); the rest are constants of the storage-node.

| option | unit | default, and why |
|---|---|---|
`

func TestOptionsPageIsThatOfTheCode(t *testing.T) {
	// A table of defaults that is kept by hand is wrong after the next change.
	page := filepath.Join("..", "..", "docs", "ENGINE_OPTIONS.md")
	want := optionsHead + optionRows(t)
	if *update {
		require.NoError(t, os.WriteFile(page, []byte(want), 0o644))
	}
	got, err := os.ReadFile(page)
	require.NoError(t, err)
	require.Equal(t, want, string(got), "run the command in the page's head")
}

func optionRows(t *testing.T) string {
	t.Helper()
	source := filepath.Join("..", "..", "services", "storage-node", "internal", "engine", "options.go")
	f, err := parser.ParseFile(token.NewFileSet(), source, nil, parser.ParseComments)
	require.NoError(t, err)
	object := f.Scope.Lookup("Options")
	require.NotNil(t, object)
	var rows []string
	var doc string
	var names []string // of the row that is being collected: fields below a comment share it
	for _, field := range object.Decl.(*ast.TypeSpec).Type.(*ast.StructType).Fields.List {
		if field.Doc != nil {
			names = nil
		} else {
			require.NotEmpty(t, rows, "the first option has no comment")
			rows = rows[:len(rows)-1]
		}
		for _, n := range field.Names {
			names = append(names, "`"+n.Name+"`")
		}
		if field.Doc != nil {
			doc = strings.Join(strings.Fields(field.Doc.Text()), " ")
		}
		rows = append(rows, fmt.Sprintf("| %s | %s | %s |\n", strings.Join(names, ", "), unit(t, field), doc))
	}
	return strings.Join(rows, "")
}

func unit(t *testing.T, field *ast.Field) string {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, printer.Fprint(&b, token.NewFileSet(), field.Type))
	name := field.Names[0].Name
	switch typ := b.String(); {
	case strings.HasSuffix(name, "BytesPerSecond"):
		return "bytes/s"
	case strings.Contains(name, "Bytes"):
		return "bytes"
	case typ == "time.Duration":
		return "time"
	case typ == "int" || typ == "int64":
		return "count"
	default:
		return "`" + strings.ReplaceAll(typ, "|", "\\|") + "`"
	}
}
