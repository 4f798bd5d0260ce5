// Package engines puts storage engines behind one small interface, so that the same loop can
// measure them: PairDB's own, Pebble, Badger, bbolt, goleveldb and, with the build tag rocksdb,
// RocksDB. It never measures anything, and it hides no work: what an adapter does beyond the call
// of its engine is the copy of a value into the caller's buffer, which all of them pay.
//
// There is one file per engine; the numbers that tune them are in settings.go, with their reasons.
package engines
