package token

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
)

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// signer is a pair of keys.
type signer struct {
	key    ed25519.PrivateKey
	public []byte
}

func newSigner(t testing.TB) signer {
	t.Helper()
	private, public, err := Generate()
	require.NoError(t, err)
	key, err := PrivateKey(private)
	require.NoError(t, err)
	return signer{key, public}
}

func grant() Grant {
	return Grant{Subject: "shop", Tenants: []string{"a", "b"}, Verbs: Read | Write, Expires: noon.Add(time.Hour)}
}

func (s signer) sign(t testing.TB, g Grant) string {
	t.Helper()
	text, err := Sign(s.key, "east", g, noon)
	require.NoError(t, err)
	return text
}

// keysOf opens a file of public keys, at noon.
func keysOf(t testing.TB, of ...signer) (k *Keys, path string, now *time.Time) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "keys.pem")
	write(t, path, of...)
	k, err := Open(path, "east")
	require.NoError(t, err)
	at := noon
	now = &at
	k.now = func() time.Time { return *now }
	k.looked = noon
	return k, path, now
}

func write(t testing.TB, path string, of ...signer) {
	t.Helper()
	var content []byte
	for _, s := range of {
		content = append(content, s.public...)
	}
	require.NoError(t, os.WriteFile(path, content, 0o600))
}

func TestTokenGrantsWhatItSays(t *testing.T) {
	s := newSigner(t)
	k, _, _ := keysOf(t, newSigner(t), s)
	text := s.sign(t, grant())
	for range 2 { // the second time it is known
		g, err := k.Verify(text)
		require.NoError(t, err)
		require.Equal(t, "shop", g.Subject)
		require.True(t, g.Expires.Equal(noon.Add(time.Hour)))
		require.NoError(t, g.Allows("b", Read|Write, noon))
		require.ErrorIs(t, g.Allows("c", Read, noon), ErrNotGranted)
		require.ErrorIs(t, g.Allows("*", Read, noon), ErrNotGranted)
		require.ErrorIs(t, g.Allows("", Read, noon), ErrNotGranted)
		require.ErrorIs(t, g.Allows("a", Read, noon.Add(time.Hour+leeway+time.Second)), ErrInvalid)
	}
	only := grant()
	only.Verbs, only.Tenants = Read, []string{"*"}
	g, err := k.Verify(s.sign(t, only))
	require.NoError(t, err)
	require.NoError(t, g.Allows("c", Read, noon))
	require.ErrorIs(t, g.Allows("c", Write, noon), ErrNotGranted)
	require.ErrorIs(t, g.Allows("c", Read|Write, noon), ErrNotGranted)
}

// Danger: whoever can write text gets in.
func TestForgedTokensAreRefused(t *testing.T) {
	s := newSigner(t)
	k, _, now := keysOf(t, s)
	good := s.sign(t, grant())
	_, err := k.Verify(good)
	require.NoError(t, err)
	parts := strings.Split(good, ".")
	header := func(h map[string]string) string {
		b, err := json.Marshal(h)
		require.NoError(t, err)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	kid := KeyID(s.key.Public().(ed25519.PublicKey))
	mine := func(change func(*claims)) string {
		c := claims{Tenants: []string{"a"}, Verbs: []string{"read"}, RegisteredClaims: jwt.RegisteredClaims{
			Subject: "shop", Audience: jwt.ClaimStrings{audience("east")}, IssuedAt: jwt.NewNumericDate(noon), ExpiresAt: jwt.NewNumericDate(noon.Add(time.Hour)),
		}}
		change(&c)
		tok := jwt.NewWithClaims(jwt.SigningMethodEdDSA, c)
		tok.Header["kid"] = kid
		text, err := tok.SignedString(s.key)
		require.NoError(t, err)
		return text
	}
	_, err = k.Verify(mine(func(*claims) {}))
	require.NoError(t, err, "only what is changed is wrong")
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	require.NoError(t, err)
	for name, text := range map[string]string{
		"none":                 "",
		"no token":             "Bearer",
		"of another key":       newSigner(t).sign(t, grant()),
		"without a signature":  header(map[string]string{"alg": "none", "typ": "JWT", "kid": kid}) + "." + parts[1] + ".",
		"signed by the public": hmacToken(t, s, kid, parts[1]),
		"other claims":         parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(string(payload), `"a"`, `"*"`, 1))) + "." + parts[2],
		"cut":                  good[:len(good)-1],
		"more":                 good + "A",
		"four parts":           good + ".",
		"too long":             good + strings.Repeat("A", MaxBytes),
		"of another cluster":   mine(func(c *claims) { c.Audience = jwt.ClaimStrings{audience("west")} }),
		"of no cluster":        mine(func(c *claims) { c.Audience = nil }),
		"without an end":       mine(func(c *claims) { c.ExpiresAt = nil }),
		"without a beginning":  mine(func(c *claims) { c.IssuedAt = nil }),
		"over": mine(func(c *claims) {
			c.ExpiresAt = jwt.NewNumericDate(noon.Add(-leeway - time.Second))
			c.IssuedAt = jwt.NewNumericDate(noon.Add(-time.Hour))
		}),
		"of the future":        mine(func(c *claims) { c.IssuedAt = jwt.NewNumericDate(noon.Add(leeway + time.Minute)) }),
		"for too long":         mine(func(c *claims) { c.ExpiresAt = jwt.NewNumericDate(noon.Add(MaxLifetime + time.Minute)) }),
		"without tenants":      mine(func(c *claims) { c.Tenants = nil }),
		"with an empty tenant": mine(func(c *claims) { c.Tenants = []string{""} }),
		"without verbs":        mine(func(c *claims) { c.Verbs = nil }),
		"with another verb":    mine(func(c *claims) { c.Verbs = []string{"read", "admin"} }),
		"without a subject":    mine(func(c *claims) { c.Subject = "" }),
	} {
		g, err := k.Verify(text)
		require.ErrorIs(t, err, ErrInvalid, name)
		require.Nil(t, g, name)
	}
	*now = noon.Add(time.Hour + leeway + time.Second)
	_, err = k.Verify(good)
	require.ErrorIs(t, err, ErrInvalid, "known, and over")
}

// hmacToken is signed with the public key as if that were a secret.
func hmacToken(t *testing.T, s signer, kid, payload string) string {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(payload)
	require.NoError(t, err)
	c := jwt.MapClaims{}
	require.NoError(t, json.Unmarshal(b, &c))
	tok := jwt.NewWithClaims(jwt.SigningMethodHS256, c)
	tok.Header["kid"] = kid
	text, err := tok.SignedString(s.public)
	require.NoError(t, err)
	return text
}

func TestOnlyGrantsThatCountAreSigned(t *testing.T) {
	s := newSigner(t)
	many := make([]string, MaxTenants)
	for i := range many {
		many[i] = strings.Repeat("t", 100)
	}
	for want, change := range map[string]func(*Grant){
		"subject":       func(g *Grant) { g.Subject = "a\nb" },
		"tenants":       func(g *Grant) { g.Tenants = nil },
		"allows":        func(g *Grant) { g.Verbs = 0 },
		"over":          func(g *Grant) { g.Expires = noon },
		"24h":           func(g *Grant) { g.Expires = noon.Add(MaxLifetime + time.Second) },
		"fewer tenants": func(g *Grant) { g.Tenants = many },
	} {
		g := grant()
		change(&g)
		_, err := Sign(s.key, "east", g, noon)
		require.ErrorContains(t, err, want)
	}
	_, err := ParseVerbs("read,admin")
	require.ErrorContains(t, err, `"admin" is no verb`)
	v, err := ParseVerbs("write,read")
	require.NoError(t, err)
	require.Equal(t, "read,write", v.String())
}

// Danger: a key that was taken out goes on letting people in, or a file that is being written shuts everybody out.
func TestKeysAreReadAgain(t *testing.T) {
	first, second := newSigner(t), newSigner(t)
	k, path, now := keysOf(t, first)
	a, b := first.sign(t, grant()), second.sign(t, grant())
	works := func(text string, want bool) {
		t.Helper()
		*now = now.Add(lookEvery)
		_, err := k.Verify(text)
		require.Equal(t, want, err == nil, "%v", err)
	}
	works(a, true)
	works(b, false)
	write(t, path, first, second)
	works(a, true)
	works(b, true)
	for _, content := range []string{"", "nothing", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", string(second.public) + "and more"} {
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		works(a, true)
		require.ErrorContains(t, k.Problem(), "PAIRDB_TOKEN_KEYS", content)
	}
	require.NoError(t, os.Remove(path))
	works(a, true)
	require.Error(t, k.Problem())
	write(t, path, second)
	works(a, false)
	works(b, true)
	require.NoError(t, k.Problem())
}

func TestFilesThatAreNoKeysAreRefused(t *testing.T) {
	s := newSigner(t)
	private, _, err := Generate()
	require.NoError(t, err)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.MarshalPKIXPublicKey(other.Public())
	require.NoError(t, err)
	curve := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	path := filepath.Join(t.TempDir(), "k")
	for want, content := range map[string][]byte{
		"public keys only": private, "another kind": curve, "no public key": nil, "at most": []byte(strings.Repeat("a", maxFileBytes+1)),
	} {
		require.NoError(t, os.WriteFile(path, content, 0o600))
		_, err := Open(path, "east")
		require.ErrorContains(t, err, want)
		if want == "public keys only" {
			require.NotContains(t, err.Error(), string(private[30:60]))
		}
	}
	_, err = Open(filepath.Join(t.TempDir(), "none"), "east")
	require.ErrorIs(t, err, os.ErrNotExist)
	for _, content := range [][]byte{nil, s.public, curve} {
		_, err := PrivateKey(content)
		require.Error(t, err)
	}
}

func FuzzVerify(f *testing.F) {
	s := newSigner(f)
	k, _, _ := keysOf(f, s)
	f.Add(s.sign(f, grant()))
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, text string) {
		g, err := k.Verify(text)
		if err != nil {
			require.ErrorIs(t, err, ErrInvalid)
			return
		}
		require.NoError(t, g.check(noon), "only what was signed passes")
	})
}
