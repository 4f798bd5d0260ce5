package server

import (
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	storagenodev1 "github.com/pairdb/pairdb/proto/coordinator/storage/v1"
	adminv1 "github.com/pairdb/pairdb/proto/pairdb/admin/v1"
	replicav1 "github.com/pairdb/pairdb/proto/pairdb/replica/v1"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"

	"github.com/pairdb/pairdb/libs/identity"
)

// Sets of roles that methods have in common.
const (
	// data: who owns data may read and write it. An operator is not among them: whoever has to do both has
	// a certificate with both roles.
	data = identity.Client | identity.Coordinator
	// coordinated: the contract of existing coordinators.
	coordinated = identity.Coordinator
	// copied: what a migrator sends to a node that it knows by that contract only.
	copied = identity.Coordinator | identity.Node
	// placed: clients and nodes have to know who is in the cluster.
	placed = identity.Anybody
	// looks: what changes nothing and shows no data.
	looks = identity.Operator | identity.Monitor
	// changes: what changes a node or the cluster.
	changes = identity.Operator
	// planned: what the migrator of a node asks another node for when it joins or compares.
	planned = identity.Operator | identity.Node
	// replicas: nodes among each other.
	replicas = identity.Node
)

// Roles says who may call which method on the TCP port. Every method that is served there has a row.
var Roles = identity.Table{
	storagev1.StorageService_Write_FullMethodName:       data,
	storagev1.StorageService_Read_FullMethodName:        data,
	storagev1.StorageService_Delete_FullMethodName:      data,
	storagev1.StorageService_Repair_FullMethodName:      data,
	storagev1.StorageService_BatchWrite_FullMethodName:  data,
	storagev1.StorageService_BatchRead_FullMethodName:   data,
	storagev1.StorageService_GetKeyRange_FullMethodName: data,
	storagev1.StorageService_StreamKeys_FullMethodName:  data,
	storagev1.StorageService_Watch_FullMethodName:       data,
	storagev1.StorageService_Pipeline_FullMethodName:    data,

	storagenodev1.StorageNodeService_Write_FullMethodName:                   coordinated,
	storagenodev1.StorageNodeService_Read_FullMethodName:                    coordinated,
	storagenodev1.StorageNodeService_Delete_FullMethodName:                  coordinated,
	storagenodev1.StorageNodeService_Repair_FullMethodName:                  coordinated,
	storagenodev1.StorageNodeService_ReplicateData_FullMethodName:           copied,
	storagenodev1.StorageNodeService_StreamKeys_FullMethodName:              coordinated,
	storagenodev1.StorageNodeService_GetKeyRange_FullMethodName:             coordinated,
	storagenodev1.StorageNodeService_DrainNode_FullMethodName:               coordinated,
	storagenodev1.StorageNodeService_StartStreaming_FullMethodName:          coordinated,
	storagenodev1.StorageNodeService_StopStreaming_FullMethodName:           coordinated,
	storagenodev1.StorageNodeService_GetStreamStatus_FullMethodName:         coordinated,
	storagenodev1.StorageNodeService_NotifyStreamingComplete_FullMethodName: copied,
	storagenodev1.StorageNodeService_HealthCheck_FullMethodName:             copied,

	adminv1.AdminService_Members_FullMethodName:       placed,
	adminv1.AdminService_WatchMembers_FullMethodName:  placed,
	adminv1.AdminService_Status_FullMethodName:        looks,
	adminv1.AdminService_ListSnapshots_FullMethodName: looks,
	adminv1.AdminService_Tables_FullMethodName:        looks,
	adminv1.AdminService_ListTenants_FullMethodName:   looks,
	adminv1.AdminService_Moves_FullMethodName:         looks | planned,
	adminv1.AdminService_WatchMoves_FullMethodName:    looks,
	adminv1.AdminService_Ranges_FullMethodName:        looks | planned,
	// Hot names keys, and Verify reads all tables.
	adminv1.AdminService_Hot_FullMethodName:            changes,
	adminv1.AdminService_Verify_FullMethodName:         changes,
	adminv1.AdminService_Flush_FullMethodName:          changes,
	adminv1.AdminService_Compact_FullMethodName:        changes,
	adminv1.AdminService_Snapshot_FullMethodName:       changes,
	adminv1.AdminService_DeleteSnapshot_FullMethodName: changes,
	adminv1.AdminService_CreateTenant_FullMethodName:   changes,
	adminv1.AdminService_UpdateTenant_FullMethodName:   changes,
	adminv1.AdminService_DropTenant_FullMethodName:     changes,
	adminv1.AdminService_RemoveMember_FullMethodName:   changes,
	adminv1.AdminService_SetLogLevel_FullMethodName:    changes,
	adminv1.AdminService_Drain_FullMethodName:          changes,
	adminv1.AdminService_Replicate_FullMethodName:      planned,
	adminv1.AdminService_Repair_FullMethodName:         changes,
	adminv1.AdminService_CancelMove_FullMethodName:     changes,
	adminv1.AdminService_FinishMove_FullMethodName:     changes,
	adminv1.AdminService_ResumeMove_FullMethodName:     changes,
	adminv1.AdminService_Cleanup_FullMethodName:        changes,

	replicav1.ReplicaService_Describe_FullMethodName:    replicas,
	replicav1.ReplicaService_Ingest_FullMethodName:      replicas,
	replicav1.ReplicaService_Digest_FullMethodName:      replicas,
	replicav1.ReplicaService_Leaves_FullMethodName:      replicas,
	replicav1.ReplicaService_KeyDigests_FullMethodName:  replicas,
	replicav1.ReplicaService_CompareKeys_FullMethodName: replicas,
	replicav1.ReplicaService_Fetch_FullMethodName:       replicas,
	replicav1.ReplicaService_Equal_FullMethodName:       replicas,
	replicav1.ReplicaService_Tenants_FullMethodName:     replicas,
	replicav1.ReplicaService_Prepare_FullMethodName:     replicas,
	replicav1.ReplicaService_Accept_FullMethodName:      replicas,
	replicav1.ReplicaService_Decline_FullMethodName:     replicas,

	healthv1.Health_Check_FullMethodName: identity.Anybody,
	healthv1.Health_Watch_FullMethodName: identity.Anybody,
	healthv1.Health_List_FullMethodName:  identity.Anybody,

	// With PAIRDB_REFLECTION.
	reflectionv1.ServerReflection_ServerReflectionInfo_FullMethodName:      changes,
	reflectionv1alpha.ServerReflection_ServerReflectionInfo_FullMethodName: changes,
}
