package suite

// Row is one line of the benchmark: a workload that each engine runs in turn.
type Row struct {
	Name string
	// Help says what it does, in one line.
	Help string
	run  func(*session) ([]Measurement, error)
	// killed rows open what a killed process left: the parent makes it before.
	killed bool
}

// Rows are all rows, in the order in which they run: those that begin with an empty directory, those
// that only read, then those that change the data set.
func Rows() []Row {
	return []Row{
		{Name: "fill-random", Help: "put 1 KiB values under keys in random order, 1 writer, not synced; then settle", run: fill(large, true)},
		{Name: "fill-seq", Help: "the same in key order", run: fill(large, false)},
		{Name: "fill-random-100b", Help: "put 100 byte values in random order, 1 writer, not synced; then settle", run: fill(short, true)},
		{Name: "durable-1", Help: "put 1 KiB values, each durable before the next, 1 writer", run: durable(1)},
		{Name: "durable-16", Help: "the same with 16 writers", run: durable(16)},
		{Name: "durable-64", Help: "the same with 64 writers", run: durable(64)},
		{Name: "recovery", Help: "open after kill -9 with a memtable of log, until the first read", run: recovery, killed: true},

		{Name: "miss-1", Help: "get keys that are not there, 1 reader", run: reads(large, misses, 1)},
		{Name: "miss-8", Help: "the same with 8 readers", run: reads(large, misses, 8)},
		{Name: "zipf-1", Help: "get by the zipfian distribution, data beyond the cache, 1 reader", run: reads(large, zipfian, 1)},
		{Name: "zipf-8", Help: "the same with 8 readers", run: reads(large, zipfian, 8)},
		{Name: "uniform-1", Help: "get any key, data beyond the cache, 1 reader", run: reads(large, uniform, 1)},
		{Name: "uniform-8", Help: "the same with 8 readers", run: reads(large, uniform, 8)},
		{Name: "scan-100", Help: "read 100 keys and values in order from any key, 1 reader", run: scans(large)},
		{Name: "read-while-writing", Help: "get any key with 2 readers beside 20,000 puts per second", run: readWhileWriting},
		{Name: "ycsb-c", Help: "YCSB C: get zipfian; 4 clients, as all of YCSB here", run: ycsb('c')},
		{Name: "ycsb-b", Help: "YCSB B: 95 % get, 5 % put, zipfian", run: ycsb('b')},
		{Name: "ycsb-a", Help: "YCSB A: 50 % get, 50 % put, zipfian", run: ycsb('a')},
		{Name: "ycsb-f", Help: "YCSB F: 50 % get, 50 % get-then-put, zipfian", run: ycsb('f')},
		{Name: "ycsb-d", Help: "YCSB D: 95 % get of what is young, 5 % insert", run: ycsb('d')},
		{Name: "ycsb-e", Help: "YCSB E: 95 % scan of up to 100, 5 % insert", run: ycsb('e')},
		{Name: "overwrite-4", Help: "put as many values as there are keys, any key, 4 writers, not synced; then settle", run: overwrite},

		{Name: "uniform-cached-1", Help: "get any key, data within the cache, 1 reader", run: reads(small, uniform, 1)},
		{Name: "uniform-cached-8", Help: "the same with 8 readers", run: reads(small, uniform, 8)},
		{Name: "uniform-100b-1", Help: "get any key, values of 100 bytes, 1 reader", run: reads(short, uniform, 1)},
		{Name: "uniform-100b-8", Help: "the same with 8 readers", run: reads(short, uniform, 8)},
	}
}

// rowNamed returns the row of that name.
func rowNamed(name string) (Row, bool) {
	for _, r := range Rows() {
		if r.Name == name {
			return r, true
		}
	}
	return Row{}, false
}
