package node

import (
	"context"
	"errors"
	goflag "flag"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pairdb/pairdb/libs/service"
	"github.com/pairdb/pairdb/libs/sidecar"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
)

// defaultSocket is that of PAIRDB_SOCKET.
const defaultSocket = "/run/pairdb/node.sock"

// DrainCommand is the subcommand that has the node of this pod flush and be ready for a restart. Images
// have no shell: it is what a pod runs before it is stopped.
func DrainCommand() service.Command {
	return service.Command{
		Name: "drain", Summary: "[-timeout 60s] [-socket PATH]: have the running node of this pod refuse writes, flush and be ready for a restart",
		Run: runDrain,
	}
}

func runDrain(ctx context.Context, args []string, stdout, _ io.Writer) error {
	socket := os.Getenv("PAIRDB_SOCKET")
	if socket == "" {
		socket = defaultSocket
	}
	flags := goflag.NewFlagSet("drain", goflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&socket, "socket", socket, "the node's socket; PAIRDB_SOCKET")
	timeout := flags.Duration("timeout", time.Minute, "how long writes stay refused if the node is not stopped, and how long the flush may take; 1s to 1h")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, goflag.ErrHelp):
		fmt.Fprintln(stdout, "storage-node drain [flags]")
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		return nil
	case err != nil:
		return service.WithExitCode(service.ExitUsage, fmt.Errorf("drain: %w", err))
	case flags.NArg() > 0:
		return service.WithExitCode(service.ExitUsage, fmt.Errorf("drain: unexpected argument %q", flags.Arg(0)))
	case *timeout < time.Second || *timeout > time.Hour:
		return service.WithExitCode(service.ExitUsage, fmt.Errorf("drain: -timeout %s, 1s to 1h are allowed", *timeout))
	}
	return drain(ctx, socket, *timeout, stdout)
}

func drain(ctx context.Context, socket string, timeout time.Duration, stdout io.Writer) (err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := sidecar.Dial(socket)
	if err != nil {
		return service.WithExitCode(service.ExitUnreachable, err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	r, err := adminv1.NewAdminServiceClient(conn).Drain(ctx, &adminv1.DrainRequest{
		Kind: adminv1.DrainRequest_KIND_FLUSH, TimeoutMs: timeout.Milliseconds(), Reason: "storage-node drain",
	})
	switch code := status.Code(err); {
	case err == nil:
	case code == codes.Unavailable || code == codes.DeadlineExceeded || code == codes.PermissionDenied:
		return service.WithExitCode(service.ExitUnreachable, fmt.Errorf("drain: %s: %w", socket, err))
	default:
		return fmt.Errorf("drain: %w", err)
	}
	_, err = fmt.Fprintf(stdout, "flushed up to sequence %d; writes are refused for %s\n", r.GetSequence(), timeout)
	return err
}
