package event

import (
	"fmt"
	"strconv"
	"strings"
)

// maxNameBytes bounds the names of clusters and nodes, as their configuration does.
const maxNameBytes = 100

// Token turns a name into one token of a subject: letters, digits, dash and underscore stay, each
// other byte becomes % and two hexadecimal digits.
func Token(name string) string {
	var b strings.Builder
	for i := range len(name) {
		if c := name[i]; plain(c) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// FromToken returns the name that Token was given. What Token never makes is an error, so that no two
// subjects have one meaning.
func FromToken(token string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(token); i++ {
		if plain(token[i]) {
			b.WriteByte(token[i])
			continue
		}
		if token[i] != '%' || i+2 >= len(token) {
			return "", invalid("%q is not a token of a subject", token)
		}
		n, err := strconv.ParseUint(token[i+1:i+3], 16, 8)
		if err != nil {
			return "", invalid("%q is not a token of a subject", token)
		}
		b.WriteByte(byte(n))
		i += 2
	}
	if name := b.String(); name != "" && Token(name) == token {
		return name, nil
	}
	return "", invalid("%q is not a token of a subject", token)
}

func plain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

// validKind accepts lower-case words with dots between them: tokens of a subject as they are.
func validKind(kind string) bool {
	if len(kind) > maxNameBytes {
		return false
	}
	for word := range strings.SplitSeq(kind, ".") {
		if word == "" || strings.Trim(word, "abcdefghijklmnopqrstuvwxyz0123456789_-") != "" {
			return false
		}
	}
	return true
}

// Subject is where an event of a node goes.
func Subject(cluster, node, kind string) string {
	return "pairdb." + Token(cluster) + ".event." + Token(node) + "." + kind
}

// Filter is the subject of a reader: of all clusters, nodes or kinds where the name is empty.
func Filter(cluster, node, kind string) string {
	if kind == "" {
		kind = ">"
	}
	return "pairdb." + tokenOrAny(cluster) + ".event." + tokenOrAny(node) + "." + kind
}

func tokenOrAny(name string) string {
	if name == "" {
		return "*"
	}
	return Token(name)
}

// Subject is where the event goes.
func (e Event) Subject() string { return Subject(e.Cluster, e.Node, e.Kind) }

// ParseSubject returns what Subject was given.
func ParseSubject(subject string) (cluster, node, kind string, err error) {
	parts := strings.SplitN(subject, ".", 5)
	if len(parts) != 5 || parts[0] != "pairdb" || parts[2] != "event" || !validKind(parts[4]) {
		return "", "", "", invalid("the subject %q is not pairdb.<cluster>.event.<node>.<kind>", subject)
	}
	if cluster, err = FromToken(parts[1]); err != nil {
		return "", "", "", err
	}
	if node, err = FromToken(parts[3]); err != nil {
		return "", "", "", err
	}
	return cluster, node, parts[4], nil
}

// CommandSubject is where a command for a node goes; it is beside the subjects of events, so that
// permissions can tell who may ask from who may listen.
func CommandSubject(cluster, node, verb string) string {
	return "pairdb." + Token(cluster) + ".cmd." + Token(node) + "." + verb
}
