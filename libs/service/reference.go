package service

import (
	"fmt"
	"strings"
)

// SpliceSection replaces the part of a generated page between the marks of a name, or appends it:
// each binary owns its own section of docs/CONFIGURATION.md and cannot see the others.
func SpliceSection(page, name, section string) (string, error) {
	begin, end := fmt.Sprintf("<!-- begin %s -->\n", name), fmt.Sprintf("<!-- end %s -->\n", name)
	block := begin + "\n" + strings.TrimSpace(section) + "\n\n" + end
	before, rest, found := strings.Cut(page, begin)
	if !found {
		if page != "" && !strings.HasSuffix(page, "\n\n") {
			page = strings.TrimRight(page, "\n") + "\n\n"
		}
		return page + block, nil
	}
	_, after, found := strings.Cut(rest, end)
	if !found {
		return "", fmt.Errorf("page has %q without %q", strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return before + block + after, nil
}

// ExitCodeReference returns the section about exit codes of the reference page, in Markdown.
func ExitCodeReference() string {
	return "## Exit codes\n\n| code | meaning |\n|---|---|\n" +
		exitCodeTable(func(code int, meaning string) string {
			return fmt.Sprintf("| %d | %s |\n", code, meaning)
		})
}
