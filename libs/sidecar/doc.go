// Package sidecar is gRPC over the unix socket that joins the processes of one pod: how the node
// listens, how a sidecar dials and waits, and who may call what. It never crosses a machine: what
// leaves the pod is not its business.
//
// # Who may call what
//
// The kernel tells the node the user id of whoever dialed (SO_PEERCRED), so there is nothing to
// present and nothing to steal. Access says which service each user id may call; the node asks it
// before every call and every stream:
//
//	access := sidecar.Access{1001: {sidecar.All}, 1002: {"compaction", "node"}}
//	server := grpc.NewServer(sidecar.ServerOptions(access)...)
//	listener, err := sidecar.Listen("/run/pairdb/node.sock")
//	go server.Serve(listener)
//
// Process ids are not looked at: across containers the kernel reports 0.
//
// # Dialing
//
//	conn, err := sidecar.Dial("/run/pairdb/node.sock")
//	id, err := sidecar.WaitForNode(ctx, conn)
//
// The socket may not exist yet, may be a stale file, or belong to a node that restarts: the
// connection tries again with a back-off, and calls wait for it until their context ends.
package sidecar
