//go:build rocksdb

package engines

/*
#cgo LDFLAGS: -lrocksdb
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <rocksdb/c.h>

// One call from Go for each operation: a call costs some 50 ns, and the loops stay on this side.

// bench_get copies the value of a key into buf and returns its length, even if that is more than cap;
// -1 is a missing key.
static int64_t bench_get(rocksdb_t *db, rocksdb_readoptions_t *o, const char *key, size_t klen,
                         char *buf, size_t cap, char **err) {
	rocksdb_pinnableslice_t *s = rocksdb_get_pinned(db, o, key, klen, err);
	if (s == NULL) return -1;
	size_t n;
	const char *v = rocksdb_pinnableslice_value(s, &n);
	if (v == NULL) {
		rocksdb_pinnableslice_destroy(s);
		return -1;
	}
	if (n <= cap) memcpy(buf, v, n);
	rocksdb_pinnableslice_destroy(s);
	return (int64_t)n;
}

struct bench_scanned { uint64_t count, first, last, digest; };

static uint64_t bench_key_digest(const char *k, size_t n) {
	uint64_t d = 0;
	for (size_t i = n > 8 ? n - 8 : 0; i < n; i++) d = d << 8 | (unsigned char)k[i];
	return d;
}

static uint64_t bench_head(const char *v, size_t n) {
	uint64_t d = 0;
	for (size_t i = n < 8 ? n : 8; i > 0; i--) d = d << 8 | (unsigned char)v[i - 1];
	return d;
}

static struct bench_scanned bench_scan(rocksdb_t *db, rocksdb_readoptions_t *o, const char *key, size_t klen,
                                       uint64_t limit, char **err) {
	struct bench_scanned s = {0};
	rocksdb_iterator_t *it = rocksdb_create_iterator(db, o);
	for (rocksdb_iter_seek(it, key, klen); rocksdb_iter_valid(it) && s.count < limit; rocksdb_iter_next(it)) {
		size_t kn, vn;
		const char *k = rocksdb_iter_key(it, &kn), *v = rocksdb_iter_value(it, &vn);
		s.last = bench_key_digest(k, kn);
		if (s.count++ == 0) s.first = s.last;
		s.digest += bench_head(v, vn) + kn + vn;
	}
	rocksdb_iter_get_error(it, err);
	rocksdb_iter_destroy(it);
	return s;
}
*/
import "C"

import (
	"errors"
	"os"
	"time"
	"unsafe"
)

func init() { openers = append(openers, opener{"rocksdb", openRocksDB}) }

// rocksDB calls RocksDB through its C interface.
type rocksDB struct {
	db      *C.rocksdb_t
	options *C.rocksdb_options_t
	read    *C.rocksdb_readoptions_t
	write   *C.rocksdb_writeoptions_t
}

func openRocksDB(dir string, o OpenOptions) (Engine, error) {
	if err := os.MkdirAll(dir, 0o770); err != nil {
		return nil, err
	}
	cache := C.rocksdb_cache_create_lru(cacheBytes)
	defer C.rocksdb_cache_destroy(cache) // the table options keep it
	table := C.rocksdb_block_based_options_create()
	defer C.rocksdb_block_based_options_destroy(table)
	C.rocksdb_block_based_options_set_block_cache(table, cache)
	// At every level: optimize_filters_for_hits, which leaves the last one out, is off by default.
	C.rocksdb_block_based_options_set_filter_policy(table, C.rocksdb_filterpolicy_create_bloom_full(filterBits))

	options := C.rocksdb_options_create()
	C.rocksdb_options_set_create_if_missing(options, 1)
	C.rocksdb_options_set_block_based_table_factory(options, table)
	C.rocksdb_options_set_write_buffer_size(options, memtableBytes)
	C.rocksdb_options_set_max_write_buffer_number(options, memtables)
	C.rocksdb_options_set_max_background_jobs(options, compactions+1) // it counts flushes too
	C.rocksdb_options_set_level0_file_num_compaction_trigger(options, l0Compaction)
	C.rocksdb_options_set_level0_slowdown_writes_trigger(options, l0Slow)
	C.rocksdb_options_set_level0_stop_writes_trigger(options, l0Stop)
	C.rocksdb_options_set_max_open_files(options, openFiles)
	C.rocksdb_options_set_compression(options, C.rocksdb_snappy_compression)
	// Recommended by its tuning guide: sizes of levels follow the last one, so that space stays low.
	C.rocksdb_options_set_level_compaction_dynamic_level_bytes(options, 1)

	name := C.CString(dir)
	defer C.free(unsafe.Pointer(name))
	var cerr *C.char
	db := C.rocksdb_open(options, name, &cerr)
	if err := rocksError(cerr); err != nil {
		C.rocksdb_options_destroy(options)
		return nil, err
	}
	r := &rocksDB{db: db, options: options, read: C.rocksdb_readoptions_create(), write: C.rocksdb_writeoptions_create()}
	if o.Sync {
		C.rocksdb_writeoptions_set_sync(r.write, 1)
	}
	return r, nil
}

// rocksError takes over the message.
func rocksError(message *C.char) error {
	if message == nil {
		return nil
	}
	defer C.free(unsafe.Pointer(message))
	return errors.New("rocksdb: " + C.GoString(message))
}

func chars(b []byte) *C.char { return (*C.char)(unsafe.Pointer(unsafe.SliceData(b))) }

func (r *rocksDB) Get(key, dst []byte) ([]byte, bool, error) {
	for {
		dst = dst[:cap(dst)]
		var cerr *C.char
		n := C.bench_get(r.db, r.read, chars(key), C.size_t(len(key)), chars(dst), C.size_t(len(dst)), &cerr)
		if err := rocksError(cerr); err != nil || n < 0 {
			return nil, false, err
		}
		if int(n) <= len(dst) {
			return dst[:n], true, nil
		}
		dst = make([]byte, n)
	}
}

func (r *rocksDB) Scan(start []byte, n int) (Scanned, error) {
	var cerr *C.char
	s := C.bench_scan(r.db, r.read, chars(start), C.size_t(len(start)), C.uint64_t(n), &cerr)
	return Scanned{Count: int(s.count), First: uint64(s.first), Last: uint64(s.last), Digest: uint64(s.digest)}, rocksError(cerr)
}

func (r *rocksDB) NewWriter() Writer { return &rocksWriter{r: r, b: C.rocksdb_writebatch_create()} }

type rocksWriter struct {
	r *rocksDB
	b *C.rocksdb_writebatch_t
}

func (w *rocksWriter) Set(key, value []byte) error {
	C.rocksdb_writebatch_put(w.b, chars(key), C.size_t(len(key)), chars(value), C.size_t(len(value)))
	return nil
}

func (w *rocksWriter) Delete(key []byte) error {
	C.rocksdb_writebatch_delete(w.b, chars(key), C.size_t(len(key)))
	return nil
}

func (w *rocksWriter) Commit() error {
	var cerr *C.char
	C.rocksdb_write(w.r.db, w.r.write, w.b, &cerr)
	C.rocksdb_writebatch_clear(w.b)
	return rocksError(cerr)
}

func (w *rocksWriter) Close() error {
	if w.b != nil {
		C.rocksdb_writebatch_destroy(w.b)
		w.b = nil
	}
	return nil
}

func (r *rocksDB) Settle() (time.Time, error) {
	o := C.rocksdb_flushoptions_create()
	defer C.rocksdb_flushoptions_destroy(o)
	var cerr *C.char
	C.rocksdb_flush(r.db, o, &cerr)
	if err := rocksError(cerr); err != nil {
		return time.Time{}, err
	}
	return waitQuiet(func() (state uint64, busy bool) {
		for _, p := range []string{"rocksdb.mem-table-flush-pending", "rocksdb.num-running-flushes",
			"rocksdb.compaction-pending", "rocksdb.num-running-compactions"} {
			busy = busy || r.property(p) > 0
		}
		return r.property("rocksdb.current-super-version-number"), busy
	})
}

func (r *rocksDB) property(name string) uint64 {
	p := C.CString(name)
	defer C.free(unsafe.Pointer(p))
	var v C.uint64_t
	C.rocksdb_property_int(r.db, p, &v) // leaves 0 where the property isn't known
	return uint64(v)
}

func (r *rocksDB) Close() error {
	C.rocksdb_close(r.db)
	C.rocksdb_readoptions_destroy(r.read)
	C.rocksdb_writeoptions_destroy(r.write)
	C.rocksdb_options_destroy(r.options)
	return nil
}
