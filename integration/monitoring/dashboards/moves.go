package dashboards

// moves is the page of data that goes from one node to another: does it get there, are replicas equal.
func moves() Dashboard {
	return Dashboard{
		Name: "moves", Title: "PairDB / Moves", Nodes: AnyNodes,
		Description: "Does data get where it is to be: moves, drains, hand-overs; are replicas equal; what is to be cleaned up.",
		Rows: []Row{
			{"Does somebody move?", movesNow()}, {"Do they get on?", movesPace()}, {"Are ranges handed over?", movesHandovers()},
			{"Are replicas equal?", movesRepair()}, {"What comes in?", movesIncoming()},
		},
	}
}

func movesNow() []Panel {
	return []Panel{
		number(4, "Moves", "Under way or waiting, of the nodes that are chosen. Each is shown by its source.", "short",
			q(`sum(pairdb_move_active{@})`, `moves`)),
		number(4, "Failed", "Moves that wait for somebody: pairctl moves says why.", "short",
			q(`sum(pairdb_move_active{@,state="failed"})`, `failed`)).limits(1, 3),
		number(4, "Drains", "Nodes that give everything away.", "short",
			q(`sum(pairdb_drain_active{@})`, `drains`)),
		number(6, "Migrators down", "That do not answer their scrape. Nothing moves without them.", "short",
			q(`count(up{@,job="migrator"}) - sum(up{@,job="migrator"})`, `down`)).limits(1, 2),
		number(6, "Migrators heard", "Time since the node was asked for work; absent for one that never did.", "s",
			q(`max(pairdb_storage_sidecar_last_seen_seconds{@,sidecar="migrator"})`, `longest ago`)).limits(15, 60),
		series(12, "Moves by state", "Planned ones wait for their turn, tailing ones follow. Fenced is a matter of seconds.", "short",
			q(`sum by (state) (pairdb_move_active{@})`, `{{state}}`)),
		series(12, "How moves ended", "By purpose. One that failed and was resumed counts again.", "ops",
			q(`sum by (purpose, result) (rate(pairdb_move_total{@}[$]))`, `{{purpose}} {{result}}`)),
	}
}

func movesPace() []Panel {
	return []Panel{
		series(12, "Bytes", "Of keys and values that targets have acknowledged: copy is the snapshot, tail what was written since, repair what differed.", "Bps",
			q(`sum by (node_id, phase) (rate(pairdb_migrator_bytes_total{@}[$]))`, `{{node_id}} {{phase}}`)),
		series(12, "Lag", "How far the target that is furthest behind is. A minute for ten minutes is an alert.", "s",
			q(`pairdb_move_lag_seconds{@}`, `{{node_id}}`)).limits(10, 60),
		series(8, "Tried again", "Steps by cause: target is away, refused takes no data now, stalled acknowledges nothing, node is the pod's own.", "ops",
			q(`sum by (cause) (rate(pairdb_migrator_retries_total{@}[$]))`, `{{cause}}`)),
		series(8, "Throttled", "Part of the time that streams waited for the limits; near 1 the limit is what they are as fast as.", "percentunit",
			q(`rate(pairdb_migrator_throttled_seconds_total{@}[$])`, `{{node_id}}`)),
		series(8, "Sent twice", "Because nobody knew whether the target had it. A little after each break.", "Bps",
			q(`rate(pairdb_migrator_resent_bytes_total{@}[$])`, `{{node_id}}`)),
	}
}

func movesHandovers() []Panel {
	return []Panel{
		series(8, "Writes wait", "How long the writes of a range are refused at its hand-over. Clients repeat them.", "s",
			quantiles("pairdb_migrator_fence_seconds", "@", "")...).limits(2, 10),
		series(8, "Put off", "Hand-overs that took too long or were called off, and were taken back.", "ops",
			q(`rate(pairdb_migrator_handovers_put_off_total{@}[$])`, `{{node_id}}`)),
		series(8, "Refused requests", "NOT_OWNER: clients ask the old owner. RANGE_MOVING: the range is being handed over.", "ops",
			q(`sum by (node_id, reason) (rate(pairdb_ownership_refused_total{@}[$]))`, `{{node_id}} {{reason}}`)),
		series(12, "Ranges", "Owned, fenced, given away and prepared ones.", "short",
			q(`sum by (node_id, kind) (pairdb_ownership_ranges{@,kind!="residue"})`, `{{node_id}} {{kind}}`)),
		series(12, "To be cleaned up", "Ranges that a node does not own any more and holds data of: pairctl cleanup.", "short",
			q(`pairdb_ownership_ranges{@,kind="residue"}`, `{{node_id}}`)),
	}
}

func movesRepair() []Panel {
	return []Panel{
		series(12, "Equal age", "Since the range that was longest not equal on all replicas was. A comparison every hour, by default; a day is an alert.", "s",
			q(`max by (node_id) (pairdb_antientropy_equal_age_seconds{@})`, `{{node_id}}`)).limits(4*3600, 24*3600),
		series(12, "Ranges by state", "Of anti-entropy.", "short",
			q(`sum by (state) (pairdb_antientropy_ranges{@})`, `{{state}}`)),
		series(8, "Comparisons", "With another replica, by result.", "ops",
			q(`sum by (result) (rate(pairdb_migrator_repair_runs_total{@}[$]))`, `{{result}}`)),
		series(8, "Compared keys", "Of leaves that differed, and those of them that were sent.", "ops",
			q(`sum(rate(pairdb_migrator_repair_compared_keys_total{@}[$]))`, `compared`),
			q(`sum(rate(pairdb_migrator_repair_repaired_keys_total{@}[$]))`, `repaired`)),
		series(8, "Hashed", "Bytes that were read to compare nodes.", "Bps",
			q(`rate(pairdb_replica_digested_bytes_total{@}[$])`, `{{node_id}}`)),
		series(12, "Replicas that wait", "To be compared with.", "short",
			q(`pairdb_migrator_repair_waiting_peers{@}`, `{{node_id}}`)),
		series(12, "Cleaned up", "Records of ranges of others that were dropped.", "ops",
			q(`rate(pairdb_cleanup_dropped_records_total{@}[$])`, `{{node_id}}`)),
	}
}

func movesIncoming() []Panel {
	return []Panel{
		series(8, "Joined", "Bytes of other nodes that were joined with those of this one.", "Bps",
			q(`rate(pairdb_replica_ingested_bytes_total{@}[$])`, `{{node_id}}`)),
		series(8, "Streams", "That come in.", "short",
			q(`pairdb_replica_ingest_streams{@}`, `{{node_id}}`)),
		series(8, "Passed over", "Records of tenants that are dropped here.", "ops",
			q(`rate(pairdb_replica_skipped_records_total{@}[$])`, `{{node_id}}`)),
	}
}
