package suite

import (
	"fmt"

	"github.com/pairdb/pairdb/services/storage-node/bench/engines"
	"github.com/pairdb/pairdb/services/storage-node/bench/workload"
)

// ycsbClients is how many do each workload: twice the cores.
const ycsbClients = 4

// ycsbMix is the share of each operation in percent; the rest of 100 are gets.
type ycsbMix struct{ update, insert, scan, modify int }

var ycsbMixes = map[byte]ycsbMix{
	'a': {update: 50},
	'b': {update: 5},
	'c': {},
	'd': {insert: 5},
	'e': {insert: 5, scan: 95},
	'f': {modify: 50},
}

// ycsb is one of the core workloads of the Yahoo! Cloud Serving Benchmark (Cooper et al., 2010). Put
// is not synced. Workload D asks for what was inserted last.
func ycsb(kind byte) func(*session) ([]Measurement, error) {
	mix := ycsbMixes[kind]
	return func(s *session) ([]Measurement, error) {
		d, err := s.use(large)
		if err != nil {
			return nil, err
		}
		if _, err := d.db.Settle(); err != nil {
			return nil, err
		}
		clients := make([]operation, ycsbClients)
		writers := make([]engines.Writer, ycsbClients)
		for c := range clients {
			y := &ycsbClient{
				getter: *newGetter(d), mix: mix, latest: kind == 'd',
				w: d.db.NewWriter(), r: workload.NewRandom(opSeed + 1000*uint64(kind) + uint64(c)),
				next: zipfian(s, d, c), version: d.version.Add(1),
			}
			if y.latest {
				y.next = ranked(s, d, c)
			}
			writers[c], clients[c] = y.w, y.operation
		}
		before := d.inserted.Load()
		m, err := s.readMeasured(clients)
		for _, w := range writers {
			if cerr := w.Close(); err == nil {
				err = cerr
			}
		}
		if err == nil && d.inserted.Load() != before {
			m[0].Note = fmt.Sprintf("%d keys inserted", d.inserted.Load()-before)
		}
		return m, err
	}
}

type ycsbClient struct {
	getter
	mix     ycsbMix
	latest  bool
	w       engines.Writer
	r       *workload.Random
	next    func() uint64
	version uint64
	data    []byte
}

func (y *ycsbClient) operation() error {
	p := int(y.r.Below(100))
	if p < y.mix.update {
		return y.put(y.next())
	}
	if p -= y.mix.update; p < y.mix.insert {
		return y.insert()
	}
	if p -= y.mix.insert; p < y.mix.scan {
		n := 1 + int(y.r.Below(scanLength))
		var err error
		y.key, err = y.d.scan(y.key, y.next()%(y.d.Count-scanLength), n)
		return err
	}
	i := y.next()
	if y.latest {
		i = y.d.youngest(i)
	}
	if p -= y.mix.scan; p >= y.mix.modify {
		return y.get(i)
	}
	if err := y.get(i); err != nil {
		return err
	}
	return y.put(i)
}

func (y *ycsbClient) put(i uint64) error {
	y.key, y.data = y.d.Key(y.key, i), y.d.Value(y.data, i, y.version)
	if err := y.w.Set(y.key, y.data); err != nil {
		return err
	}
	return y.w.Commit()
}

func (y *ycsbClient) insert() error {
	i := y.d.reserved.Add(1) - 1
	if err := y.put(y.d.Count + i); err != nil {
		return err
	}
	y.d.acknowledge(i)
	return nil
}
