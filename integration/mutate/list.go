package main

import "slices"

// mutations are all of them.
var mutations = slices.Concat(promises, protections)

// swap replaces a text that stands exactly once in the file.
type swap struct{ old, new string }

// mutation is a break of a promise, and the tests that must notice it.
type mutation struct {
	name   string
	breaks string // one sentence for the table
	file   string
	swaps  []swap
	pkg    string // of the tests: module and directory
	run    string // names of tests, joined by |
	part   string // of the one test in run, the subtest that notices; empty: all of it
	built  bool   // the tests run the programs, which are built of the mutated tree first
}

const (
	node     = "services/storage-node/internal/"
	inEngine = node + "engine"
	inLog    = node + "commitlog"
	inSet    = node + "manifest"
	inBoard  = node + "jobs"
	inCache  = node + "cache"
	inStore  = node + "store"
	inPicker = node + "picker"
	inEqual  = node + "antientropy"
	inMerge  = "libs/compact"
	inTable  = "libs/sstable"
	inRecord = "libs/record"
	inJoin   = "libs/causal"

	powerCut = "TestPowerCutLosesNothingAndResurrectsNothing"
	eachCut  = "TestPowerCutAtEveryOperationOfOneStep"
)

// promises of the engine are in the order of a write's way: log, memtable, table, manifest, compaction, read.
var promises = []mutation{
	{
		name:   "log-not-synced",
		breaks: "The commit log is never synced, and says that it was.",
		file:   inLog + "/append.go",
		swaps:  []swap{{"if err := s.file.SyncData(); err != nil {", "if err := error(nil); err != nil {"}},
		pkg:    inLog, run: "TestCrashAtEveryOperationLosesNothing",
	},
	{
		name:   "log-failed-sync-retried",
		breaks: "A failed sync of the log is returned but can be tried again, and then \"succeeds\" without the lost pages.",
		file:   inLog + "/append.go",
		swaps:  []swap{{`return l.poison("sync "+FileName(s.number), err)`, "return err"}},
		pkg:    inLog, run: "TestFailedSyncPoisonsForEver",
	},
	{
		name:   "log-rotation-not-synced",
		breaks: "A segment is left behind unsynced when the log goes on in the next one.",
		file:   inLog + "/append.go",
		swaps:  []swap{{"if err := l.syncSegment(old); err != nil {", "if err := error(nil); err != nil {"}},
		pkg:    inLog, run: "TestCrashAtEveryOperationLosesNothing",
	},
	{
		name:   "log-name-not-synced",
		breaks: "A new segment takes frames before its name is durable.",
		file:   inLog + "/prepare.go",
		swaps:  []swap{{"err = vfs.SyncDir(l.fs, l.dir)", "err = nil"}},
		pkg:    inLog, run: "TestCrashAtEveryOperationLosesNothing",
	},
	{
		name:   "log-recovered-not-confirmed",
		breaks: "What replay showed to readers is not made durable before they see it, and can vanish with the next power cut.",
		file:   inLog + "/log.go",
		swaps:  []swap{{"if r.End.Segment != 0 {", "if false {"}},
		pkg:    inLog, run: "TestCrashAtEveryOperationLosesNothing|TestStartWritesWhatIsNotProvenOnceMore",
	},
	{
		name:   "log-second-name-used",
		breaks: "A file that a power cut left under two names is used twice at once, and the second use wipes out the first.",
		file:   inLog + "/log.go",
		swaps:  []swap{{"if number > r.End.Segment {", "if false {"}},
		pkg:    inLog, run: "TestCrashAtEveryOperationLosesNothing|TestAFileUnderTwoNamesIsUsedOnce",
	},
	{
		name:   "log-epoch-ignored",
		breaks: "Frames of a recycled segment's former life pass for new ones.",
		file:   inRecord + "/reader.go",
		swaps:  []swap{{"if !ok || h.Epoch != r.o.Epoch {", "if !ok {"}},
		pkg:    inRecord, run: "TestTheEndIsToldApart",
	},
	{
		name:   "log-torn-in-sealed-accepted",
		breaks: "Damage in the middle of the log passes for the torn tail of a crash: what stands behind it is lost silently.",
		file:   inLog + "/replay.go",
		swaps: []swap{
			{"if err == io.EOF || isHead && errors.Is(err, record.ErrTorn) {", "if err == io.EOF || errors.Is(err, record.ErrTorn) {"},
			{"Sealed: !isHead}", "Sealed: false}"},
		},
		pkg: inLog, run: "TestEveryFlippedByteIsDetected",
	},
	{
		name:   "log-damage-before-proof-cut",
		breaks: "An invalid frame is always a torn tail, although a later frame proves that it was durable once.",
		file:   inRecord + "/reader.go",
		swaps:  []swap{{"case synced > r.off:", "case false:"}},
		pkg:    inRecord, run: "TestTheEndIsToldApart|TestEveryFlippedByteIsDetected",
	},
	{
		name:   "log-checksum-ignored",
		breaks: "The payload of a frame is taken whatever its checksum says.",
		file:   inRecord + "/reader.go",
		swaps:  []swap{{"if crc32.Checksum(payload, castagnoli) != sum {", "if crc32.Checksum(payload, castagnoli) != sum && false {"}},
		pkg:    inRecord, run: "TestEveryFlippedByteIsDetected",
	},
	{
		name:   "log-trim-ignores-pins",
		breaks: "Segments that a follower still reads are given up.",
		file:   inLog + "/prepare.go",
		swaps:  []swap{{"floor = min(floor, number)", "_ = number"}},
		pkg:    inLog, run: "TestPinsKeepSegments",
	},
	{
		name:   "acknowledged-before-sync",
		breaks: "A write returns while its sync is still under way.",
		file:   inEngine + "/durable.go",
		swaps: []swap{{"if err = e.log.SyncTo(target.pos); err != nil {", `go func() { _ = e.log.SyncTo(target.pos) }()
		if err != nil {`}},
		pkg: inEngine, run: powerCut,
	},
	{
		name:   "acknowledged-without-sync",
		breaks: "A write under sync=group returns without waiting; the background syncs it some time.",
		file:   inEngine + "/write.go",
		swaps: []swap{
			{"return p.e.waitDurable(p.seq)", "return nil"},
			{"_, err := e.write(b, mode == SyncGroup)", "_, err := e.write(b, false)"},
		},
		pkg: inEngine, run: powerCut,
	},
	{
		name:   "read-before-durable",
		breaks: "Get shows a write before it is durable: a reader can act on what a power cut takes back.",
		file:   inEngine + "/durable.go",
		swaps:  []swap{{"if e.opts.Sync != SyncGroup {", "if true {"}},
		pkg:    inEngine, run: "TestReadersSeeAWriteOnlyWhenItIsDurable",
	},
	{
		name:   "woken-before-applied",
		breaks: "A group counts as durable when it is synced, although the member that applies it has not ended.",
		file:   inEngine + "/durable.go",
		swaps:  []swap{{"if durable := min(d.logSynced, d.applied); durable > d.synced {", "if durable := d.logSynced; durable > d.synced {"}},
		pkg:    inEngine, run: "TestOnlySyncAndApplyTogetherWake|TestAGroupIsDurableWhenItIsSyncedAndApplied",
	},
	{
		name:   "batch-in-two-frames",
		breaks: "The first change of a group is logged in a frame of its own: a batch can be found half.",
		file:   inEngine + "/commit.go",
		swaps: []swap{{"kind, payload := frameBatch, frame\n", `if _, rest, err := nextChange(frame[groupHeaderBytes:]); err == nil && count > 1 {
		one := bytes.Clone(frame[:len(frame)-len(rest)])
		binary.LittleEndian.PutUint32(one[8:], 1)
		if _, err := e.log.Append(frameBatch, one); err != nil {
			return e.logError("append", err)
		}
		frame = append(bytes.Clone(frame[:groupHeaderBytes]), rest...)
		binary.LittleEndian.PutUint64(frame, uint64(first)+1)
		binary.LittleEndian.PutUint32(frame[8:], uint32(count-1))
	}
	kind, payload := frameBatch, frame
`}},
		pkg: inEngine, run: powerCut,
	},
	{
		name:   "failed-flush-forgets-memtable",
		breaks: "A memtable whose flush failed leaves the queue all the same.",
		file:   inEngine + "/flush.go",
		swaps: []swap{{"e.mu.flushErr = err\n", `e.mu.flushErr = err
		if err != nil {
			e.mu.imm = append(e.mu.imm[:0:0], e.mu.imm[1:]...)
			e.installReadStateLocked()
		}
`}},
		pkg: inEngine, run: "TestFailedFlushNeverLosesItsMemtable",
	},
	{
		name:   "flushed-table-not-synced",
		breaks: "A table is named by the manifest, and its log trimmed, before its bytes are durable.",
		file:   inEngine + "/flush.go",
		swaps:  []swap{{"err = w.file.Sync()", "err = nil"}},
		pkg:    inEngine, run: powerCut,
	},
	{
		name:   "flushed-name-not-synced",
		breaks: "The names of flushed tables are not durable when the manifest names them.",
		file:   inEngine + "/flush.go",
		swaps:  []swap{{"return vfs.SyncDir(w.e.fs, w.e.tableDir())", "return nil"}},
		pkg:    inEngine, run: powerCut,
	},
	{
		name:   "trim-before-edit",
		breaks: "The log is trimmed before the edit that makes the flushed table count.",
		file:   inEngine + "/flush.go",
		swaps:  []swap{{"err = e.applyEdit(edit, func() {", "e.trimLog(edit.LogFloor)\n\terr = e.applyEdit(edit, func() {"}},
		pkg:    inEngine, run: eachCut,
	},
	{
		name:   "manifest-edit-not-synced",
		breaks: "An edit is answered for before it is durable.",
		file:   inSet + "/file.go",
		swaps:  []swap{{"if err := s.f.SyncData(); err != nil {", "if err := error(nil); err != nil {"}},
		pkg:    inSet, run: "TestAppliedEditsSurviveEveryCrash",
	},
	{
		name:   "manifest-marker-not-synced",
		breaks: "The old manifest is removed before the marker of the new one is durable.",
		file:   inSet + "/marker.go",
		swaps:  []swap{{"return vfs.SyncDir(fsys, dir)", "return nil"}},
		pkg:    inSet, run: "TestAppliedEditsSurviveEveryCrash",
	},
	{
		name:   "manifest-failed-sync-retried",
		breaks: "An edit whose sync failed can be followed by others, as if it were known what is on disk.",
		file:   inSet + "/file.go",
		swaps:  []swap{{"return s.poison(fmt.Errorf(\"sync %s: %w\", fileName(s.marker.file), err))", "return err"}},
		pkg:    inSet, run: "TestFailedSyncPoisonsForGood",
	},
	{
		name:   "install-name-not-synced",
		breaks: "The manifest names the outputs of a compaction before their new names are durable.",
		file:   inEngine + "/install.go",
		// Either directory's sync does it: a rename is not lost under both names.
		swaps: []swap{
			{"if err := vfs.SyncDir(e.fs, e.tableDir()); err != nil {", "if err := error(nil); err != nil {"},
			{"return tables, vfs.SyncDir(e.fs, path.Dir(files[0]))", "_ = path.Dir(files[0])\n\treturn tables, nil"},
		},
		pkg: inEngine, run: eachCut,
	},
	{
		name:   "install-edit-before-rename",
		breaks: "The edit that names the outputs of a compaction comes before their rename.",
		file:   inEngine + "/install.go",
		swaps: []swap{
			{"if err := e.fs.Rename(files[i], e.tablePath(num)); err != nil {", "if err := error(nil); err != nil || files[i] == \"\" {"},
			{"\te.stats.installs.Add(1)\n", `	for i, t := range tables {
		if err := e.fs.Rename(files[i], e.tablePath(t.Num)); err != nil {
			return err
		}
	}
	if err := vfs.SyncDir(e.fs, e.tableDir()); err != nil {
		return err
	}
	e.stats.installs.Add(1)
`},
		},
		pkg: inEngine, run: eachCut,
	},
	{
		name:   "install-output-not-synced",
		breaks: "The node believes a worker that says it has synced.",
		file:   inBoard + "/verify.go",
		swaps:  []swap{{"\t\terr = f.Sync()\n", ""}},
		pkg:    inBoard, run: "TestNodeItselfSyncsWhatItInstalls",
	},
	{
		name:   "install-digest-not-compared",
		breaks: "Outputs are installed whatever digest was reported.",
		file:   inBoard + "/verify.go",
		swaps:  []swap{{"case claim.Digest != m.Digest:", "case false:"}},
		pkg:    inBoard, run: "TestLyingWorkersAreRejected",
	},
	{
		name:   "install-output-not-read",
		breaks: "The content of outputs is not read before they are installed.",
		file:   inBoard + "/verify.go",
		swaps:  []swap{{"\tif full {\n", "\tif full && false {\n"}},
		pkg:    inBoard, run: "TestLyingWorkersAreRejected",
	},
	{
		name:   "install-content-not-compared",
		breaks: "A merge is done again, and its content is not compared.",
		file:   inBoard + "/audit.go",
		swaps:  []swap{{"want.RangeDeletes == 0 && want.Digest != got.Digest", "false"}},
		pkg:    inBoard, run: "TestInventedResultsAreRejectedByAnAudit",
	},
	{
		name:   "install-output-not-sealed",
		breaks: "An output that the worker has still open for writing is verified and installed.",
		file:   inBoard + "/staging.go",
		swaps:  []swap{{"f, err := b.o.FS.OpenForeign(name, true)", "f, err := b.o.FS.OpenForeign(name, false)"}},
		pkg:    inBoard, run: "TestLyingWorkersAreRejected|TestZombieCannotChangeWhatIsInstalled",
	},
	{
		name:   "board-old-epoch-accepted",
		breaks: "A worker whose lease went to another one can still complete.",
		file:   inBoard + "/complete.go",
		swaps:  []swap{{"|| j.epoch != k.Epoch ", ""}},
		pkg:    inBoard, run: "TestLeaseExpiresAndTheLateWorkerIsFenced|TestKeysOfNobodyAreFenced",
	},
	{
		name:   "board-verified-job-expires",
		breaks: "A job can expire, and be given to another worker, while its outputs are verified.",
		file:   inBoard + "/complete.go",
		swaps:  []swap{{"if j.state != StateLeased || j.granting {", "if j.granting {"}},
		pkg:    inBoard, run: "TestJobBeingVerifiedCannotExpireAndAnswersRepetitions",
	},
	{
		name:   "merge-input-digest-ignored",
		breaks: "A worker merges whatever file stands under the name of an input.",
		file:   inMerge + "/run.go",
		swaps:  []swap{{"m.Size != uint64(in.Size) || m.Digest != in.Digest {", "m.Size != uint64(in.Size) {"}},
		pkg:    inMerge, run: "TestMergeRefusesAnotherTable",
	},
	{
		name:   "merge-drops-tombstone-early",
		breaks: "Tombstones go before the bottom: older values below come back.",
		file:   inMerge + "/group.go",
		swaps:  []swap{{"if !g.bottom {", "if false {"}},
		pkg:    inMerge, run: "TestMergeScripts|TestMergeChangesNoReading",
	},
	{
		name:   "merge-joins-across-snapshot",
		breaks: "Versions are joined across a snapshot, which then reads the future or nothing.",
		file:   inMerge + "/group.go",
		swaps:  []swap{{"!g.open || s != g.stripe || old != g.old {", "!g.open || old != g.old {"}},
		pkg:    inMerge, run: "TestMergeScripts|TestMergeChangesNoReading",
	},
	{
		name:   "merge-ignores-range-delete",
		breaks: "Entries under a range delete are kept and survive it at the bottom.",
		file:   inMerge + "/group.go",
		swaps:  []swap{{"ok && t.Seq() < seq {", "ok && t.Seq() < seq && false {"}},
		pkg:    inMerge, run: "TestMergeScripts|TestMergeChangesNoReading",
	},
	{
		name:   "bottom-ignores-fragments-above",
		breaks: "A tombstone is collected under a fragment in a younger table, which then brings the deleted value back.",
		file:   inPicker + "/cleanup.go",
		swaps:  []swap{{"(older || t.Merges > 0 || t.Quarantined)", "(older || t.Quarantined)"}},
		pkg:    inPicker, run: "TestBottommostLeavesOutWhatIsOutside|TestPicks",
	},
	{
		name:   "bottom-ignores-memtables",
		breaks: "A tombstone is collected under a fragment in a memtable.",
		file:   inPicker + "/cleanup.go",
		swaps:  []swap{{"for _, s := range memMerges {", "for _, s := range memMerges[:0] {"}},
		pkg:    inPicker, run: "TestBottommostLeavesOutWhatIsOutside|TestPicks",
	},
	{
		name:   "block-checksum-ignored",
		breaks: "A block is believed whatever its checksum says: rot becomes a wrong answer.",
		file:   inTable + "/reader.go",
		swaps:  []swap{{"if checksum(b[:n], h.offset) != want {", "if false && checksum(b[:n], h.offset) != want {"}},
		pkg:    inTable, run: "TestReadsOfDamagedTablesFailOrAreRight|TestEveryFlippedByteIsDetected",
	},
	{
		name:   "hash-index-believed",
		breaks: "What the hash index points to is taken without a look whose value it is.",
		file:   inTable + "/values.go",
		swaps:  []swap{{"!ok || !bytes.Equal(key, user) {", "!ok || !bytes.Equal(key, key) {"}},
		pkg:    inTable, run: "TestAnyHashIndexGivesTheRightAnswers",
	},
	{
		name:   "row-cache-takes-old-reads",
		breaks: "A slow read puts the old row back into the cache after a newer write went by.",
		file:   inCache + "/rows.go",
		swaps:  []swap{{"if at < *s.floor(hash) || r.ranges", "if r.ranges"}},
		pkg:    inCache, run: "TestRowsFollowSequences",
	},
	{
		name:   "overtaken-set-applied",
		breaks: "A conditional write whose read is overtaken is applied all the same and shadows what came between.",
		file:   inEngine + "/commit.go",
		swaps:  []swap{{"if e.overtaken(r.batch, ranges) {", "if e.overtaken(r.batch, ranges) && false {"}},
		pkg:    inEngine, run: "TestConditionalSetLosesAgainstWhateverCameBetween|TestConditionIsCheckedWithinAGroup",
	},
	{
		name:   "ingest-overtakes-memtable",
		breaks: "An ingest is published over a memtable with older changes in its range.",
		file:   inEngine + "/ingest.go",
		swaps:  []swap{{"if !in.overlapsMemtables() {", "if true {"}},
		pkg:    inEngine, run: "TestEngineEqualsModel",
	},
	{
		name:   "checkpoint-name-not-synced",
		breaks: "A checkpoint is acknowledged before the names in it are durable.",
		file:   inEngine + "/checkpoint.go",
		swaps:  []swap{{"if err := vfs.SyncDir(fsys, path.Join(dir, name)); err != nil {", "if err := error(nil); err != nil && name == \"\" {"}},
		pkg:    inEngine, run: eachCut,
	},
	{
		name:   "join-forgets-a-conflict",
		breaks: "Of two values under one plain clock one vanishes in the join.",
		file:   inJoin + "/sibling.go",
		swaps:  []swap{{"return bytes.Compare(a.Value, b.Value)", "return 0 * bytes.Compare(a.Value, b.Value)"}},
		pkg:    inJoin, run: "TestSamePlainClockWithAnotherValueIsAConflict",
	},
	{
		name:   "tail-forgets-frame",
		breaks: "The change feed goes on with the next frame of the log when nobody waited for one to be durable.",
		file:   inEngine + "/tail.go",
		swaps:  []swap{{"if len(t.ops) > 0 || t.ingSeq != 0 {", "if false {"}},
		pkg:    inEngine, run: "TestTailThatIsAskedTooEarlyLosesNothing",
	},
	{
		name:   "watch-completes-early",
		breaks: "A message of Watch says that a sequence was sent of which more follows: who resumes there misses it.",
		file:   inStore + "/watch.go",
		swaps:  []swap{{"if err = w.flush(ctx, c.Seq-1); err == nil {", "if err = w.flush(ctx, c.Seq); err == nil {"}},
		pkg:    inStore, run: "TestWatchCompletesASequenceOnlyWhenAllOfItWasSent",
	},
	{
		name:   "watch-before-durable",
		breaks: "Watch tells sequences that a crash takes back and gives to other changes.",
		file:   inStore + "/watch.go",
		swaps:  []swap{{"if err := w.s.e.WaitDurable(seq); err != nil {", "if err := error(nil); err != nil {"}},
		pkg:    inStore, run: "TestSequencesThatAreToldAreDurableInEveryMode",
	},
	{
		name:   "expired-value-lives-on",
		breaks: "A value is still there in the second in which it expires.",
		file:   inJoin + "/sibling.go",
		swaps:  []swap{{"nowUnix < s.ExpiresAt", "nowUnix <= s.ExpiresAt"}},
		pkg:    inStore, run: "TestExpiryIsExactToTheSecondInEveryRead",
	},
	{
		name:   "refusal-before-durable",
		breaks: "A condition is refused on the word of a write that a crash can still take away.",
		file:   inStore + "/batch.go",
		swaps:  []swap{{"return pos, d.readSeq, err", "return pos, 0, err"}},
		pkg:    inStore, run: "TestRefusalsWaitForWhatTheyRestOn",
	},
	{
		name:   "repeat-answered-before-durable",
		breaks: "A repeat gets the answer of a first request that a crash can still take away.",
		file:   inStore + "/batch.go",
		swaps:  []swap{{"return len(sc.items), m.once.readSeq, err", "return len(sc.items), 0, err"}},
		pkg:    inStore, run: "TestARepeatWaitsForTheFirst",
	},
	{
		name:   "condition-ignores-batch",
		breaks: "The conditions of a batch are judged by the state before it.",
		file:   inStore + "/decision.go",
		swaps:  []swap{{"d.judge(cur, o.Condition)", "d.judge(d.before, o.Condition)"}},
		pkg:    inStore, run: "TestConditionsSeeTheOperationsInFrontOfThem",
	},
	{
		name:   "collect-what-replicas-lack",
		breaks: "A delete is collected by age alone, whatever its replicas have.",
		file:   inMerge + "/group.go",
		swaps:  []swap{{"if !g.job.CutsInForce {", "if true {"}},
		pkg:    inMerge, run: "TestMergeScripts|TestCutsAndDropsTakeWhatTheyNameAndNothingElse",
	},
	{
		name:   "collect-by-the-largest-cut",
		breaks: "What one replica has is taken for what all have.",
		file:   inEqual + "/ground.go",
		swaps:  []swap{{"cut, all = min(cut, f.seq), all && ok", "cut, all = min(cut, f.seq), all || ok"}},
		pkg:    inEqual, run: "TestACutNeedsEveryReplica",
	},
	{
		name:   "equal-with-a-gone-directory",
		breaks: "What was equal with a data directory counts for its successor.",
		file:   inEqual + "/registry.go",
		swaps:  []swap{{"p.incarnation == kept.incarnation && ", ""}},
		pkg:    inEqual, run: "TestFactsEndWithWhatTheySpeakOf|TestNoCutExceedsWhatWasRecordedForEveryReplica",
	},
	{
		name:   "equal-before-the-change",
		breaks: "A comparison that began before a range was lost counts after it.",
		file:   inEqual + "/registry.go",
		swaps:  []swap{{"if seq < r.floor || !old.known {", "if !old.known {"}},
		pkg:    inEqual, run: "TestFactsEndWithWhatTheySpeakOf",
	},
	{
		name:   "cleanup-joins-old-and-new",
		breaks: "A record that stays is joined with what a cleanup drops.",
		file:   inMerge + "/group.go",
		swaps:  []swap{{"t.Seq() <= g.dropTo; !g.open", "false; !g.open"}},
		pkg:    inMerge, run: "TestMergeScripts|TestCutsAndDropsTakeWhatTheyNameAndNothingElse",
	},
	{
		name:   "cleanup-leaves-the-cache",
		breaks: "Rows of ranges that were cleaned up stay in the row cache.",
		file:   inEngine + "/cleanup.go",
		swaps:  []swap{{"e.rows.Clear(ikey.Seq(e.applied.Load()) + 1)", ""}},
		pkg:    inEngine, run: "TestCleanupRemovesWhatIsNotOwnedAndNothingElse",
	},
}
