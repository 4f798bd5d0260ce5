// Package cluster runs several pods of the built binaries as one cluster, as processes of this machine, in
// network namespaces of their own or in containers, and takes processes, disks and links away from them. It
// never imports a service.
package cluster

import (
	"context"
	"errors"
	"time"
)

// Binary is a process of a node.
type Binary string

// The binaries of a node.
const (
	StorageNode Binary = "storage-node"
	Compactor   Binary = "compactor"
	Migrator    Binary = "migrator"
	HealthAgent Binary = "health-agent"
)

// Binaries are all of them.
var Binaries = []Binary{StorageNode, Compactor, Migrator, HealthAgent}

// ErrUnsupported says that a runner has no such fault: a scenario leaves it out.
var ErrUnsupported = errors.New("not with this runner")

// Process is one program of a node, which is started again when it dies.
type Process interface {
	// Kill ends it at once; it is started again.
	Kill() error
	// Pause stops it without its knowledge, Resume lets it go on.
	Pause() error
	Resume() error
	// Halt ends it at once and Stop by asking; nobody starts it again but Start. All wait for its end.
	Halt()
	Stop()
	Start() error
	// PID on this machine; 0 while it does not run.
	PID() int
}

// Disk is the volume of a node, if it is one that tests may fill.
type Disk interface {
	// Leave makes a share of the volume free, in percent, by a file that is not the node's.
	Leave(percent float64) error
	// Empty takes that file away.
	Empty() error
}

// Node is one pod.
type Node interface {
	// Name is the node's id.
	Name() string
	// Addr is where clients reach it: through Slow's proxy.
	Addr() string
	// OpsAddr is where a process shows its metrics.
	OpsAddr(Binary) string
	// Process is one of its programs.
	Process(Binary) Process
	// Ready asks the storage-node's /ready once.
	Ready(context.Context) bool
	// Broken is why a process of it has ended and is not started again by itself; nil: there is none.
	Broken() error
	// DataDir is the node's directory, Socket the path of its socket, on this machine.
	DataDir() string
	Socket() string
	// Disk is nil if the volume can't be filled.
	Disk() Disk
	// Slow delays each chunk of bytes between the node and its clients, and its peers where there is no
	// network between them; 0 ends it.
	Slow(time.Duration) error
	// Shift has the clocks that only run forward be ahead by d for a program, from its next start on.
	Shift(Binary, time.Duration) error
}

// Cluster is a set of nodes with a NATS server. A runner makes one: Local, Namespaces, Containers; a
// scenario asks for no more than this.
type Cluster interface {
	// Nodes are all nodes that were started, those that are stopped included.
	Nodes() []Node
	// Add starts one more node, which takes over its ranges before it is up.
	Add(context.Context) (Node, error)
	StopNATS()
	StartNATS() error
	// Cut drops everything that goes from one node to another: one way, or, where the network knows no less
	// than whole nodes, all that goes to and from the first one, its clients included. ErrUnsupported where
	// there is no network between them. Mend ends all cuts.
	Cut(from, to Node) error
	Mend() error
	// Close ends all processes.
	Close()
}
