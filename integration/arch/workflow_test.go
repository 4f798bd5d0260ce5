package arch

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// workflow is a file of .github/workflows, as far as ours go: a key that is not here is an error, and is looked
// up in the reference of GitHub Actions before it is added.
type workflow struct {
	Name        string            `yaml:"name"`
	On          map[string]on     `yaml:"on"`
	Permissions map[string]string `yaml:"permissions"`
	Concurrency struct {
		Group            string `yaml:"group"`
		CancelInProgress bool   `yaml:"cancel-in-progress"`
	} `yaml:"concurrency"`
	Env  map[string]string `yaml:"env"`
	Jobs map[string]job    `yaml:"jobs"`
}

type on struct {
	Branches []string `yaml:"branches"`
}

type job struct {
	RunsOn         string            `yaml:"runs-on"`
	TimeoutMinutes int               `yaml:"timeout-minutes"`
	Env            map[string]string `yaml:"env"`
	Steps          []step            `yaml:"steps"`
}

type step struct {
	Name string         `yaml:"name"`
	Uses string         `yaml:"uses"`
	With map[string]any `yaml:"with"`
	Run  string         `yaml:"run"`
}

// hosted are programs of the machines that GitHub lends.
var hosted = []string{"docker", "kind"}

var (
	pinned    = regexp.MustCompile(`^actions/[a-z-]+@v\d+$`)
	makeCall  = regexp.MustCompile(`^make((?: [A-Z]+=\S+)*(?: [a-z][a-z-]*)+(?: [A-Z]+=\S+)*)$`)
	rootShell = regexp.MustCompile(`^sudo -E env (?:"[A-Z]+=\$[A-Z]+" )+`)
)

// workflowProblems returns what a workflow mentions and is not there, one line each.
func workflowProblems(text, makefile []byte, top string) []string {
	var w workflow
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&w); err != nil {
		return []string{err.Error()}
	}
	var wrong []string
	if len(w.Jobs) == 0 || len(w.On) == 0 || w.Env["CI"] != "true" || w.Permissions["contents"] != "read" {
		wrong = append(wrong, "it has no jobs, never runs, does not set CI=true, or may write")
	}
	for name, j := range w.Jobs {
		if j.RunsOn == "" || j.TimeoutMinutes == 0 || len(j.Steps) == 0 {
			wrong = append(wrong, name+": no machine, no limit or no step")
		}
		for _, s := range j.Steps {
			switch {
			case s.Uses != "" && s.Run != "", s.Uses == "" && s.Run == "":
				wrong = append(wrong, name+": a step uses or runs something")
			case s.Uses != "" && !pinned.MatchString(s.Uses):
				wrong = append(wrong, name+": "+s.Uses+" is not pinned, or of strangers")
			case s.Run != "":
				wrong = append(wrong, commandProblems(name, s.Run, makefile, top)...)
			}
			if file, ok := s.With["go-version-file"].(string); ok {
				if _, err := os.Stat(filepath.Join(top, file)); err != nil {
					wrong = append(wrong, name+": "+err.Error())
				}
			}
		}
	}
	return wrong
}

// commandProblems looks at what a step runs, one command a line.
func commandProblems(job, run string, makefile []byte, top string) []string {
	var wrong []string
	for line := range strings.SplitSeq(strings.TrimSpace(run), "\n") {
		line = rootShell.ReplaceAllString(line, "")
		program, _, _ := strings.Cut(line, " ")
		switch {
		case program == "make":
			m := makeCall.FindStringSubmatch(line)
			if m == nil {
				wrong = append(wrong, job+": "+line+" is no call of make that this test can read")
				continue
			}
			for _, target := range strings.Fields(m[1]) {
				if !strings.Contains(target, "=") && !regexp.MustCompile(`(?m)^`+target+`:`).Match(makefile) {
					wrong = append(wrong, job+": the Makefile has no target "+target)
				}
			}
		case slices.Contains(hosted, program):
		default:
			info, err := os.Stat(filepath.Join(top, program))
			if err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
				wrong = append(wrong, job+": "+program+" is no program of this repository")
			}
		}
	}
	return wrong
}

func TestWorkflowsRunWhatIsThere(t *testing.T) {
	// Nobody runs a workflow before it is pushed; then everybody waits for it.
	top := filepath.Join("..", "..")
	files, err := filepath.Glob(filepath.Join(top, ".github", "workflows", "*.y*ml"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	text, err := os.ReadFile(files[0])
	require.NoError(t, err)
	makefile, err := os.ReadFile(filepath.Join(top, "Makefile"))
	require.NoError(t, err)
	require.Empty(t, workflowProblems(text, makefile, top))

	for _, mistake := range [][2]string{
		{".ci/run", ".ci/runs"}, {"make test-kube", "make test-cube"}, {"make images", "make image"}, {"    steps:", "    step:"},
		{"timeout-minutes: 30", "timeout-minutes: soon"}, {"actions/checkout@v4", "actions/checkout@main"},
		{"go-version-file: go.work", "go-version-file: go.mod"}, {"  CI: \"true\"", "  CI: \"false\""},
		{"kind create", "kindly create"}, {"contents: read", "contents: write"}, {"  pull_request:", "  pull_request: [main]"},
	} {
		require.Contains(t, string(text), mistake[0])
		wrong := strings.Replace(string(text), mistake[0], mistake[1], 1)
		require.NotEmpty(t, workflowProblems([]byte(wrong), makefile, top), "%s is not found", mistake[1])
	}
}
