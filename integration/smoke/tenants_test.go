package smoke

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pairdb/pairdb/integration/podtest"
	"github.com/pairdb/pairdb/libs/localpod"
)

func TestTenantFromItsCreationToItsDrop(t *testing.T) {
	// What an operator types from the first page, and what a client then meets.
	pods, _ := podtest.Start(t, localpod.Options{})
	pod := pods.All()[0]
	out, _ := ctl(t, pod, 0, "tenants", "create", "shop", "--operations-per-second", "1000", "--stored-bytes", "1GiB")
	require.Equal(t, "created shop, generation 1\n", out)
	ctl(t, pod, 1, "tenants", "create", "shop", "--operations-per-second", "1")
	ctl(t, pod, 0, "--tenant", "shop", "put", "cart", "apples")
	ctl(t, pod, 0, "--tenant", "shop2", "put", "cart", "pears")
	out, _ = ctl(t, pod, 0, "tenants", "list")
	require.Regexp(t, `(?m)^shop +active +1 +keep-siblings +1000 +- +0 of - +.* of 1GiB +20`, out)
	ctl(t, pod, 4, "tenants", "create", "_tenants")
	_, stderr := ctl(t, pod, 4, "--tenant", "_tenants", "get", "shop")
	require.Contains(t, stderr, "reserved for the system")

	// A burst of one, and then not before its time.
	ctl(t, pod, 0, "tenants", "update", "shop", "--bytes-per-second", "1B")
	ctl(t, pod, 0, "--tenant", "shop", "put", "big", strings.Repeat("x", 1000))
	_, stderr = ctl(t, pod, 1, "--tenant", "shop", "get", "cart")
	require.Contains(t, stderr, "quota bytes_per_second of 1")
	ctl(t, pod, 0, "--tenant", "shop2", "get", "cart")

	ctl(t, pod, 2, "tenants", "drop", "shop")
	out, _ = ctl(t, pod, 0, "tenants", "drop", "shop", "--yes", "shop")
	require.Equal(t, "dropped shop, generation 1\n", out)
	_, stderr = ctl(t, pod, 3, "--tenant", "shop", "put", "cart", "apples")
	require.Contains(t, stderr, "was dropped")
	out, _ = ctl(t, pod, 0, "--tenant", "shop2", "get", "cart")
	require.Equal(t, "pears\n", out)
	out, _ = ctl(t, pod, 0, "tenants", "create", "shop")
	require.Equal(t, "created shop, generation 2\n", out)
	ctl(t, pod, 3, "--tenant", "shop", "get", "cart")
}
