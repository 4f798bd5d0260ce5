package engines

// The settings. Each engine gets the same memory, the same filters, the same kind of compression,
// the same durability and the same background threads; what a setting is called in an engine, and
// what can't be set there, stands beside its use in the adapter.
const (
	// memtableBytes is 64 MiB: what each of them writes to disk as one sorted run. The default of
	// Badger, RocksDB and PairDB; Pebble and goleveldb have 4 MiB, which a user who writes much raises.
	memtableBytes = 64 << 20

	// memtables is how many of them may exist, the active one included, before writes wait.
	memtables = 3

	// cacheBytes is 256 MiB of cache for each engine, whatever it caches: less than the large data set
	// (about 1 GiB), more than the small one (100 MiB).
	cacheBytes = 256 << 20

	// rowCacheBytes is PairDB's share of cacheBytes for rows; the rest is for blocks. Blocks hold the
	// keys of values of 1 KiB and no values: 40 MiB for a million of them.
	rowCacheBytes = cacheBytes / 4 * 3

	// filterBits is 10 bits of Bloom filter per key, at every level: one in a hundred misses reads a
	// block.
	filterBits = 10

	// badgerFalsePositives is what 10 bits per key give: Badger takes the rate instead of the bits.
	badgerFalsePositives = 0.01

	// compactions that may run at a time: PairDB's executor in this process has one slot, and the
	// machine two cores, one of which the writers need. Badger allows no less than two.
	compactions       = 1
	badgerCompactions = 2

	// l0Compaction, l0Slow and l0Stop are the tables (or sublevels) in level 0 that start a
	// compaction, slow writes down, and stop them, in the peers. PairDB waits for a merge that pays
	// and has its defaults.
	l0Compaction = 4
	l0Slow       = 12
	l0Stop       = 24

	// openFiles is enough for every table of the largest data set.
	openFiles = 1000

	// boltBatchDelayMicros bounds how long bbolt collects concurrent writers into one transaction
	// when fewer came than are expected: about one sync.
	boltBatchDelayMicros = 500
)
