package cmd

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/identity"
	"github.com/pairdb/pairdb/libs/identity/authority"
	"github.com/pairdb/pairdb/libs/service"
)

// dial returns a client of a node, with the certificate that flags and environment name.
func (a *app) dial(addr string, o client.Options) (*client.Client, error) {
	var p service.Problems
	a.tls.CheckTLS(&p)
	if err := p.Err(); err != nil {
		return nil, err
	}
	if a.tls.Enabled() {
		s, err := identity.Open(a.tls, slog.New(slog.DiscardHandler))
		if err != nil {
			return nil, err
		}
		o.DialOptions = append(slices.Clip(o.DialOptions), s.DialOption())
		if a.serverName != "" {
			o.DialOptions = append(o.DialOptions, grpc.WithAuthority(a.serverName))
		}
	}
	if a.tokenFile != "" {
		if !a.tls.Enabled() {
			return nil, errors.New("--token-file needs --tls-cert, --tls-key and --tls-ca: a token is not sent in the clear")
		}
		o.Token = client.TokenFromFile(a.tokenFile)
	}
	return client.New(addr, o)
}

// maxValid is how long a development certificate may be good for.
const maxValid = 10 * 365 * 24 * time.Hour

func (a *app) certsCmd() *cobra.Command {
	var dir, file string
	var l authority.Leaf
	c := &cobra.Command{
		Use:   "certs [ROLE…]",
		Short: "Make a development authority, and certificates of it",
		Long: `certs makes an authority in --dir unless there is one, and a certificate with its key for each role:
` + strings.Join(identity.RoleNames(), ", ") + `; without arguments for all of them. The files are ROLE.pem, ROLE.key and ca.pem; those that
are there are replaced, and running processes take the new ones up by themselves. With --file one
certificate has all the roles that are named. nats in place of a role is the certificate of a NATS server
at --hosts: it has none, so that nobody takes that server for a node. The key of the authority lies beside
it: for production use one that is kept apart (docs/SECURITY.md).

  pairctl certs --dir tls --hosts localhost,127.0.0.1
  pairctl certs --dir tls client --name shop
  pairctl certs --dir tls operator client --file admin
  pairctl certs --dir tls nats --hosts nats,localhost`,
		RunE: func(_ *cobra.Command, roles []string) error {
			if len(roles) == 0 {
				roles = identity.RoleNames()
			}
			if slices.Equal(roles, []string{natsServer}) {
				return a.certs(dir, file, roles, l)
			}
			for _, r := range roles {
				if _, err := identity.ParseRole(r); err != nil {
					return fmt.Errorf("%w: %w", errUsage, err)
				}
			}
			if l.Valid < time.Minute || l.Valid > maxValid {
				return fmt.Errorf("%w: --valid is 1m to %s", errUsage, maxValid)
			}
			return a.certs(dir, file, roles, l)
		},
	}
	f := c.Flags()
	f.StringVar(&dir, "dir", "tls", "directory of the authority and its certificates")
	f.StringVar(&l.Cluster, "cluster", "pairdb", "PAIRDB_CLUSTER_ID of the nodes")
	f.StringVar(&l.Name, "name", "", "name of the process or person, for logs")
	f.StringVar(&file, "file", "", "make one certificate with all roles, in FILE.pem and FILE.key")
	f.StringSliceVar(&l.Hosts, "hosts", []string{"localhost", "127.0.0.1", "::1"}, "names and addresses at which nodes are reached")
	f.DurationVar(&l.Valid, "valid", 90*24*time.Hour, "how long the certificates are good for")
	return c
}

// natsServer stands in the place of a role, and is the name of its files unless they have another one.
const natsServer = "nats"

func (a *app) certs(dir, file string, roles []string, l authority.Leaf) error {
	ca, err := authority.Open(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", errInput, err)
	}
	sets := make([][]string, len(roles))
	for i, r := range roles {
		sets[i] = []string{r}
	}
	if file != "" {
		if file != filepath.Base(file) || file == "ca" || strings.HasPrefix(file, ".") {
			return fmt.Errorf("%w: --file %q is not the name of a file in --dir", errUsage, file)
		}
		sets = [][]string{roles}
	}
	hosts := l.Hosts
	for _, set := range sets {
		l.File, l.Roles, l.Hosts = file, set, nil
		switch {
		case slices.Equal(set, []string{natsServer}):
			l.File, l.Roles, l.Hosts = cmp.Or(file, natsServer), nil, hosts
		case slices.Contains(set, identity.Node.String()):
			l.Hosts = hosts // who has none can be no server
		}
		files, err := ca.Issue(l)
		if err != nil {
			return fmt.Errorf("%w: %w", errInput, err)
		}
		fmt.Fprintf(a.Out, "%s: %s\n", strings.Join(set, "+"), files.TLSCert)
	}
	fmt.Fprintf(a.Out, "authority: %s\n", ca.CertPath())
	return nil
}
