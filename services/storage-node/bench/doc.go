// Program bench measures PairDB's engine beside its peers: Pebble, Badger, bbolt, goleveldb and, when
// Debian's librocksdb-dev is there, RocksDB. It is no part of the product, and it never touches a
// data directory that it did not make.
//
//	make bench-engine                                    everything at the default size
//	make bench-engine SIZE=smoke                         every row once, in about a minute
//	make bench-engine WORKLOADS='zipf|uniform' ENGINES=pairdb,pebble ARGS='--cpuprofile /tmp/p'
//	make bench-engine-growth OUT=/tmp/growth             cost per operation as the data grows
//
// # What is compared
//
// Package engines has one adapter per engine, and settings.go beside them has every number that tunes
// them: the same memory, filters, compression, durability and background threads for all. A read is
// charged for a copy into the caller's buffer and for no other; a scan touches every key and value
// and copies none. PairDB's compactions, which another process does in the product, are done by the
// executor inside the process, as the peers do theirs; its values are records with a clock, as the node
// stores them. Without a sync all of them hand the log to the
// operating system before a put returns, but for Pebble, whose puts a killed process may lose: the
// recovery row says how many. bbolt maps its whole file and is not held to the size of the caches.
//
// # Data
//
// Package workload makes it: keys of 24 bytes, values of 1 KiB and of 100 bytes. Half of a value is
// random, half is text: S2 makes about 60 % of it. At the default size the large set is four times the
// caches, and the small one fits. The same arguments give the same data, so that every value that
// is read is checked: its length and index always, every byte of each thousandth. A wrong read ends the
// run with an error.
//
// # How it measures
//
// Each engine has a process of its own (package suite): the parent asks the engines in turn, row by
// row, each row in two rounds with opposite order. Allocations, processor time and bytes written
// are those of that process: of the operations and of all that they cause in the background. The
// loop around an operation (the key, the check, one reading of the clock) costs about 0.1 µs, which is in
// the figures of all engines alike and matters only for the fastest.
//
// A set is loaded and settled once, read from end to end, and used for all rows of reads; before each
// of them the same clients run unmeasured, so that page cache and block cache are warm. Then come
// the rows that change it, each from a settled tree. Fills and durable writes begin with an empty
// directory. "+settle" counts until the engine has no work left.
//
// A calibration loop, a fixed amount of checksums and copies, runs before and after each
// measurement. Where it is more than 15 % off the median of the run, somebody else used the machine:
// the measurement is thrown away and repeated, three times at most; the report says how often, and
// shows the loop's relative time beside each figure. Differences of less than 30 % between two single
// runs are noise on a shared machine.
//
// The report begins with the ratios to Pebble's numbers (mean of the rounds). "written" is bytes to the
// disk per byte of keys and values put: write_bytes of /proc/self/io, which counts pages that were made
// dirty and what went past the page cache, so that a small synced append counts as the page it
// costs; it needs a data directory on a disk, not on tmpfs. "space" is what du says of the directory
// per byte of keys and values in it, log segments that are kept to be written again included. The
// machine's own limits, such as syncs per second, are measured in the same run, since no engine can be
// faster than those.
package main
