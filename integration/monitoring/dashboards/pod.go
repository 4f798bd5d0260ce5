package dashboards

// pod is the page of one pod, from "is it up" to "who uses it".
func pod() Dashboard {
	return Dashboard{
		Name: "pod", Title: "PairDB / Pod", Nodes: OneNode,
		Description: "One storage pod: from top to bottom what an incident asks.",
		Rows: []Row{
			{"Is it up?", podUp()}, {"Is it serving?", podServing()}, {"Errors", podErrors()}, {"Latency", podLatency()},
			{"Throughput", podThroughput()}, {"Saturation", podSaturation()}, {"Compaction", podCompaction()},
			{"Caches and tables", podCaches()}, {"Cluster and events", podCluster()}, {"Tenants", podTenants()},
		},
	}
}

func podUp() []Panel {
	return []Panel{
		number(6, "Processes", "1 for each process of the pod that answers its scrape.", "bool",
			q(`up{@}`, `{{job}}`)).limits(1, 0.5),
		number(4, "Ready", "Whether the node should get requests. GET /ready of its ops address has the reason.", "bool",
			q(`pairdb_storage_ready{@}`, `ready`)).limits(1, 0.5),
		number(4, "Verdict", "What the health-agent thinks of the pod: live means do not restart, ready means send requests.", "bool",
			q(`pairdb_health_live{@}`, `live`), q(`pairdb_health_ready{@}`, `ready`)).limits(1, 0.5),
		number(4, "Uptime", "Since the start of each process. Short ones that stay short are a crash loop.", "s",
			q(`time() - process_start_time_seconds{@}`, `{{job}}`)),
		number(6, "Version", "Of the running binaries.", "short",
			q(`count by (binary, version) (pairdb_build_info{@})`, `{{binary}} {{version}}`)),
		series(12, "Degraded", "Reasons for which the pod is not as it should be while it serves. Nothing is drawn when all is well.", "short",
			q(`max by (reason) (pairdb_storage_degraded{@} == 1)`, `node: {{reason}}`),
			q(`max by (reason) (pairdb_health_degraded{@} == 1)`, `agent: {{reason}}`)),
		series(12, "Alerts", "Alerts on this pod that fire. Nothing is drawn when all is well.", "short",
			q(`count by (alertname, severity) (ALERTS{@,alertstate="firing"})`, `{{severity}} {{alertname}}`)),
	}
}

func podServing() []Panel {
	return []Panel{
		series(12, "Requests", "Requests that ended, by kind. Operations of pipelines count one by one.", "reqps",
			q(`sum(rate(pairdb_storage_read_requests_total{@}[$]))`, `read`),
			q(`sum(rate(pairdb_storage_write_requests_total{@}[$]))`, `write`),
			q(`sum(rate(pairdb_storage_repair_requests_total{@}[$]))`, `repair`),
			q(`sum(rate(pairdb_storage_other_requests_total{@}[$]))`, `other`)),
		series(12, "Write pressure", "Writes that were delayed or refused because flushes, compactions or the disk are behind. 0 is normal.", "ops",
			q(`rate(pairdb_storage_writes_delayed_total{@}[$])`, `delayed`),
			q(`rate(pairdb_storage_writes_refused_total{@}[$])`, `refused`)).limits(0.1, 10),
		number(6, "Seconds without a durable write", "While writes wait. Above 10 s the node is not ready.", "s",
			q(`pairdb_storage_stalled_seconds{@}`, `stalled`)).limits(1, 10),
		number(6, "Poisoned", "1 after a failed sync: the process ends with exit code 5.", "bool",
			q(`pairdb_storage_poisoned{@}`, `poisoned`)).limits(0.5, 1),
		number(6, "Last recovery", "How long the last start took to read the commit log.", "s",
			q(`pairdb_commitlog_recovery_seconds{@}`, `recovery`)).limits(30, 120),
		number(6, "Damaged tables", "Tables that are set aside: reads of their keys fail.", "short",
			q(`pairdb_sstable_quarantined{@}`, `quarantined`)).limits(1, 1),
	}
}

func podErrors() []Panel {
	return []Panel{
		series(12, "Failed requests", "Share of requests that failed by the node's fault. 5 % is an alert.", "percentunit",
			q(`sum(rate(pairdb_storage_read_requests_total{@,result="error"}[$])) / sum(rate(pairdb_storage_read_requests_total{@}[$]))`, `read`),
			q(`sum(rate(pairdb_storage_write_requests_total{@,result="error"}[$])) / sum(rate(pairdb_storage_write_requests_total{@}[$]))`, `write`)).limits(0.01, 0.05),
		series(12, "Refused requests", "Requests that were wrong, or told to come back: the caller's turn.", "reqps",
			q(`sum(rate(pairdb_storage_read_requests_total{@,result="rejected"}[$]))`, `read`),
			q(`sum(rate(pairdb_storage_write_requests_total{@,result="rejected"}[$]))`, `write`),
			q(`sum(rate(pairdb_storage_other_requests_total{@,result="rejected"}[$]))`, `other`)),
		series(24, "Errors by reason", "All errors, the caller's fault or the node's. docs/ERRORS.md says what each means. Nothing is drawn when there are none.", "ops",
			q(`topk(10, sum by (reason) (rate(pairdb_storage_request_errors_total{@}[$])) > 0)`, `{{reason}}`)),
		series(12, "Damage and failures below", "Reads that met damage, flushes that failed, tails of the log that were cut at the start. 0 is normal.", "short",
			q(`increase(pairdb_sstable_corrupt_reads_total{@}[$])`, `damaged reads`),
			q(`increase(pairdb_memtable_flush_failures_total{@}[$])`, `failed flushes`),
			q(`pairdb_commitlog_torn_tails_total{@}`, `torn tails at start`)).limits(1, 1),
		series(12, "Conflicts", "Writes that were decided again because their key changed meanwhile. Many of them mean hot keys.", "ops",
			q(`rate(pairdb_storage_write_conflicts_total{@}[$])`, `conflicts`)),
	}
}

func podLatency() []Panel {
	return []Panel{
		series(12, "Writes", "From the decoded request until it is durable and answered. p99 of 100 ms is an alert.", "s",
			quantiles("pairdb_storage_write_requests_duration_seconds", "@", "")...).limits(0.05, 0.1),
		series(12, "Reads", "From the decoded request to the answer. p99 of 50 ms is an alert.", "s",
			quantiles("pairdb_storage_read_requests_duration_seconds", "@", "")...).limits(0.025, 0.05),
		series(8, "Log syncs", "Time of the system call. A slow disk shows here first.", "s",
			quantiles("pairdb_commitlog_sync_duration_seconds", "@", "")...).limits(0.02, 0.1),
		series(8, "Table reads", "Time of the system call, for what no cache had.", "s",
			quantiles("pairdb_sstable_read_duration_seconds", "@", "")...).limits(0.01, 0.05),
		series(8, "Flushes", "Time to write a memtable to tables.", "s",
			quantiles("pairdb_memtable_flush_duration_seconds", "@", "")...),
	}
}

func podThroughput() []Panel {
	return []Panel{
		series(12, "Keys", "Keys that were read and written, each item of a batch counted.", "ops",
			q(`rate(pairdb_storage_read_items_total{@}[$])`, `read`),
			q(`rate(pairdb_storage_write_items_total{@}[$])`, `written`)),
		series(12, "Bytes of values", "As clients see them: without keys, clocks and compression.", "Bps",
			q(`rate(pairdb_storage_read_requests_bytes_sum{@}[$])`, `read`),
			q(`rate(pairdb_storage_write_requests_bytes_sum{@}[$])`, `written`)),
		series(12, "Commit log", "Batches, and the writes and syncs that they share. Fewer syncs than batches is group commit at work.", "ops",
			q(`rate(pairdb_commitlog_batches_total{@}[$])`, `batches`),
			q(`rate(pairdb_commitlog_appends_total{@}[$])`, `appends`),
			q(`rate(pairdb_commitlog_syncs_total{@}[$])`, `syncs`)),
		series(12, "Table files", "Reads and writes of the node itself, in system calls.", "ops",
			q(`rate(pairdb_sstable_reads_total{@}[$])`, `reads`),
			q(`rate(pairdb_sstable_writes_total{@}[$])`, `writes`)),
	}
}

func podSaturation() []Panel {
	return []Panel{
		series(8, "Disk used", "Of the data volume. 85 % is a warning, from 95 % on writes are refused.", "percent",
			q(`pairdb_system_disk_usage_percent{@}`, `used`)).limits(85, 95),
		series(8, "Disk available", "And what a day of the last 6 hours' growth leaves of it.", "bytes",
			q(`pairdb_system_disk_available_bytes{@}`, `available`),
			q(`predict_linear(pairdb_system_disk_available_bytes{@}[6h], 86400)`, `in a day`)),
		series(8, "Memory", "Of the process or its cgroup, and the limit. At the limit the kernel ends the process.", "bytes",
			q(`pairdb_system_memory_usage_bytes{@}`, `used {{job}}`),
			q(`pairdb_system_memory_limit_bytes{@}`, `limit {{job}}`)),
		series(8, "States", "Which of its states disk and memory are in.", "short",
			q(`pairdb_storage_disk_state{@} == 1`, `disk {{state}}`),
			q(`pairdb_storage_memory_state{@} == 1`, `memory {{state}}`)),
		series(8, "Memtables", "Bytes in memory that are not in tables yet. More than 60 MB for a quarter of an hour is an alert.", "bytes",
			q(`pairdb_memtable_size_bytes{@}`, `takes writes`),
			q(`pairdb_memtable_immutable_size_bytes{@}`, `waits for its flush`)),
		series(8, "Waiting", "Batches before the commit log, memtables before their flush, jobs before a compactor.", "short",
			q(`pairdb_commitlog_queue_length{@}`, `log`),
			q(`pairdb_memtable_immutables{@}`, `flush`),
			q(`pairdb_compaction_queue_length{@}`, `compaction`)),
		series(8, "Level 0", "Tables that every read may have to search. 8 is an alert, 20 delays writes, 36 refuses them.", "short",
			q(`pairdb_sstable_count_by_level{@,level="0"}`, `tables`)).limits(8, 20),
		series(8, "Requests in flight", "Calls that are worked on, streams among them, and how many may be. At the limit they are refused.", "short",
			q(`pairdb_grpc_requests_in_flight{@}`, `{{listener}}`),
			q(`pairdb_grpc_requests_in_flight_limit{@}`, `limit {{listener}}`)),
		series(8, "Open streams", "Streams by kind, and what they hold of the engine. Many that stay open hold memory, tables and log.", "short",
			q(`sum by (kind) (pairdb_grpc_streams_open{@})`, `{{kind}}`),
			q(`pairdb_storage_iterators_open{@}`, `iterators`),
			q(`pairdb_storage_tails_open{@}`, `followers of the change feed`)),
		series(8, "Writes that wait", "Seconds of waiting in each second: delays under pressure, and stalls for a flush. 0 is normal.", "s",
			q(`rate(pairdb_storage_write_delay_seconds_total{@}[$])`, `delays`),
			q(`rate(pairdb_storage_write_stall_seconds_total{@}[$])`, `stalls`)),
		series(8, "Processor", "Cores that each process uses.", "short",
			q(`rate(process_cpu_seconds_total{@}[$])`, `{{job}}`)),
		series(8, "Goroutines and files", "10,000 goroutines, or 80 % of the file descriptors, are an alert.", "short",
			q(`pairdb_system_goroutines_total{@}`, `goroutines {{job}}`),
			q(`pairdb_system_open_files{@}`, `open files {{job}}`)),
	}
}

func podCompaction() []Panel {
	return []Panel{
		number(6, "Compactors", "That poll or hold leases; the node itself is not counted.", "short",
			q(`pairdb_compaction_workers{@}`, `compactors`)).limits(1, 0.5),
		series(9, "Debt", "Bytes that compactions have to move until the tree has its shape. 16 GiB delays writes.", "bytes",
			q(`pairdb_compaction_debt_bytes{@}`, `debt`)).limits(8<<30, 16<<30),
		series(9, "Jobs", "Jobs and attempts of them that ended, by how. Only installed is good.", "ops",
			q(`sum by (status) (rate(pairdb_compaction_jobs_total{@}[$]))`, `{{status}}`)),
	}
}

func podCaches() []Panel {
	return []Panel{
		series(8, "Hit rate", "Lookups that a cache answered. Below 50 % is worth a look if reads are slow.", "percentunit",
			q(`sum by (cache) (rate(pairdb_cache_hits_total{@}[$])) / (sum by (cache) (rate(pairdb_cache_hits_total{@}[$])) + sum by (cache) (rate(pairdb_cache_misses_total{@}[$])))`, `{{cache}}`)).limits(0.5, 0.2),
		series(8, "Cache size", "Bytes that the caches hold.", "bytes",
			q(`pairdb_cache_size_bytes{@}`, `{{cache}}`)),
		series(8, "Search", "Tables that point reads searched, and those that a filter ruled out.", "ops",
			q(`rate(pairdb_sstable_probes_total{@}[$])`, `searched`),
			q(`rate(pairdb_sstable_filter_skips_total{@}[$])`, `ruled out`)),
		series(12, "Bytes by level", "Live tables.", "bytes",
			q(`pairdb_sstable_size_bytes_by_level{@}`, `L{{level}}`)),
		series(12, "Held back", "Bytes of tables that wait for their deletion, of the commit log, and promised to running jobs.", "bytes",
			q(`pairdb_sstable_obsolete_size_bytes{@}`, `obsolete tables`),
			q(`pairdb_commitlog_size_bytes{@}`, `commit log`),
			q(`pairdb_compaction_reserved_bytes{@}`, `reserved`)),
	}
}

func podCluster() []Panel {
	return []Panel{
		series(8, "Members", "As this pod's health-agent sees them.", "short",
			q(`pairdb_gossip_members_total{@}`, `declared`),
			q(`pairdb_gossip_members_healthy{@}`, `healthy`)),
		series(8, "Sidecars", "Since the node last heard of each.", "s",
			q(`pairdb_storage_sidecar_last_seen_seconds{@}`, `{{sidecar}}`)).limits(30, 60),
		number(8, "NATS", "Whether the process is connected. Nothing but remote commands and events needs it.", "bool",
			q(`pairdb_event_connected{@}`, `{{job}}`)).limits(1, 0.5),
		series(12, "Events", "Published, and dropped because the outbox was full.", "ops",
			q(`rate(pairdb_event_published_total{@}[$])`, `published {{job}}`),
			q(`rate(pairdb_event_dropped_total{@}[$])`, `dropped {{job}}`)),
		series(12, "Outbox", "Events that wait for NATS, and how many may.", "short",
			q(`pairdb_event_outbox_length{@}`, `waiting`),
			q(`pairdb_event_outbox_capacity{@}`, `capacity`)),
	}
}

func podTenants() []Panel {
	return []Panel{
		series(8, "Requests", "The busiest ten.", "reqps",
			q(`topk(10, sum by (tenant) (rate(pairdb_tenant_requests_total{@}[$])))`, `{{tenant}}`)),
		series(8, "Refused by a quota", "Requests that were over a quota of their tenant.", "reqps",
			q(`topk(10, sum by (tenant, quota) (rate(pairdb_tenant_quota_refusals_total{@}[$])))`, `{{tenant}} {{quota}}`)),
		series(8, "Stored", "Estimate of what tables hold, the largest ten.", "bytes",
			q(`topk(10, sum by (tenant) (pairdb_tenant_stored_bytes{@}))`, `{{tenant}}`)),
	}
}
