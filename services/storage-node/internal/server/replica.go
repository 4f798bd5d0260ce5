package server

import (
	"google.golang.org/grpc"

	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
)

// replicaService serves the migrators of other pods, and of this one, with records as they are stored.
type replicaService struct {
	replicav1.UnimplementedReplicaServiceServer
	s *Server
}

// RegisterReplica registers the service for migrators.
func (s *Server) RegisterReplica(r grpc.ServiceRegistrar) {
	replicav1.RegisterReplicaServiceServer(r, replicaService{s: s})
}
