package server

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
)

var update = flag.Bool("update", false, "write the generated page instead of comparing it")

const errorsPage = "../../../../docs/ERRORS.md"

const errorsHead = `# Errors

Generated from the table in [errors.go](../services/storage-node/internal/server/errors.go) by
` + "`make docs`" + `.

Every error of a storage node is a gRPC status with a ` + "`google.rpc.ErrorInfo`" + `: the domain ` + "`pairdb`" + `, one
of the reasons below, and the metadata ` + "`retryable`" + `. Where the same call may succeed later there is a
` + "`google.rpc.RetryInfo`" + ` with the time to wait; the delay in the table is the default, an error may name
its own. An item of a batch or a pipeline that was refused has the same code, reason and delay in its
` + "`ItemError`" + `. The class is that of the HTTP status with this meaning.

| reason | code | class | retry after | when |
|---|---|---|---|---|
`

// class returns the HTTP status that means what a code means, as google.rpc.Code lists them.
func class(t *testing.T, c codes.Code) int {
	of := map[codes.Code]int{
		codes.InvalidArgument: 400, codes.FailedPrecondition: 400, codes.OutOfRange: 400, codes.Unauthenticated: 401,
		codes.PermissionDenied: 403, codes.NotFound: 404, codes.AlreadyExists: 409, codes.Aborted: 409, codes.ResourceExhausted: 429,
		codes.Canceled: 499, codes.Internal: 500, codes.DataLoss: 500, codes.Unimplemented: 501, codes.Unavailable: 503,
		codes.DeadlineExceeded: 504,
	}
	require.Contains(t, of, c)
	return of[c]
}

// Clients are written from this page: what it leaves out or says wrongly they get wrong.
func TestErrorsPageIsTheTable(t *testing.T) {
	var lines, seen []string
	for _, r := range append(slices.Clone(table), internal) {
		reason := r.reason + string(r.store)
		if slices.Contains(seen, reason) {
			require.Empty(t, r.when, "%s: the first row of a reason says when", reason)
			continue
		}
		seen = append(seen, reason)
		require.NotEmpty(t, r.when, "%s: say in the row when", reason)
		retry := "–"
		if r.retry > 0 {
			retry = r.retry.String()
		}
		lines = append(lines, fmt.Sprintf("| `%s` | %s | %d | %s | %s |\n", reason, wireName(r.code), class(t, r.code), retry, r.when))
	}
	want := errorsHead + strings.Join(lines, "")
	if *update {
		require.NoError(t, os.WriteFile(errorsPage, []byte(want), 0o644))
	}
	got, err := os.ReadFile(errorsPage)
	require.NoError(t, err)
	require.Equal(t, want, string(got), "run make docs")
}
