package cmd

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/pairdb/pairdb/libs/token"
)

func (a *app) tokenCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "token",
		Short: "Make keys, and tokens that say which tenants an application may read or write",
		Long: `Nodes that have PAIRDB_TOKEN_KEYS ask clients for a token beside their certificate (docs/SECURITY.md). A token
names tenants, says whether they may be read, written or both, and counts for a day at most.

  pairctl token keygen --dir keys                        once: keys/token.key signs, keys/token.pub is for the nodes
  pairctl token issue --key keys/token.key --subject shop --tenants shop,cart --verbs read,write >shop.token
  pairctl --token-file shop.token --tenant cart get k`,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.tokenKeygenCmd(), a.tokenIssueCmd())
	return c
}

func (a *app) tokenKeygenCmd() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "keygen",
		Short: "Make a pair of keys in --dir: token.key signs tokens, token.pub checks them",
		Long: `keygen makes token.key, which signs and is kept where tokens are made, and token.pub, which goes to the nodes:
PAIRDB_TOKEN_KEYS names a file with one or several of them. Keys that are there are not replaced. To change a key, give
the nodes both public keys, sign with the new one, and take the old one away a day later.`,
		Args: exactArgs(),
		RunE: func(*cobra.Command, []string) error { return a.tokenKeygen(dir) },
	}
	c.Flags().StringVar(&dir, "dir", "keys", "directory of the keys; it is made if it is not there")
	return c
}

func (a *app) tokenKeygen(dir string) error {
	private, public, err := token.Generate()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("%w: %w", errInput, err)
	}
	for _, f := range []struct {
		name    string
		content []byte
		mode    os.FileMode
		what    string
	}{{"token.key", private, 0o600, "signs tokens"}, {"token.pub", public, 0o644, "for PAIRDB_TOKEN_KEYS of the nodes"}} {
		path := filepath.Join(dir, f.name)
		if err := createFile(path, f.content, f.mode); err != nil {
			return fmt.Errorf("%w: %w", errInput, err)
		}
		fmt.Fprintf(a.Out, "%s: %s\n", path, f.what)
	}
	return nil
}

// createFile makes a file that must not be there.
func createFile(path string, content []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		f.Close() //nolint:errcheck // the other error counts
		return err
	}
	return f.Close()
}

func (a *app) tokenIssueCmd() *cobra.Command {
	var key, cluster, verbs string
	var g token.Grant
	var valid time.Duration
	c := &cobra.Command{
		Use:   "issue",
		Short: "Print a token that is signed with --key",
		Args:  exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			content, err := os.ReadFile(key)
			if err != nil {
				return fmt.Errorf("%w: --key: %w", errInput, err)
			}
			private, err := token.PrivateKey(content)
			if err != nil {
				return fmt.Errorf("%w: --key %s: %w", errInput, key, err)
			}
			if g.Verbs, err = token.ParseVerbs(verbs); err != nil {
				return fmt.Errorf("%w: --verbs: %w", errUsage, err)
			}
			now := time.Now()
			g.Expires = now.Add(valid)
			text, err := token.Sign(private, cluster, g, now)
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			fmt.Fprintln(a.Out, text)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&key, "key", filepath.Join("keys", "token.key"), "file with the private key")
	f.StringVar(&cluster, "cluster", "pairdb", "PAIRDB_CLUSTER_ID of the nodes")
	f.StringVar(&g.Subject, "subject", "", "who it is for; stands in the logs of nodes that refuse it")
	f.StringSliceVar(&g.Tenants, "tenants", nil, `tenants that it is good for; "*": all`)
	f.StringVar(&verbs, "verbs", "read", "what it is good for: read, write or read,write")
	f.DurationVar(&valid, "valid", time.Hour, fmt.Sprintf("how long it counts, up to %s", token.MaxLifetime))
	return c
}
