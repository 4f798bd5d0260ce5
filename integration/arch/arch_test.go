// Package arch checks that the tree keeps the directions of its architecture. It never looks at
// behaviour; docs/ARCHITECTURE.md says what each rule is for.
package arch

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const root = "github.com/pairdb/pairdb/"

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath, Name, Dir, Doc               string
	GoFiles, TestGoFiles, XTestGoFiles       []string
	Imports, TestImports, XTestImports, Deps []string
	IgnoredGoFiles                           []string
	path                                     string // ImportPath without root
}

func (p pkg) internalImports() []string {
	var out []string
	for _, i := range p.Imports {
		if rest, ok := strings.CutPrefix(i, root); ok {
			out = append(out, rest)
		}
	}
	return out
}

func load(t *testing.T) []pkg {
	t.Helper()
	var all []pkg
	for _, module := range []string{"proto", "libs", "libs/client", "libs/localpod", "libs/tracing", "services", "services/storage-node/bench", "integration", "integration/bench"} {
		cmd := exec.Command("go", "list", "-json", "./...")
		cmd.Dir = filepath.Join("..", "..", module)
		if module == "integration/bench" { // it is not in the workspace: etcd must not choose our versions
			cmd.Env = append(os.Environ(), "GOWORK=off")
		}
		out, err := cmd.Output()
		require.NoError(t, err, "go list in %s", module)
		dec := json.NewDecoder(strings.NewReader(string(out)))
		for dec.More() {
			var p pkg
			require.NoError(t, dec.Decode(&p))
			p.path = strings.TrimPrefix(p.ImportPath, root)
			all = append(all, p)
		}
	}
	require.Greater(t, len(all), 30, "the packages of all modules")
	return all
}

// pure are the libs that must give the same answer for the same arguments, everywhere.
var pure = []string{
	"libs/vfs", "libs/vfs/crashfs", "libs/vfs/errorfs", "libs/ikey", "libs/iterator", "libs/causal", "libs/ring",
	"libs/membership", "libs/merkle", "libs/record", "libs/sstable", "libs/sstable/block", "libs/sstable/filter", "libs/compact",
}

// enginePackages are the engine and all that it stands on.
var enginePackages = []string{
	"services/storage-node/internal/engine", "services/storage-node/internal/commitlog",
	"services/storage-node/internal/memtable", "services/storage-node/internal/manifest",
	"services/storage-node/internal/picker", "services/storage-node/internal/jobs",
	"services/storage-node/internal/cache", "services/storage-node/internal/stages",
}

// layer is the height of a package in the direction of imports: a package imports only lower ones
// of the storage-node, or what its own row names.
var layer = map[string]int{
	"services/storage-node/internal/stages":      1,
	"services/storage-node/internal/hot":         1,
	"services/storage-node/internal/cache":       1,
	"services/storage-node/internal/commitlog":   1,
	"services/storage-node/internal/memtable":    1,
	"services/storage-node/internal/manifest":    1,
	"services/storage-node/internal/jobs":        2,
	"services/storage-node/internal/picker":      2,
	"services/storage-node/internal/engine":      3,
	"services/storage-node/internal/inspect":     4,
	"services/storage-node/internal/store":       4,
	"services/storage-node/internal/config":      4,
	"services/storage-node/internal/memory":      4,
	"services/storage-node/internal/tenant":      5,
	"services/storage-node/internal/members":     5,
	"services/storage-node/internal/announce":    5,
	"services/storage-node/internal/outbox":      5,
	"services/storage-node/internal/moves":       5,
	"services/storage-node/internal/ownership":   5,
	"services/storage-node/internal/antientropy": 5,
	"services/storage-node/internal/replica":     5,
	"services/storage-node/internal/server":      6,
	"services/storage-node/internal/node":        7,
	"services/storage-node":                      8,
}

func TestImportsPointDown(t *testing.T) {
	// An upward import is how a mechanism starts to know the policy above it.
	for _, p := range load(t) {
		if !strings.HasPrefix(p.path, "services/storage-node") {
			continue
		}
		own, known := layer[p.path]
		if !known {
			require.Contains(t, p.path, "/bench", "%s has no place in the architecture: give it a row in arch_test.go and in docs/ARCHITECTURE.md", p.path)
			continue
		}
		for _, i := range p.internalImports() {
			if h, ok := layer[i]; ok {
				require.Less(t, h, own, "%s imports %s, which is not below it: move the shared part down", p.path, i)
			}
		}
	}
}

func TestServicesDoNotImportEachOther(t *testing.T) {
	// What two processes must agree on belongs into libs; what one owns is nobody else's business.
	for _, p := range load(t) {
		own, ok := service(p.path)
		if !ok {
			continue
		}
		for _, i := range p.internalImports() {
			other, ok := service(i)
			require.False(t, ok && other != own, "%s imports %s of another service: put what both need into libs", p.path, i)
		}
	}
}

func service(path string) (string, bool) {
	parts := strings.Split(path, "/")
	if parts[0] != "services" || len(parts) < 2 {
		return "", false
	}
	return parts[1], true
}

func TestLibsAndIntegrationDoNotImportServices(t *testing.T) {
	// The tests in integration are black boxes; libs is what services stand on.
	for _, p := range load(t) {
		if strings.HasPrefix(p.path, "services/") {
			continue
		}
		for _, i := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			require.False(t, strings.HasPrefix(i, root+"services/"), "%s imports %s: use it through its wire or its command line", p.path, i)
		}
	}
}

func TestCoreKnowsNoWireNoClockNoSystem(t *testing.T) {
	// The core must be replayable: time, chance and the disk are arguments.
	bannedPrefixes := []string{"google.golang.org/", "github.com/prometheus/", root + "proto", "github.com/nats-io/", "go.opentelemetry.io/", "log/slog", "net", "os"}
	for _, p := range load(t) {
		core := slices.Contains(pure, p.path) || slices.Contains(enginePackages, p.path)
		if !core {
			continue
		}
		for _, i := range p.Imports {
			for _, b := range bannedPrefixes {
				if i != b && !strings.HasPrefix(i, strings.TrimSuffix(b, "/")+"/") {
					continue
				}
				if p.path == "libs/vfs" && (i == "os" || strings.HasPrefix(i, "os/")) {
					continue // the adapter to the operating system
				}
				t.Errorf("%s imports %s: hand in what it needs as a parameter", p.path, i)
			}
		}
		for _, use := range forbiddenCalls(t, p) {
			t.Errorf("%s: take a clock or a random source as a parameter", use)
		}
	}
}

// forbiddenCalls finds reads of the wall clock, sleeping, and the global random source.
func forbiddenCalls(t *testing.T, p pkg) []string {
	t.Helper()
	bad := map[string][]string{
		"time":         {"Now", "Since", "Until", "Sleep", "After", "Tick", "NewTimer", "NewTicker", "AfterFunc"},
		"math/rand/v2": {"Int", "IntN", "Uint64", "Uint32", "Float64", "Perm", "Shuffle", "N", "Uint64N", "Int64N"},
		"math/rand":    {"Int", "Intn", "Uint64", "Uint32", "Float64", "Perm", "Shuffle", "Int63"},
		"crypto/rand":  {"Read", "Text"},
	}
	var uses []string
	fset := token.NewFileSet()
	for _, name := range p.GoFiles {
		f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, 0)
		require.NoError(t, err)
		names := map[string]string{} // local name → import path
		for _, i := range f.Imports {
			path, _ := strconv.Unquote(i.Path.Value)
			local := filepath.Base(path)
			if path == "math/rand/v2" {
				local = "rand"
			}
			if i.Name != nil {
				local = i.Name.Name
			}
			names[local] = path
		}
		ast.Inspect(f, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			id, ok := sel.X.(*ast.Ident)
			if ok && slices.Contains(bad[names[id.Name]], sel.Sel.Name) {
				uses = append(uses, fset.Position(sel.Pos()).String()+" uses "+id.Name+"."+sel.Sel.Name)
			}
			return true
		})
	}
	return uses
}

func TestExporterStaysOutOfWhatNeedsNone(t *testing.T) {
	// Applications and command lines must not inherit the SDK of a tracer with its modules.
	light := []string{"libs", "services/pairctl"}
	for _, p := range load(t) {
		if strings.HasPrefix(p.path, "libs/tracing") || !slices.ContainsFunc(light, func(l string) bool { return strings.HasPrefix(p.path, l+"/") || p.path == l }) {
			continue
		}
		for _, d := range p.Deps {
			heavy := strings.HasPrefix(d, "go.opentelemetry.io/otel/sdk") || strings.HasPrefix(d, "go.opentelemetry.io/otel/exporters") || strings.HasPrefix(d, "go.opentelemetry.io/contrib")
			require.False(t, heavy, "%s depends on %s: name tracing.Open in the main of the binary that exports", p.path, d)
		}
	}
}

func TestProtoTypesStayAtTheEdges(t *testing.T) {
	// Domain code that speaks proto can't change without the wire.
	edges := []string{
		"libs/wire", "libs/client", "services/storage-node/internal/server", "services/storage-node/internal/node",
		"services/storage-node/internal/announce",
		"services/compactor/internal/worker", "services/health-agent/internal/agent", "services/pairctl", "libs/sidecar", "libs/localpod",
		"libs/event", "libs/command", "services/health-agent/internal/command", "services/migrator/internal/command",
		"libs/event", "services/health-agent/internal/command", "services/migrator/internal", // the migrator carries messages from one node to another
	}
	for _, p := range load(t) {
		if strings.HasPrefix(p.path, "proto") || strings.HasPrefix(p.path, "integration") {
			continue
		}
		for _, i := range p.internalImports() {
			if !strings.HasPrefix(i, "proto") {
				continue
			}
			ok := slices.ContainsFunc(edges, func(e string) bool { return p.path == e || strings.HasPrefix(p.path, e+"/") })
			require.True(t, ok, "%s imports %s: convert at the edge (libs/wire, or convert.go of the server)", p.path, i)
		}
	}
}

func TestLibsAreShared(t *testing.T) {
	// A package that one service uses is that service's own.
	users := map[string]map[string]bool{}
	for _, p := range load(t) {
		from, ok := service(p.path)
		if !ok {
			from = "-" + p.path
		}
		for _, d := range p.Deps {
			if rest, found := strings.CutPrefix(d, root); found && strings.HasPrefix(rest, "libs/") {
				if users[rest] == nil {
					users[rest] = map[string]bool{}
				}
				if ok {
					users[rest][from] = true
				}
			}
		}
	}
	// Shared by design with processes that are not in the tree yet, or with applications and tests.
	allowed := []string{"libs/client", "libs/localpod", "libs/identity/authority", "libs/ring", "libs/vfs/crashfs", "libs/vfs/errorfs", "libs/record"}
	for lib, by := range users {
		if slices.Contains(allowed, lib) {
			continue
		}
		require.GreaterOrEqual(t, len(by), 2, "%s is used by %v only: move it into that service", lib, keys(by))
	}
}

func TestEmbeddedNATSStaysInTheLocalPod(t *testing.T) {
	// A server inside of a product's process is a port that nobody asked for.
	for _, p := range load(t) {
		_, isService := service(p.path)
		local := p.path == "libs/localpod" || strings.HasPrefix(p.path, "services/pairctl")
		if local || !isService && !strings.HasPrefix(p.path, "libs/") {
			continue
		}
		for _, d := range p.Deps {
			require.False(t, strings.HasPrefix(d, "github.com/nats-io/nats-server/"), "%s imports %s: only libs/localpod may, and tests", p.path, d)
		}
	}
}

func keys(m map[string]bool) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

func TestPackagesSayWhatTheyAre(t *testing.T) {
	// A reader meets the package comment first, and a vague name hides a package with two reasons.
	forbidden := []string{"util", "utils", "common", "helpers", "misc", "manager", "impl", "types", "interfaces"}
	for _, p := range load(t) {
		require.NotContains(t, forbidden, p.Name, "%s: name it after the thing it is", p.path)
		if strings.HasPrefix(p.path, "proto/") || len(p.GoFiles) == 0 {
			continue
		}
		require.NotEmpty(t, p.Doc, "%s has no package comment: first sentence what it is, second what it never does", p.path)
	}
}

func TestExportedNamesOfLibsAreDocumented(t *testing.T) {
	// libs is the contract between processes: its reader has only the comments.
	for _, p := range load(t) {
		if !strings.HasPrefix(p.path, "libs/") {
			continue
		}
		fset := token.NewFileSet()
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.ParseComments)
			require.NoError(t, err)
			for _, missing := range undocumented(f) {
				t.Errorf("%s/%s: %s has no doc comment", p.path, name, missing)
			}
		}
	}
}

func undocumented(f *ast.File) []string {
	var out []string
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Name.IsExported() && d.Doc == nil && exportedReceiver(d) && !wellKnown[d.Name.Name] {
				out = append(out, d.Name.Name)
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				switch s := s.(type) {
				case *ast.TypeSpec:
					if s.Name.IsExported() && d.Doc == nil && s.Doc == nil {
						out = append(out, s.Name.Name)
					}
				case *ast.ValueSpec:
					if s.Names[0].IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
						out = append(out, s.Names[0].Name)
					}
				}
			}
		}
	}
	return out
}

// wellKnown are methods of the standard interfaces, whose comment would repeat the interface.
var wellKnown = map[string]bool{
	"Error": true, "String": true, "Unwrap": true, "Is": true, "Len": true, "Less": true, "Swap": true,
	"Push": true, "Pop": true, "Close": true, "Read": true, "Write": true, "ReadAt": true, "WriteAt": true,
}

func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	typ := d.Recv.List[0].Type
	if s, ok := typ.(*ast.StarExpr); ok {
		typ = s.X
	}
	if g, ok := typ.(*ast.IndexExpr); ok {
		typ = g.X
	}
	id, ok := typ.(*ast.Ident)
	return ok && id.IsExported()
}
