package metrics

import (
	"fmt"
	"math"
)

// expect is what a metric, or those of its series with some labels, must have done in TestEveryMetricMoves.
type expect struct {
	labels string // "a=b,c=d"; empty: any
	what   string
	ok     func([]past) bool
}

// rises: a counter counted, a histogram got values.
func rises(labels ...string) []expect {
	return each(labels, "rises", func(all []past) bool {
		for _, p := range all {
			if p.rose {
				return true
			}
		}
		return false
	})
}

// seen: a gauge was above 0 at some time.
func seen(labels ...string) []expect {
	return each(labels, "is above 0 at some time", func(all []past) bool { return highest(all) > 0 })
}

// comesAndGoes: a gauge was above 0 at some time, and 0 at another.
func comesAndGoes(labels ...string) []expect {
	return each(labels, "is above 0 at some time and 0 at another", func(all []past) bool {
		for _, p := range all {
			if p.max > 0 && p.min == 0 {
				return true
			}
		}
		return false
	})
}

// always: the metric was v whenever it was looked at.
func always(v float64, labels ...string) []expect {
	return each(labels, fmt.Sprintf("is %g whenever it is there", v), func(all []past) bool {
		for _, p := range all {
			if p.min != v || p.max != v {
				return false
			}
		}
		return len(all) > 0
	})
}

// becomes: the metric was v when it was looked at last.
func becomes(v float64, labels ...string) []expect {
	return each(labels, fmt.Sprintf("is %g at the end", v), func(all []past) bool {
		for _, p := range all {
			if p.value == v {
				return true
			}
		}
		return false
	})
}

func each(labels []string, what string, ok func([]past) bool) []expect {
	if len(labels) == 0 {
		labels = []string{""}
	}
	var out []expect
	for _, l := range labels {
		out = append(out, expect{l, what, ok})
	}
	return out
}

func highest(all []past) float64 {
	top := math.Inf(-1)
	for _, p := range all {
		top = max(top, p.max)
	}
	return top
}

func both(a, b []expect) []expect { return append(a, b...) }

// expectations are what work does to every metric of docs/METRICS.md but those of unitTested. A new
// metric needs a row.
var expectations = map[string][]expect{
	"pairdb_build_info": always(1),

	// storage-node: requests.
	"pairdb_storage_write_requests_total":             rises("result=success", "result=rejected"),
	"pairdb_storage_write_requests_duration_seconds":  rises(),
	"pairdb_storage_write_requests_bytes":             rises(),
	"pairdb_storage_write_items_total":                rises(),
	"pairdb_storage_read_requests_total":              rises("result=success", "result=rejected"),
	"pairdb_storage_read_requests_duration_seconds":   rises(),
	"pairdb_storage_read_requests_bytes":              rises(),
	"pairdb_storage_read_items_total":                 rises(),
	"pairdb_storage_repair_requests_total":            rises("result=success"),
	"pairdb_storage_repair_requests_duration_seconds": rises(),
	"pairdb_storage_other_requests_total":             rises("result=success"),
	"pairdb_storage_other_requests_duration_seconds":  rises(),
	"pairdb_storage_request_errors_total": rises("reason=CONDITION_FAILED", "reason=INVALID_ARGUMENT_KEY", "reason=QUOTA_EXCEEDED",
		"reason=OVERLOADED", "reason=UNIMPLEMENTED", "reason=IDEMPOTENCY_KEY_REUSED", "reason=TENANT_NOT_FOUND"),
	"pairdb_storage_batch_items":               rises("kind=read", "kind=write"),
	"pairdb_storage_pipeline_operations_total": rises("kind=read", "kind=write"),
	"pairdb_storage_write_outcomes_total": rises("outcome=applied", "outcome=duplicate", "outcome=stale", "outcome=sibling",
		"outcome=joined"),
	"pairdb_storage_idempotency_records_total": rises(),
	"pairdb_storage_idempotency_replays_total": rises(),
	"pairdb_storage_read_misses_total":         rises(),
	"pairdb_storage_read_siblings_total":       rises(),
	"pairdb_storage_scan_records_total":        rises(),
	"pairdb_storage_scan_bytes_total":          rises(),
	"pairdb_storage_watch_changes_total":       rises(),
	"pairdb_storage_watch_bytes_total":         rises(),
	"pairdb_coordinator_writes_total":          rises("outcome=applied", "outcome=duplicate", "outcome=stale", "outcome=sibling"),
	"pairdb_coordinator_registered":            becomes(1),
	"pairdb_grpc_requests_total": rises("method=Write,code=OK", "method=Read,code=OK", "method=Lease,code=OK", "method=StreamKeys,code=OK",
		"method=Pipeline,code=OK", "method=Write,code=ResourceExhausted", "method=other,code=Unimplemented"),
	"pairdb_grpc_requests_in_flight":                 both(comesAndGoes("listener=tcp"), seen("listener=socket")),
	"pairdb_grpc_requests_in_flight_limit":           seen("listener=tcp", "listener=socket"),
	"pairdb_grpc_in_flight_refusals_total":           rises("listener=tcp"),
	"pairdb_grpc_connections_total":                  rises("listener=tcp", "listener=socket"),
	"pairdb_grpc_streams_open":                       comesAndGoes("kind=pipeline,listener=tcp", "kind=watch,listener=tcp", "kind=scan,listener=tcp"),
	"pairdb_grpc_streams_total":                      rises("kind=pipeline", "kind=watch", "kind=scan", "kind=other"),
	"pairdb_storage_pipeline_writes_in_flight":       comesAndGoes(),
	"pairdb_storage_pipeline_writes_in_flight_limit": becomes(maxInFlight),
	"pairdb_storage_pipelines_waiting":               comesAndGoes(),

	// storage-node: tenants.
	"pairdb_tenants":                      seen("state=active", "state=dropped"),
	"pairdb_tenants_limit":                always(10_000),
	"pairdb_tenant_requests_total":        rises("tenant=limited", "tenant=_other"),
	"pairdb_tenant_bytes_total":           rises("tenant=limited", "tenant=_other"),
	"pairdb_tenant_quota_refusals_total":  rises("tenant=limited,quota=operations_per_second"),
	"pairdb_tenant_stored_bytes":          seen("tenant=bulk"),
	"pairdb_tenant_requests_in_flight":    comesAndGoes("tenant=_other"),
	"pairdb_storage_snapshots_kept":       comesAndGoes(),
	"pairdb_storage_snapshots_kept_limit": always(256),

	// storage-node: writes and memtables.
	"pairdb_storage_changes_total":             rises(),
	"pairdb_storage_change_bytes_total":        rises(),
	"pairdb_storage_writes_delayed_total":      rises(),
	"pairdb_storage_write_delay_seconds_total": rises(),
	"pairdb_storage_write_delay_seconds":       comesAndGoes(),
	"pairdb_storage_writes_refused_total":      rises(),
	"pairdb_storage_write_pressure":            comesAndGoes("state=none", "state=delayed", "state=refused"),
	"pairdb_storage_applied_sequence":          seen(),
	"pairdb_storage_visible_sequence":          seen(),
	"pairdb_storage_flushed_sequence":          seen(),
	"pairdb_storage_events_total":              rises("kind=flushed", "kind=pressure", "kind=installed"),
	"pairdb_memtable_size_bytes":               seen(),
	"pairdb_memtable_entries_total":            seen(),
	"pairdb_memtable_immutables_limit":         always(2),
	"pairdb_memtable_flushes_total":            rises(),
	"pairdb_memtable_flush_duration_seconds":   rises(),
	"pairdb_memtable_flushed_bytes_total":      rises(),
	"pairdb_memtable_rotations_total":          rises(),

	// storage-node: commit log and change feed.
	"pairdb_commitlog_segments_total":          seen(),
	"pairdb_commitlog_size_bytes":              seen(),
	"pairdb_commitlog_appends_total":           rises(),
	"pairdb_commitlog_append_duration_seconds": rises(),
	"pairdb_commitlog_syncs_total":             rises(),
	"pairdb_commitlog_sync_duration_seconds":   rises(),
	"pairdb_commitlog_batches_total":           rises(),
	"pairdb_commitlog_groups_total":            rises(),
	"pairdb_commitlog_group_batches":           rises(),
	"pairdb_commitlog_payload_bytes_total":     rises(),
	"pairdb_commitlog_written_bytes_total":     rises(),
	"pairdb_commitlog_rotations_total":         rises(),
	"pairdb_commitlog_segments_created_total":  rises(),
	"pairdb_commitlog_segments_recycled_total": rises(),
	"pairdb_commitlog_segments_spare":          seen(),
	"pairdb_commitlog_segments_pinned":         comesAndGoes(),
	"pairdb_commitlog_recovery_seconds":        seen(),
	"pairdb_commitlog_recovery_bytes":          seen(),
	"pairdb_commitlog_recovery_replayed_bytes": seen(),
	"pairdb_storage_tails_open":                comesAndGoes(),
	"pairdb_storage_tail_pins_limit":           always(64),
	"pairdb_storage_tail_retention_bytes":      always(1 << 30),

	// storage-node: reads, tables, caches.
	"pairdb_storage_merged_reads_total":     rises(),
	"pairdb_storage_snapshots_open":         comesAndGoes(),
	"pairdb_storage_iterators_open":         comesAndGoes(),
	"pairdb_storage_read_states_open":       seen(),
	"pairdb_storage_versions_open":          seen(),
	"pairdb_cache_hits_total":               rises("cache=row"),
	"pairdb_cache_misses_total":             rises("cache=row", "cache=block"),
	"pairdb_cache_evictions_total":          rises("cache=row"),
	"pairdb_cache_size_bytes":               seen("cache=row"),
	"pairdb_cache_entries_total":            seen("cache=row"),
	"pairdb_cache_capacity_bytes":           seen("cache=row", "cache=block"),
	"pairdb_cache_inserts_total":            rises("cache=row"),
	"pairdb_cache_refused_total":            rises("cache=row"),
	"pairdb_sstable_count_by_level":         comesAndGoes("level=0"),
	"pairdb_sstable_size_bytes_by_level":    comesAndGoes("level=0"),
	"pairdb_sstable_level_score":            seen("level=0"),
	"pairdb_sstable_level_target_bytes":     seen(),
	"pairdb_sstable_reads_total":            rises(),
	"pairdb_sstable_read_duration_seconds":  rises(),
	"pairdb_sstable_writes_total":           rises(),
	"pairdb_sstable_write_duration_seconds": rises(),
	"pairdb_sstable_probes_total":           rises(),
	"pairdb_sstable_filter_skips_total":     rises(),
	"pairdb_sstable_open":                   seen(),
	"pairdb_sstable_open_limit":             always(1000),
	"pairdb_sstable_opens_total":            rises(),
	"pairdb_sstable_deleted_total":          rises(),
	"pairdb_sstable_deleted_bytes_total":    rises(),

	// storage-node: compaction.
	"pairdb_compaction_workers":               comesAndGoes(),
	"pairdb_compaction_worker_slots":          seen(),
	"pairdb_compaction_queue_length":          comesAndGoes(),
	"pairdb_compaction_queue_limit":           always(1024),
	"pairdb_compaction_jobs":                  both(comesAndGoes("state=queued"), comesAndGoes("state=leased")),
	"pairdb_compaction_leases":                comesAndGoes("origin=external"),
	"pairdb_compaction_jobs_total":            rises("status=installed", "status=expired"),
	"pairdb_compaction_events_total":          rises("kind=leased", "kind=installed", "kind=expired"),
	"pairdb_compaction_installed_total":       rises("origin=external"),
	"pairdb_compaction_installed_bytes_total": rises("origin=external,direction=read", "origin=external,direction=written"),
	"pairdb_compaction_offered_total":         rises(),
	"pairdb_compaction_job_duration_seconds":  rises(),
	"pairdb_compaction_bytes_processed_total": rises(),
	"pairdb_compaction_bytes_written_total":   rises(),
	"pairdb_compaction_tables_input":          rises(),
	"pairdb_compaction_tables_output":         rises(),
	"pairdb_compaction_debt_bytes":            comesAndGoes(),
	"pairdb_compaction_debt_slow_bytes":       always(16 << 30),
	"pairdb_compaction_debt_stop_bytes":       always(64 << 30),
	"pairdb_compaction_level0_slow_tables":    always(20),
	"pairdb_compaction_level0_stop_tables":    always(36),
	"pairdb_compaction_reserved_bytes":        comesAndGoes(),

	// storage-node: the disk.
	"pairdb_storage_disk_free_bytes":  seen(),
	"pairdb_storage_disk_total_bytes": seen(),
	"pairdb_storage_disk_state":       seen("state=ok"),

	// compactor.
	"pairdb_compactor_connected":               seen(),
	"pairdb_compactor_slots":                   seen(),
	"pairdb_compactor_running_jobs":            comesAndGoes(),
	"pairdb_compactor_polls_total":             rises("result=jobs"),
	"pairdb_compactor_leases_total":            rises(),
	"pairdb_compactor_heartbeats_total":        rises("result=continue"),
	"pairdb_compactor_jobs_total":              rises("kind=merge,result=installed"),
	"pairdb_compactor_job_seconds":             rises("kind=merge"),
	"pairdb_compactor_bytes_total":             rises("direction=read", "direction=written"),
	"pairdb_compactor_entries_total":           rises("fate=out", "fate=shadowed"),
	"pairdb_compactor_throttled_seconds_total": rises(),

	// migrator: what it is. Moves need a second node.
	"pairdb_migrator_connected": seen(),
	"pairdb_migrator_slots":     seen(),

	// storage-node: the machine and the node's own health. health-agent. Events.
	"pairdb_system_disk_usage_bytes":           seen(),
	"pairdb_system_disk_available_bytes":       seen(),
	"pairdb_system_disk_usage_percent":         seen(),
	"pairdb_system_memory_usage_bytes":         seen(),
	"pairdb_system_goroutines_total":           seen(),
	"pairdb_system_open_files":                 seen(),
	"pairdb_system_open_files_limit":           seen(),
	"pairdb_storage_memory_state":              seen("state=ok"),
	"pairdb_storage_ready":                     seen(),
	"pairdb_storage_live":                      seen(),
	"pairdb_storage_degraded":                  comesAndGoes("reason=pressure"),
	"pairdb_gossip_members_total":              seen(),
	"pairdb_gossip_members_healthy":            seen(),
	"pairdb_gossip_messages_total":             rises(),
	"pairdb_gossip_members":                    seen(),
	"pairdb_health_live":                       seen(),
	"pairdb_health_ready":                      seen(),
	"pairdb_health_node_reachable":             seen(),
	"pairdb_health_reports_total":              rises(),
	"pairdb_event_outbox_capacity":             seen(),
	"pairdb_event_published_total":             rises(),
	"pairdb_event_connected":                   seen(),
	"pairdb_system_memory_limit_bytes":         seen(),
	"pairdb_storage_sidecar_last_seen_seconds": seen("sidecar=compactor", "sidecar=health-agent"),
	"pairdb_gossip_joined":                     seen(),
}

// unitTested are the metrics that work from outside cannot move, or not for certain: what they stand for
// is injected by the test that is named here.
var unitTested = map[string]string{
	"pairdb_tls_certificate_expiry_timestamp_seconds": "TestCertificateAndAuthorityAreReplacedWithoutAFailedCall",
	"pairdb_tls_certificate_reloads_total":            "TestCertificateAndAuthorityAreReplacedWithoutAFailedCall",
	"pairdb_tls_refusals_total":                       "TestRefusedConnections",
	"pairdb_ownership_ranges":                         "TestAPreparedRangeIsRefusedThroughARestart",
	"pairdb_ownership_refused_total":                  "TestAPreparedRangeIsRefusedThroughARestart",
	"pairdb_migrator_repair_runs_total":               "TestMetricsOfRepairs",
	"pairdb_migrator_repair_compared_keys_total":      "TestMetricsOfRepairs",
	"pairdb_migrator_repair_repaired_keys_total":      "TestMetricsOfRepairs",
	"pairdb_migrator_repair_sent_bytes_total":         "TestMetricsOfRepairs",
	"pairdb_migrator_repair_last_duration_seconds":    "TestMetricsOfRepairs",
	"pairdb_migrator_repair_waiting_peers":            "TestMetricsOfRepairs",
	"pairdb_storage_stalled_seconds":                  "TestNodeEndsWhenTheDiskHangsForTooLong",
	"pairdb_event_outbox_length":                      "TestNodeRunsWithoutNATS",
	"pairdb_event_outbox_oldest_seconds":              "TestNodeRunsWithoutNATS",
	"pairdb_event_outbox_memory":                      "TestDiskThatFailsLeavesEventsInMemory",
	"pairdb_event_dropped_total":                      "TestNodeRunsWithoutNATS",
	"pairdb_event_publish_failures_total":             "TestPublisherWithoutPermissionKeepsEventsAndSaysSo",
	"pairdb_event_connection_refusals_total":          "TestWrongCredentialsAreSaidOnceAndRetried",
	"pairdb_gossip_refused_total":                     "TestOtherClustersAndNoiseAreRefusedAndChangeNothing",
	"pairdb_gossip_messages_duration_seconds":         "TestMetricsCarryTheNodeAndChange",
	"pairdb_health_degraded":                          "TestMetricsCarryTheNodeAndChange",
	"pairdb_command_requests_total":                   "TestStageAnswersForTheNodeOfTheSocket",
	"pairdb_replica_exported_records_total":           "TestAMoveOverTheWire",
	"pairdb_replica_exported_bytes_total":             "TestAMoveOverTheWire",
	"pairdb_replica_followed_records_total":           "TestAMoveOverTheWire",
	"pairdb_replica_followed_bytes_total":             "TestAMoveOverTheWire",
	"pairdb_replica_ingested_records_total":           "TestAMoveOverTheWire",
	"pairdb_replica_ingested_bytes_total":             "TestAMoveOverTheWire",
	"pairdb_replica_skipped_records_total":            "TestRecordsOfDroppedTenantsAreNotStored",
	"pairdb_replica_digested_records_total":           "TestAMoveOverTheWire",
	"pairdb_replica_renewed_trees_total":              "TestAMoveOverTheWire",
	"pairdb_replica_digested_bytes_total":             "TestAMoveOverTheWire",
	"pairdb_replica_fetched_records_total":            "TestAMoveOverTheWire",
	"pairdb_replica_fetched_bytes_total":              "TestAMoveOverTheWire",
	"pairdb_replica_ingest_streams":                   "TestStreamsAreRefusedAtTheirStart",
	"pairdb_replica_trees":                            "TestAMoveOverTheWire",
	"pairdb_move_active":                              "TestMetricsOfMoves",
	"pairdb_move_total":                               "TestMetricsOfMoves",
	"pairdb_move_bytes_total":                         "TestMetricsOfMoves",
	"pairdb_move_lag_seconds":                         "TestMetricsOfMoves",
	"pairdb_drain_active":                             "TestNodeRemembersWhatItWantsAndItsMoves",
	"pairdb_storage_poisoned":                         "TestFailedSyncPoisonsAndShowsNothing",
	"pairdb_storage_write_conflicts_total":            "TestConditionFailsWhenSomethingNewerIsThere",
	"pairdb_storage_tail_pins":                        "TestFollowersAreCountedWhileTheyFollow",
	"pairdb_storage_write_stalls_total":               "TestFailedFlushNeverLosesItsMemtable",
	"pairdb_storage_write_stall_seconds_total":        "TestFailedFlushNeverLosesItsMemtable",
	"pairdb_memtable_flush_failures_total":            "TestFailedFlushNeverLosesItsMemtable",
	"pairdb_memtable_immutables":                      "TestFailedFlushNeverLosesItsMemtable",
	"pairdb_memtable_immutable_size_bytes":            "TestFailedFlushNeverLosesItsMemtable",
	"pairdb_commitlog_queue_length":                   "TestWritersThatWaitTogetherShareOneSync",
	"pairdb_commitlog_failed_writes_total":            "TestAFailedWriteSealsTheSegment",
	"pairdb_commitlog_torn_tails_total":               "TestTornTailIsCutAndDamageRefused",
	"pairdb_commitlog_torn_bytes_total":               "TestTornTailIsCutAndDamageRefused",
	"pairdb_commitlog_segments_prewritten_total":      "TestALogThatIsSyncedOftenMovesToAPrewrittenSegment",
	"pairdb_commitlog_segments_removed_total":         "TestTrimmedSegmentsAreRemovedWhenNoneAreKept",
	"pairdb_sstable_quarantined":                      "TestMissingTableIsQuarantinedAndSaid",
	"pairdb_sstable_corrupt_reads_total":              "TestMissingTableIsQuarantinedAndSaid",
	"pairdb_sstable_ingests_total":                    "TestIngestJoinsWithWhatIsThere",
	"pairdb_sstable_ingested_total":                   "TestIngestJoinsWithWhatIsThere",
	"pairdb_sstable_ingested_bytes_total":             "TestIngestJoinsWithWhatIsThere",
	"pairdb_sstable_obsolete":                         "TestTablesThatWaitForTheirDeletionAreCounted",
	"pairdb_sstable_obsolete_size_bytes":              "TestTablesThatWaitForTheirDeletionAreCounted",
	"pairdb_compaction_moves_total":                   "TestRangeDeleteOfAWholeTenantFreesItsTablesAtOnce",
	"pairdb_compaction_worker_losses_total":           "TestLocalExecutorWaitsForThirtySecondsWithoutWorkers",
	"pairdb_compaction_space_refusals_total":          "TestLeaseKeepsHeadroom",
	"pairdb_compaction_scrubbed_total":                "TestIdleWorkersScrubTableAfterTable",
	"pairdb_compaction_corrupt_tables_total":          "TestScrubFindsDamageThatTheNodeConfirms",
	"pairdb_compactor_abandons_total":                 "TestShutdownGivesJobsBack",
	"pairdb_gc_cut_ranges":                            "TestEqualityIsToldOverTheWire",
	"pairdb_antientropy_ranges":                       "TestEqualityIsToldOverTheWire",
	"pairdb_antientropy_equal_age_seconds":            "TestEqualityIsToldOverTheWire",
	"pairdb_cleanup_dropped_records_total":            "TestCleanupTakesOnlyWhatAnotherNodeHas",
	"pairdb_migrator_bytes_total":                     "TestMetricsAndSpansSayWhatAMoveDoes",
	"pairdb_migrator_compared_keys_total":             "TestMetricsAndSpansSayWhatAMoveDoes",
	"pairdb_migrator_fence_seconds":                   "TestMetricsAndSpansSayWhatAMoveDoes",
	"pairdb_migrator_handovers_put_off_total":         "TestMetricsAndSpansSayWhatAMoveDoes",
	"pairdb_migrator_lag_seconds":                     "TestSeriesAreThereFromTheStart",
	"pairdb_migrator_moves":                           "TestSeriesAreThereFromTheStart",
	"pairdb_migrator_records_total":                   "TestMetricsAndSpansSayWhatAMoveDoes",
	"pairdb_migrator_resent_bytes_total":              "TestALostPlaceInTheLogBeginsAnew",
	"pairdb_migrator_retries_total":                   "TestMetricsAndSpansSayWhatAMoveDoes",
	"pairdb_migrator_running_moves":                   "TestSoManyMovesAtOnceInTheOrderInWhichTheyWereMade",
	"pairdb_migrator_state_changes_total":             "TestMetricsAndSpansSayWhatAMoveDoes",
	"pairdb_migrator_throttled_seconds_total":         "TestMetricsAndSpansSayWhatAMoveDoes",
}
