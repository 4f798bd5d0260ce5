package service

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// printConfig writes the effective configuration as KEY=value lines, each below its description.
// The output is a file that a shell or a container runtime can load.
func printConfig(w io.Writer, fields []Field) {
	for _, f := range fields {
		fmt.Fprintf(w, "# %s (%s; %s)\n%s=%s\n", f.Description, f.Unit, defaultText(f), f.Key, shellQuote(f.Value()))
	}
}

func defaultText(f Field) string {
	switch {
	case f.Required:
		return "required"
	case f.Optional:
		return "no default"
	}
	return "default " + f.Default
}

// shellQuote quotes a value when a shell would read it differently.
func shellQuote(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:,@%+="
	if strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// usage writes the help text of a program.
func (p *Program) usage(w io.Writer, fields []Field) {
	fmt.Fprintf(w, "%s: %s\n\nUsage:\n", p.Name, p.Summary)
	fmt.Fprintf(w, "  %s\t\tstart; everything is configured by the environment\n", p.Name)
	fmt.Fprintf(w, "  %s --print-config\tprint the effective configuration and exit\n", p.Name)
	fmt.Fprintf(w, "  %s --version\tprint the version and exit\n", p.Name)
	for _, c := range p.Commands {
		fmt.Fprintf(w, "  %s %s\t%s\n", p.Name, c.Name, c.Summary)
	}
	if len(fields) > 0 {
		fmt.Fprint(w, "\nConfiguration:\n")
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for _, f := range fields {
			fmt.Fprintf(t, "  %s\t%s\t%s\n", f.Key, defaultText(f), f.Description)
		}
		t.Flush() //nolint:errcheck // a broken pipe of a help text is nobody's business
	}
	fmt.Fprint(w, "\nExit codes:\n", exitCodeTable(func(code int, meaning string) string {
		return fmt.Sprintf("  %d  %s\n", code, meaning)
	}))
}

// Reference returns the section of the configuration reference page for one binary, in Markdown.
func Reference(binary string, fields []Field) string {
	var b strings.Builder
	fmt.Fprintf(&b, "## %s\n\n| key | default | unit | what it does |\n|---|---|---|---|\n", binary)
	for _, f := range fields {
		def := "`" + f.Default + "`"
		if f.Required || f.Optional {
			def = "*" + strings.TrimPrefix(defaultText(f), "no default") + "*"
			if f.Optional {
				def = "–"
			}
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.Key, def, f.Unit, strings.ReplaceAll(f.Description, "|", `\|`))
	}
	return b.String()
}
