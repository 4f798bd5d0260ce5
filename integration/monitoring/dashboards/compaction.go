package dashboards

// compaction is the page of the merges: does somebody work, does it keep up, what does it cost.
func compaction() Dashboard {
	return Dashboard{
		Name: "compaction", Title: "PairDB / Compaction", Nodes: AnyNodes,
		Description: "Does somebody merge, does it keep up, what fails, what does it cost.",
		Rows: []Row{
			{"Does somebody work?", compactionWorkers()}, {"Does it keep up?", compactionPace()},
			{"What fails?", compactionFailures()}, {"What does it cost?", compactionCosts()}, {"What becomes of the data?", compactionData()},
		},
	}
}

func compactionWorkers() []Panel {
	return []Panel{
		number(6, "Compactors", "That poll or hold leases, by node. Without one the node merges by itself.", "short",
			q(`pairdb_compaction_workers{@}`, `{{node_id}}`)).limits(1, 0.5),
		number(6, "Connected", "Whether each compactor reaches its node.", "bool",
			q(`pairdb_compactor_connected{@}`, `{{node_id}}`)).limits(1, 0.5),
		series(6, "Running jobs", "In compactors.", "short",
			q(`pairdb_compactor_running_jobs{@}`, `{{node_id}}`)),
		series(6, "Who merged", "Installed jobs: by the compactor (external) or by the node (local). Local ones are felt by requests.", "ops",
			q(`sum by (origin) (rate(pairdb_compaction_installed_total{@}[$]))`, `{{origin}}`)),
	}
}

func compactionPace() []Panel {
	return []Panel{
		series(8, "Debt", "Bytes to move until the tree has its shape. 16 GiB delays writes, 64 GiB refuses them.", "bytes",
			q(`pairdb_compaction_debt_bytes{@}`, `{{node_id}}`)).limits(16<<30, 64<<30),
		series(8, "Level 0", "Tables. 20 delay writes, 36 refuse them.", "short",
			q(`pairdb_sstable_count_by_level{@,level="0"}`, `{{node_id}}`)).limits(20, 36),
		series(8, "Jobs that are not done", "Waiting and running.", "short",
			q(`pairdb_compaction_queue_length{@}`, `{{node_id}}`)),
		series(12, "Level scores", "How full each level is, the fullest node of those that are chosen. A level above 1 is compacted next.", "short",
			q(`max by (level) (pairdb_sstable_level_score{@})`, `L{{level}}`)),
		series(12, "Jobs by state", "Queued ones wait for a worker, verifying ones for the node, local ones can only be done by the node itself.", "short",
			q(`sum by (state) (pairdb_compaction_jobs{@})`, `{{state}}`)),
		series(12, "Delayed and refused writes", "What clients feel of compactions that are behind.", "ops",
			q(`rate(pairdb_storage_writes_delayed_total{@}[$])`, `delayed {{node_id}}`),
			q(`rate(pairdb_storage_writes_refused_total{@}[$])`, `refused {{node_id}}`)).limits(0.1, 10),
		series(12, "Duration of jobs", "From the lease to the installation, as the node sees it.", "s",
			quantiles("pairdb_compaction_job_duration_seconds", "@", "")...),
	}
}

func compactionFailures() []Panel {
	return []Panel{
		series(12, "Jobs by how they ended", "Only installed is good; fenced and cancelled are late reports and changed plans.", "ops",
			q(`sum by (status) (rate(pairdb_compaction_jobs_total{@}[$]))`, `{{status}}`)),
		series(12, "As the compactors saw it", "Jobs by kind and result.", "ops",
			q(`sum by (kind, result) (rate(pairdb_compactor_jobs_total{@}[$]))`, `{{kind}} {{result}}`)),
	}
}

func compactionCosts() []Panel {
	return []Panel{
		series(8, "Bytes", "Of installed jobs.", "Bps",
			q(`sum(rate(pairdb_compaction_bytes_processed_total{@}[$]))`, `read`),
			q(`sum(rate(pairdb_compaction_bytes_written_total{@}[$]))`, `written`)),
		series(8, "Rewritten bytes for each written byte", "Bytes that compactions wrote for each byte of values that clients wrote. Below 10 is normal.", "short",
			q(`sum(rate(pairdb_compaction_bytes_written_total{@}[$])) / sum(rate(pairdb_storage_write_requests_bytes_sum{@}[$]))`, `amplification`)),
		series(8, "Processor of compactors", "Cores.", "short",
			q(`rate(process_cpu_seconds_total{@,job="compactor"}[$])`, `{{node_id}}`)),
		series(8, "Memory of compactors", "Resident.", "bytes",
			q(`process_resident_memory_bytes{@,job="compactor"}`, `{{node_id}}`)),
		series(8, "Tables of a job", "That installed jobs read and wrote, on average.", "short",
			q(`sum(rate(pairdb_compaction_tables_input_sum{@}[$])) / sum(rate(pairdb_compaction_tables_input_count{@}[$]))`, `read`),
			q(`sum(rate(pairdb_compaction_tables_output_sum{@}[$])) / sum(rate(pairdb_compaction_tables_output_count{@}[$]))`, `written`)),
		series(8, "Held disk space", "Promised to running jobs, and of tables that wait for their deletion.", "bytes",
			q(`sum(pairdb_compaction_reserved_bytes{@})`, `reserved`),
			q(`sum(pairdb_sstable_obsolete_size_bytes{@})`, `obsolete`)),
	}
}

func compactionData() []Panel {
	return []Panel{
		series(8, "Entries", "By what became of them: out was kept, shadowed overwritten, joined with siblings, collected for good.", "ops",
			q(`sum by (fate) (rate(pairdb_compactor_entries_total{@}[$]))`, `{{fate}}`)),
		series(8, "Bytes by level", "Live tables, all nodes that are chosen.", "bytes",
			q(`sum by (level) (pairdb_sstable_size_bytes_by_level{@})`, `L{{level}}`)),
		series(8, "Tables by level", "Live tables, all nodes that are chosen.", "short",
			q(`sum by (level) (pairdb_sstable_count_by_level{@})`, `L{{level}}`)),
		series(12, "Moved and deleted tables", "Moved ones changed their level without being rewritten.", "ops",
			q(`sum(rate(pairdb_compaction_moves_total{@}[$]))`, `moved`),
			q(`sum(rate(pairdb_sstable_deleted_total{@}[$]))`, `deleted`)),
		series(12, "Flushes", "Memtables that became tables of level 0: what compactions have to keep up with.", "ops",
			q(`sum(rate(pairdb_memtable_flushes_total{@}[$]))`, `flushes`)),
	}
}
