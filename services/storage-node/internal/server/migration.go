package server

import (
	"google.golang.org/grpc"

	migrationv1 "github.com/pairdb/pairdb/proto/pairdb/migration/v1"
)

// migrationService serves the pod's migrator: the state of moves, and what they need of the node.
type migrationService struct {
	migrationv1.UnimplementedMigrationServiceServer
	s *Server
}

// RegisterMigration registers the service for the migrator.
func (s *Server) RegisterMigration(r grpc.ServiceRegistrar) {
	migrationv1.RegisterMigrationServiceServer(r, migrationService{s: s})
}
