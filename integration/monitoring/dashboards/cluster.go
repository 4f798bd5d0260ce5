package dashboards

// cluster is the page of all pods: which one is different.
func cluster() Dashboard {
	return Dashboard{
		Name: "cluster", Title: "PairDB / Cluster", Nodes: AnyNodes,
		Description: "All pods side by side: which one is different. The page of a pod has the details.",
		Rows: []Row{
			{"Is it up?", clusterUp()}, {"Is it serving?", clusterServing()}, {"Errors and latency", clusterErrors()},
			{"Saturation", clusterSaturation()}, {"Compaction and caches", clusterEngine()}, {"Gossip and events", clusterGossip()},
		},
	}
}

func clusterUp() []Panel {
	return []Panel{
		number(4, "Nodes up", "Storage-nodes that answer their scrape.", "short", q(`sum(up{@,job="storage-node"})`, `up`)),
		number(4, "Nodes down", "Storage-nodes that do not.", "short",
			q(`count(up{@,job="storage-node"}) - sum(up{@,job="storage-node"})`, `down`)).limits(1, 2),
		number(4, "Not ready", "Nodes that run and should get no requests.", "short",
			q(`count(pairdb_storage_ready{@}) - sum(pairdb_storage_ready{@})`, `not ready`)).limits(1, 2),
		number(4, "Sidecars down", "Sidecars that do not answer their scrape.", "short",
			q(`count(up{@,job!="storage-node"}) - sum(up{@,job!="storage-node"})`, `down`)).limits(1, 2),
		number(8, "Versions", "More than one outside of an update is a mistake.", "short",
			q(`count by (binary, version) (pairdb_build_info{@})`, `{{binary}} {{version}}`)),
		series(12, "Alerts", "Alerts that fire. Nothing is drawn when all is well.", "short",
			q(`count by (node_id, alertname, severity) (ALERTS{@,alertstate="firing"})`, `{{node_id}} {{severity}} {{alertname}}`)),
		series(12, "Degraded", "Pods that are not as they should be while they serve, by reason. Nothing is drawn when all is well.", "short",
			q(`max by (node_id, reason) (pairdb_health_degraded{@} == 1)`, `{{node_id}} {{reason}}`)),
	}
}

func clusterServing() []Panel {
	return []Panel{
		series(12, "Reads", "By node. One that differs gets more than its share, or less.", "reqps",
			q(`sum by (node_id) (rate(pairdb_storage_read_requests_total{@}[$]))`, `{{node_id}}`)),
		series(12, "Writes", "By node.", "reqps",
			q(`sum by (node_id) (rate(pairdb_storage_write_requests_total{@}[$]))`, `{{node_id}}`)),
		series(12, "Bytes of values read", "By node.", "Bps",
			q(`sum by (node_id) (rate(pairdb_storage_read_requests_bytes_sum{@}[$]))`, `{{node_id}}`)),
		series(12, "Bytes of values written", "By node.", "Bps",
			q(`sum by (node_id) (rate(pairdb_storage_write_requests_bytes_sum{@}[$]))`, `{{node_id}}`)),
	}
}

func clusterErrors() []Panel {
	failed := `(sum by (node_id) (rate(pairdb_storage_write_requests_total{@,result="error"}[$])) + sum by (node_id) (rate(pairdb_storage_read_requests_total{@,result="error"}[$])))`
	all := `(sum by (node_id) (rate(pairdb_storage_write_requests_total{@}[$])) + sum by (node_id) (rate(pairdb_storage_read_requests_total{@}[$])))`
	p99 := func(kind string) Query {
		return q(`histogram_quantile(0.99, sum by (node_id, le) (rate(pairdb_storage_`+kind+`_requests_duration_seconds_bucket{@}[$])))`, `{{node_id}}`)
	}
	return []Panel{
		series(8, "Failed requests", "Share of reads and writes that failed by the node's fault. 5 % is an alert.", "percentunit",
			q(failed+" / "+all, `{{node_id}}`)).limits(0.01, 0.05),
		series(8, "p99 of writes", "100 ms is an alert.", "s", p99("write")).limits(0.05, 0.1),
		series(8, "p99 of reads", "50 ms is an alert.", "s", p99("read")).limits(0.025, 0.05),
		series(12, "Refused writes", "Because flushes, compactions or the disk are behind.", "ops",
			q(`rate(pairdb_storage_writes_refused_total{@}[$])`, `{{node_id}}`)).limits(0.1, 10),
		series(12, "Damaged tables", "Tables that are set aside: reads of their keys fail.", "short",
			q(`pairdb_sstable_quarantined{@}`, `{{node_id}}`)).limits(1, 1),
	}
}

func clusterSaturation() []Panel {
	return []Panel{
		series(8, "Disk used", "85 % is a warning, from 95 % on writes are refused.", "percent",
			q(`max by (node_id) (pairdb_system_disk_usage_percent{@})`, `{{node_id}}`)).limits(85, 95),
		series(8, "Memory used", "Of the limit. 90 % is an alert.", "percentunit",
			q(`max by (node_id) (pairdb_system_memory_usage_bytes{@}) / (max by (node_id) (pairdb_system_memory_limit_bytes{@}) > 0)`, `{{node_id}}`)).limits(0.85, 0.95),
		series(8, "Processor", "Cores that all processes of a pod use.", "short",
			q(`sum by (node_id) (rate(process_cpu_seconds_total{@}[$]))`, `{{node_id}}`)),
	}
}

func clusterEngine() []Panel {
	return []Panel{
		series(8, "Level 0", "Tables. 8 is an alert, 20 delays writes, 36 refuses them.", "short",
			q(`pairdb_sstable_count_by_level{@,level="0"}`, `{{node_id}}`)).limits(8, 20),
		series(8, "Compaction debt", "Bytes that compactions have to move. 16 GiB delays writes.", "bytes",
			q(`pairdb_compaction_debt_bytes{@}`, `{{node_id}}`)).limits(8<<30, 16<<30),
		series(8, "Row cache hit rate", "Lookups that the cache answered.", "percentunit",
			q(`sum by (node_id) (rate(pairdb_cache_hits_total{@,cache="row"}[$])) / (sum by (node_id) (rate(pairdb_cache_hits_total{@,cache="row"}[$])) + sum by (node_id) (rate(pairdb_cache_misses_total{@,cache="row"}[$])))`, `{{node_id}}`)).limits(0.5, 0.2),
	}
}

func clusterGossip() []Panel {
	return []Panel{
		series(8, "Healthy members", "As each pod sees them. Pods that disagree are on two sides of a cut network.", "short",
			q(`pairdb_gossip_members_healthy{@}`, `{{node_id}}`)),
		series(8, "Members by liveness", "Summed over the views of all pods.", "short",
			q(`sum by (liveness) (pairdb_gossip_members{@})`, `{{liveness}}`)),
		series(8, "Gossip messages", "By type, all pods.", "ops",
			q(`sum by (type) (rate(pairdb_gossip_messages_total{@}[$]))`, `{{type}}`)),
		number(8, "NATS", "Pods that are connected.", "short",
			q(`sum by (job) (pairdb_event_connected{@})`, `{{job}}`)),
		series(8, "Outbox", "Events that wait for NATS.", "short",
			q(`max by (node_id) (pairdb_event_outbox_length{@})`, `{{node_id}}`)),
		series(8, "Dropped events", "Because an outbox was full. 0 is normal.", "ops",
			q(`sum by (node_id) (rate(pairdb_event_dropped_total{@}[$]))`, `{{node_id}}`)).limits(0.01, 1),
	}
}
