package cmd

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/pairdb/pairdb/libs/client"
	"github.com/pairdb/pairdb/libs/service"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

func (a *app) tenantsCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "tenants",
		Short: "List, create, update and drop tenants of a node",
		Args:  exactArgs(),
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.tenantsListCmd(), a.tenantsCreateCmd(), a.tenantsUpdateCmd(), a.tenantsDropCmd())
	return c
}

// tenantFlags are what can be set of a tenant.
type tenantFlags struct {
	cmd           *cobra.Command
	operations    int64
	bytes, stored service.Bytes
	inFlight      int32
	conflicts     string
}

func newTenantFlags(cmd *cobra.Command) *tenantFlags {
	t, f := &tenantFlags{cmd: cmd}, cmd.Flags()
	f.Int64Var(&t.operations, "operations-per-second", 0, "keys read or written per second; 0 is no limit")
	f.TextVar(&t.bytes, "bytes-per-second", service.Bytes(0), "bytes read or written per second, e.g. 10MiB; 0 is no limit")
	f.Int32Var(&t.inFlight, "in-flight", 0, "requests that are worked on at once; 0 is no limit")
	f.TextVar(&t.stored, "stored-bytes", service.Bytes(0), "bytes on disk, e.g. 20GiB; 0 is no limit")
	f.StringVar(&t.conflicts, "conflicts", "keep-siblings", "what reads show of concurrent writes: keep-siblings, or last-writer-wins, which loses the others")
	return t
}

// tenantFlagNames are the names of all of them.
var tenantFlagNames = []string{"operations-per-second", "bytes-per-second", "in-flight", "stored-bytes", "conflicts"}

func (t *tenantFlags) given(name string) bool { return t.cmd.Flags().Changed(name) }

// quota returns q with what was given.
func (t *tenantFlags) quota(q *adminv1.TenantQuota) *adminv1.TenantQuota {
	out := &adminv1.TenantQuota{
		OperationsPerSecond: q.GetOperationsPerSecond(), BytesPerSecond: q.GetBytesPerSecond(),
		InFlight: q.GetInFlight(), StoredBytes: q.GetStoredBytes(),
	}
	if t.given("operations-per-second") {
		out.OperationsPerSecond = t.operations
	}
	if t.given("bytes-per-second") {
		out.BytesPerSecond = int64(t.bytes)
	}
	if t.given("in-flight") {
		out.InFlight = t.inFlight
	}
	if t.given("stored-bytes") {
		out.StoredBytes = int64(t.stored)
	}
	return out
}

// policy returns the policy for conflicts, unspecified if none was given.
func (t *tenantFlags) policy() (adminv1.ConflictPolicy, error) {
	if !t.given("conflicts") {
		return adminv1.ConflictPolicy_CONFLICT_POLICY_UNSPECIFIED, nil
	}
	name := "CONFLICT_POLICY_" + strings.ToUpper(strings.ReplaceAll(t.conflicts, "-", "_"))
	p, ok := adminv1.ConflictPolicy_value[name]
	if !ok || p == 0 {
		return 0, fmt.Errorf("%w: --conflicts is keep-siblings or last-writer-wins, not %q", errUsage, t.conflicts)
	}
	return adminv1.ConflictPolicy(p), nil
}

func (a *app) tenantsCreateCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a tenant known; repeating it with the same quota is safe",
		Args:  exactArgs("NAME"),
	}
	t := newTenantFlags(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		policy, err := t.policy()
		if err != nil {
			return err
		}
		return a.withClient(func(c *client.Client) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			r, err := c.Admin().CreateTenant(ctx, &adminv1.CreateTenantRequest{Name: args[0], Quota: t.quota(nil), Conflicts: policy})
			if err != nil {
				return fmt.Errorf("create tenant %s: %w", tenantName(args[0]), err)
			}
			return a.sayTenant("created", r.GetTenant())
		})
	}
	return c
}

func (a *app) tenantsUpdateCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "update NAME",
		Short: "Change limits or the policy of a tenant; what is not given stays",
		Args:  exactArgs("NAME"),
	}
	t := newTenantFlags(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		policy, err := t.policy()
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(tenantFlagNames, t.given) {
			return fmt.Errorf("%w: say what to change", errUsage)
		}
		return a.withClient(func(c *client.Client) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			list, err := c.Admin().ListTenants(ctx, &adminv1.ListTenantsRequest{})
			if err != nil {
				return fmt.Errorf("list tenants: %w", err)
			}
			var now *adminv1.TenantQuota
			for _, known := range list.GetTenants() {
				if known.GetName() == args[0] {
					now = known.GetQuota()
				}
			}
			r, err := c.Admin().UpdateTenant(ctx, &adminv1.UpdateTenantRequest{Name: args[0], Quota: t.quota(now), Conflicts: policy})
			if err != nil {
				return fmt.Errorf("update tenant %s: %w", tenantName(args[0]), err)
			}
			return a.sayTenant("updated", r.GetTenant())
		})
	}
	return c
}

func (a *app) tenantsDropCmd() *cobra.Command {
	var yes string
	c := &cobra.Command{
		Use:   "drop NAME --yes NAME",
		Short: "Remove a tenant with all that it stored, for good",
		Long: `drop refuses new requests of the tenant, waits for those in flight and removes all it stored. There is
no way back but a snapshot. --yes takes the name once more.`,
		Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if yes != args[0] {
				return fmt.Errorf("%w: drop removes all data of the tenant: confirm with --yes %s", errUsage, tenantName(args[0]))
			}
			return a.withClient(func(c *client.Client) error {
				r, err := c.Admin().DropTenant(cmd.Context(), &adminv1.DropTenantRequest{Name: args[0]})
				if err != nil {
					return fmt.Errorf("drop tenant %s: %w", tenantName(args[0]), err)
				}
				return a.sayTenant("dropped", r.GetTenant())
			})
		},
	}
	c.Flags().StringVar(&yes, "yes", "", "the name once more, as confirmation")
	return c
}

func (a *app) tenantsListCmd() *cobra.Command {
	var dropped bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the tenants that are known, with their limits and what they store",
		Args:  exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(func(c *client.Client) error {
				ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
				defer cancel()
				r, err := c.Admin().ListTenants(ctx, &adminv1.ListTenantsRequest{IncludeDropped: dropped})
				if err != nil {
					return fmt.Errorf("list tenants: %w", err)
				}
				if a.output == "json" {
					return a.printProto(r)
				}
				return a.printTenants(r)
			})
		},
	}
	c.Flags().BoolVar(&dropped, "dropped", false, "also those that were dropped")
	return c
}

func (a *app) printTenants(r *adminv1.ListTenantsResponse) error {
	t := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "tenant\tstate\tgeneration\tconflicts\toperations/s\tbytes/s\tin flight\tstored\tcreated")
	for _, x := range r.GetTenants() {
		q := x.GetQuota()
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%d of %s\t%s of %s\t%s\n", tenantName(x.GetName()),
			word("TENANT_STATE_", x.GetState().String()), x.GetGeneration(), word("CONFLICT_POLICY_", x.GetConflicts().String()),
			orNoLimit(q.GetOperationsPerSecond(), decimal), orNoLimit(q.GetBytesPerSecond(), humanBytes),
			x.GetInFlight(), orNoLimit(int64(q.GetInFlight()), decimal), humanBytes(x.GetStoredBytes()), orNoLimit(q.GetStoredBytes(), humanBytes),
			time.Unix(x.GetCreatedAt(), 0).UTC().Format(time.RFC3339))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if r.GetStrict() {
		fmt.Fprintln(a.Out, "all others are refused (PAIRDB_TENANTS=strict)")
	}
	return nil
}

// sayTenant prints what was done to a tenant.
func (a *app) sayTenant(done string, t *adminv1.Tenant) error {
	if a.output == "json" {
		return a.printProto(t)
	}
	return a.say(nil, "%s %s, generation %d", done, tenantName(t.GetName()), t.GetGeneration())
}

// tenantName quotes a name that a terminal could show as something else.
func tenantName(name string) string {
	if quoted := strconv.Quote(name); quoted != `"`+name+`"` || name == "" || strings.Contains(name, " ") {
		return quoted
	}
	return name
}

// word is the name of an enum's value in words.
func word(prefix, name string) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, prefix), "_", "-"))
}

func decimal(n int64) string { return strconv.FormatInt(n, 10) }

func orNoLimit(n int64, format func(int64) string) string {
	if n == 0 {
		return "-"
	}
	return format(n)
}
