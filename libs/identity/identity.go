package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
)

// Roles is a set of roles.
type Roles uint8

// The roles.
const (
	// Client reads and writes the data of tenants.
	Client Roles = 1 << iota
	// Coordinator calls the contract of existing coordinators, and what clients call.
	Coordinator
	// Node is a pod: its processes among each other and towards other pods. A server has this role.
	Node
	// Operator looks at and changes nodes and clusters.
	Operator
	// Monitor looks, at metrics most of all.
	Monitor

	// None may call nothing.
	None Roles = 0
	// Anybody is every role.
	Anybody = Client | Coordinator | Node | Operator | Monitor
)

// roleNames are the words in certificates, in the order of the bits.
var roleNames = []string{"client", "coordinator", "node", "operator", "monitor"}

// ParseRole returns the role of a word.
func ParseRole(word string) (Roles, error) {
	for i, name := range roleNames {
		if name == word {
			return 1 << i, nil
		}
	}
	return None, fmt.Errorf("%.40q is no role: %s", word, strings.Join(roleNames, ", "))
}

// RoleNames returns the words for all roles.
func RoleNames() []string { return append([]string(nil), roleNames...) }

// String lists the roles of the set, with plus signs.
func (r Roles) String() string {
	var words []string
	for i, name := range roleNames {
		if r&(1<<i) != 0 {
			words = append(words, name)
		}
	}
	if len(words) == 0 {
		return "nobody"
	}
	return strings.Join(words, "+")
}

// Identity is who a certificate says somebody is.
type Identity struct {
	Cluster string
	Roles   Roles
	// Name is for logs; it gives no right. It may be empty.
	Name string
}

// String returns the identity in one word, for logs and errors.
func (i Identity) String() string {
	s := i.Cluster + "/" + i.Roles.String()
	if i.Name != "" {
		s += "/" + i.Name
	}
	return s
}

const (
	// Scheme of the URIs in certificates.
	Scheme = "pairdb"
	// maxURIs bounds what is looked at of a certificate; there are five roles.
	maxURIs = 8
	// maxNameBytes is that of cluster and node names.
	maxNameBytes = 100
)

// ErrNoIdentity says that a certificate does not say who somebody is.
var ErrNoIdentity = errors.New("no identity in the certificate")

// URI returns what a certificate says of a role in a cluster. The name may be empty.
func URI(cluster, role, name string) string {
	s := Scheme + "://" + cluster + "/" + role
	if name != "" {
		s += "/" + name
	}
	return s
}

// FromCertificate returns who a certificate says somebody is. Whether it is to be believed is not asked:
// TLS has checked that. The errors are ErrNoIdentity.
func FromCertificate(c *x509.Certificate) (Identity, error) {
	var id Identity
	if len(c.URIs) > maxURIs {
		return id, fmt.Errorf("%w: %d URIs, at most %d", ErrNoIdentity, len(c.URIs), maxURIs)
	}
	for _, u := range c.URIs {
		if u.Scheme != Scheme {
			continue // of somebody else, SPIFFE for one
		}
		parts := strings.Split(strings.TrimPrefix(u.Path, "/"), "/")
		role, err := ParseRole(parts[0])
		bad := err != nil || len(parts) > 2 || !name(u.Host) || len(parts) == 2 && !name(parts[1]) ||
			u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != ""
		if bad {
			return Identity{}, fmt.Errorf("%w: %.200q is not %s", ErrNoIdentity, u, URI("CLUSTER", "ROLE", "NAME"))
		}
		if id.Cluster != "" && id.Cluster != u.Host {
			return Identity{}, fmt.Errorf("%w: it names the clusters %s and %s", ErrNoIdentity, id.Cluster, u.Host)
		}
		id.Cluster, id.Roles = u.Host, id.Roles|role
		if len(parts) == 2 && id.Name == "" {
			id.Name = parts[1]
		}
	}
	if id.Roles == None {
		return id, fmt.Errorf("%w: it has no URI %s", ErrNoIdentity, URI("CLUSTER", "ROLE", "NAME"))
	}
	return id, nil
}

// name reports whether s can be the name of a cluster or a node.
func name(s string) bool {
	return len(s) > 0 && len(s) <= maxNameBytes && strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	}) < 0
}
