package sidecar_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/grpc"

	"github.com/pairdb/pairdb/libs/sidecar"
	nodev1 "github.com/pairdb/pairdb/proto/pairdb/node/v1"
)

func Example() {
	dir, err := os.MkdirTemp("", "pod")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // an example's
	socket := filepath.Join(dir, "node.sock")

	// The node.
	listener, err := sidecar.Listen(socket)
	if err != nil {
		panic(err)
	}
	server := grpc.NewServer(sidecar.ServerOptions(sidecar.SelfAccess())...)
	nodev1.RegisterNodeServiceServer(server, &node{session: 42})
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()

	// A sidecar.
	conn, err := sidecar.Dial(socket)
	if err != nil {
		panic(err)
	}
	id, err := sidecar.WaitForNode(context.Background(), conn)
	fmt.Println(id.NodeID, id.Session, err)

	_ = conn.Close()
	server.Stop()
	<-done
	// Output: n1 42 <nil>
}
