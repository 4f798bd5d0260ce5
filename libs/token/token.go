package token

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	// MaxLifetime is how long a token counts at most: whoever has it can't be told apart from whom it was made for.
	MaxLifetime = 24 * time.Hour
	// MaxBytes bounds a token.
	MaxBytes = 8 << 10
	// MaxTenants bounds the tenants that a token names.
	MaxTenants = 100
	// leeway is how far the clocks of who made it and of a node may be apart.
	leeway = 30 * time.Second
	// all is the name that stands for every tenant.
	all = "*"
)

// Verbs are what may be done with keys.
type Verbs uint8

// The verbs.
const (
	Read Verbs = 1 << iota
	Write
)

var verbNames = map[string]Verbs{"read": Read, "write": Write}

// ParseVerbs parses "read", "write" and "read,write".
func ParseVerbs(text string) (v Verbs, err error) {
	for _, name := range strings.Split(text, ",") {
		one, ok := verbNames[name]
		if !ok {
			return 0, fmt.Errorf("%q is no verb: there are read and write", name)
		}
		v |= one
	}
	return v, nil
}

// String returns what ParseVerbs parses.
func (v Verbs) String() string {
	return [...]string{"nothing", "read", "write", "read,write"}[v&(Read|Write)]
}

// Grant is what a token says.
type Grant struct {
	// Subject is who it was made for: 1 to 128 printable characters.
	Subject string
	// Tenants are 1 to MaxTenants names; "*" stands for all.
	Tenants []string
	Verbs   Verbs
	// Expires is when it ends.
	Expires time.Time
}

// What is wrong with a request.
var (
	// ErrInvalid says that there is no token that counts: none was sent, it is over, or it is of somebody else.
	ErrInvalid = errors.New("no valid token")
	// ErrNotGranted says that a token that counts does not allow what is asked for.
	ErrNotGranted = errors.New("not granted by the token")
)

// Allows returns nil, ErrNotGranted or, when the token is over, ErrInvalid.
func (g *Grant) Allows(tenant string, v Verbs, now time.Time) error {
	switch {
	case now.After(g.Expires.Add(leeway)):
		return fmt.Errorf("%w: it is over since %s: ask for a new one", ErrInvalid, g.Expires.UTC().Format(time.RFC3339))
	case v&^g.Verbs != 0:
		return fmt.Errorf("%w: %s may %s, and not %s", ErrNotGranted, g.Subject, g.Verbs, v&^g.Verbs)
	case !slices.Contains(g.Tenants, tenant) && !slices.Contains(g.Tenants, all):
		return fmt.Errorf("%w: %s has no access to the tenant %.300q", ErrNotGranted, g.Subject, tenant)
	}
	return nil
}

func (g *Grant) check(now time.Time) error {
	switch {
	case g.Subject == "" || len(g.Subject) > 128 || strings.ContainsFunc(g.Subject, func(r rune) bool { return r < ' ' || r > '~' }):
		return fmt.Errorf("the subject has not 1 to 128 printable characters: %.200q", g.Subject)
	case len(g.Tenants) == 0 || len(g.Tenants) > MaxTenants || slices.Contains(g.Tenants, ""):
		return fmt.Errorf("%d tenants are named, 1 to %d are allowed, none of them empty", len(g.Tenants), MaxTenants)
	case g.Verbs == 0 || g.Verbs&^(Read|Write) != 0:
		return errors.New("it allows nothing: name a verb, read or write")
	case !g.Expires.After(now):
		return errors.New("it is over already")
	case g.Expires.Sub(now) > MaxLifetime:
		return fmt.Errorf("it would count for %s, at most %s are allowed", g.Expires.Sub(now).Round(time.Second), MaxLifetime)
	}
	return nil
}

// claims are those of a token.
type claims struct {
	jwt.RegisteredClaims
	Tenants []string `json:"tenants"`
	Verbs   []string `json:"verbs"`
}

func audience(cluster string) string { return "pairdb://" + cluster }

// KeyID is how the header of a token names its key: the first half of the SHA-256 of its PKIX form, in hex.
func KeyID(key ed25519.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "" // of a key that is none
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:16])
}

// Sign makes a token for a cluster that counts from now on. The errors say what is wrong with the grant.
func Sign(key ed25519.PrivateKey, cluster string, g Grant, now time.Time) (string, error) {
	if err := g.check(now); err != nil {
		return "", err
	}
	c := claims{Tenants: g.Tenants, Verbs: strings.Split(g.Verbs.String(), ","), RegisteredClaims: jwt.RegisteredClaims{
		Subject: g.Subject, Audience: jwt.ClaimStrings{audience(cluster)}, IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(g.Expires),
	}}
	t := jwt.NewWithClaims(jwt.SigningMethodEdDSA, c)
	t.Header["kid"] = KeyID(key.Public().(ed25519.PublicKey))
	signed, err := t.SignedString(key)
	if err == nil && len(signed) > MaxBytes {
		err = fmt.Errorf("the token would have %d bytes, at most %d are allowed: name fewer tenants", len(signed), MaxBytes)
	}
	return signed, err
}

// verify checks a token with the keys, by their ids. What it returns for a wrong one wraps ErrInvalid and says
// nothing that a forger could use but what is wrong.
func verify(text, cluster string, keys map[string]ed25519.PublicKey, now time.Time) (*Grant, error) {
	if len(text) > MaxBytes {
		return nil, fmt.Errorf("%w: it has %d bytes, at most %d are allowed", ErrInvalid, len(text), MaxBytes)
	}
	var c claims
	_, err := jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}), jwt.WithAudience(audience(cluster)), jwt.WithExpirationRequired(),
		jwt.WithIssuedAt(), jwt.WithLeeway(leeway), jwt.WithTimeFunc(func() time.Time { return now }), jwt.WithStrictDecoding(),
	).ParseWithClaims(text, &c, func(t *jwt.Token) (any, error) {
		id, _ := t.Header["kid"].(string)
		key, ok := keys[id]
		if !ok {
			return nil, fmt.Errorf("its key %.64q is not among those of this node", id)
		}
		return key, nil
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	g := &Grant{Subject: c.Subject, Tenants: c.Tenants, Expires: c.ExpiresAt.Time}
	if g.Verbs, err = ParseVerbs(strings.Join(c.Verbs, ",")); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if c.IssuedAt == nil {
		return nil, fmt.Errorf("%w: it does not say when it was made", ErrInvalid)
	}
	if err := g.check(c.IssuedAt.Time); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return g, nil
}
