package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pairdb/pairdb/libs/client"
	storagev1 "github.com/pairdb/pairdb/proto/pairdb/storage/v1"
)

const tenant = "bench"

// bench is one run: its servers, rows and results.
type bench struct {
	size     size
	binaries string
	dir      string
	only     []string
	progress io.Writer

	cleanup []func() // in reverse
	rows    []row
	keys    []string
	value   []byte
	results map[cell][]sample
	merges  []mergeResult

	echo, node storagev1.StorageServiceClient
}

// row is one kind of request to one server. prepare makes what its workers need and returns how
// they do one request, and what to do after.
type row struct {
	name    string
	server  *process
	prepare func(ctx context.Context, depth int) (call, func(), error)
}

// cell is a row at a number of requests in flight.
type cell struct {
	row   string
	depth int
}

// sample is a cell in one round.
type sample struct {
	rate        float64       // operations per second
	cpu         time.Duration // of client and server, per operation
	calibration time.Duration // of the loop beside it
	latency     *histogram    // per request
}

func (b *bench) wants(name string) bool {
	if b.only == nil {
		return true
	}
	for _, w := range b.only {
		if strings.Contains(name, w) {
			return true
		}
	}
	return false
}

func (b *bench) later(f func()) { b.cleanup = append(b.cleanup, f) }

func (b *bench) close() {
	for i := len(b.cleanup) - 1; i >= 0; i-- {
		b.cleanup[i]()
	}
}

// start starts the servers and fills them.
func (b *bench) start(ctx context.Context) error {
	b.results = map[cell][]sample{}
	b.value = make([]byte, valueBytes)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b.value {
		b.value[i] = byte('a' + r.IntN(26))
	}
	for i := range b.size.keys {
		b.keys = append(b.keys, fmt.Sprintf("key-%0*d", keyBytes-4, i))
	}
	return errors.Join(b.startEcho(), b.startNode(ctx), b.startEtcd(ctx), b.startRedis(ctx))
}

func (b *bench) key() string { return b.keys[rand.IntN(len(b.keys))] }

func dial(addr string) (*grpc.ClientConn, error) {
	return grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

func (b *bench) startEcho() error {
	p, addr, err := startSelf("echo")
	if err != nil {
		return err
	}
	b.later(p.stop)
	conn, err := dial(addr)
	if err != nil {
		return err
	}
	b.later(func() { conn.Close() })
	b.echo = storagev1.NewStorageServiceClient(conn)
	b.rows = append(b.rows, b.unaryRows("echo", p, b.echo)...)
	b.rows = append(b.rows, row{"echo stream", p, func(ctx context.Context, depth int) (call, func(), error) {
		return b.streams(ctx, depth, b.echo)
	}})
	return nil
}

// streams opens one stream a worker, each with one operation in flight, through the generated code.
func (b *bench) streams(ctx context.Context, depth int, c storagev1.StorageServiceClient) (call, func(), error) {
	ctx, cancel := context.WithCancel(ctx)
	streams := make([]storagev1.StorageService_PipelineClient, depth)
	for i := range streams {
		var err error
		if streams[i], err = c.Pipeline(ctx); err != nil {
			cancel()
			return nil, nil, err
		}
	}
	return func(_ context.Context, w int) (int, error) {
		op := &storagev1.PipelineOp{Tag: 1, Key: b.key(), Op: &storagev1.PipelineOp_Read{Read: &storagev1.ReadOp{}}}
		if err := streams[w].Send(&storagev1.PipelineRequest{Tenant: tenant, Ops: []*storagev1.PipelineOp{op}}); err != nil {
			return 0, err
		}
		resp, err := streams[w].Recv()
		if err == nil && !resp.GetResults()[0].GetRead().GetFound() {
			err = errors.New("a key is missing")
		}
		return 1, err
	}, cancel, nil
}

// unaryRows are the calls with one answer, the same for the echo and the node.
func (b *bench) unaryRows(prefix string, p *process, c storagev1.StorageServiceClient) []row {
	simple := func(name string, do call) row {
		return row{prefix + " " + name, p, func(context.Context, int) (call, func(), error) { return do, func() {}, nil }}
	}
	return []row{
		simple("Read", func(ctx context.Context, _ int) (int, error) {
			r, err := c.Read(ctx, &storagev1.ReadRequest{Tenant: tenant, Key: b.key()})
			if err == nil && len(r.GetValue()) != valueBytes {
				err = errors.New("a key is missing")
			}
			return 1, err
		}),
		simple("Write", func(ctx context.Context, _ int) (int, error) {
			_, err := c.Write(ctx, &storagev1.WriteRequest{Tenant: tenant, Key: b.key(), Value: b.value})
			return 1, err
		}),
		simple("BatchRead", func(ctx context.Context, _ int) (int, error) {
			req := &storagev1.BatchReadRequest{Tenant: tenant, Keys: make([]string, batchSize)}
			for i := range req.Keys {
				req.Keys[i] = b.key()
			}
			r, err := c.BatchRead(ctx, req)
			if err == nil && len(r.GetResults()) != batchSize {
				err = errors.New("an answer is missing")
			}
			return batchSize, err
		}),
		simple("BatchWrite", func(ctx context.Context, _ int) (int, error) {
			req := &storagev1.BatchWriteRequest{Tenant: tenant, Ops: make([]*storagev1.BatchOp, batchSize)}
			for i := range req.Ops {
				req.Ops[i] = &storagev1.BatchOp{Key: b.key(), Op: &storagev1.BatchOp_Put{Put: &storagev1.PutOp{Value: b.value}}}
			}
			r, err := c.BatchWrite(ctx, req)
			if err != nil {
				return 0, err
			}
			for _, item := range r.GetResults() {
				if e := item.GetError(); e != nil {
					return 0, errors.New(e.GetMessage())
				}
			}
			return batchSize, nil
		}),
	}
}

// startNode starts a storage node with a compactor, as in a pod.
func (b *bench) startNode(ctx context.Context) error {
	n, err := b.startPod(ctx, "node", nil)
	if err != nil {
		return err
	}
	b.node = storagev1.NewStorageServiceClient(n.conn)
	if err := b.fill(ctx, b.node, b.keys, b.value); err != nil {
		return err
	}
	c, err := client.New(n.addr, client.Options{Tenant: tenant})
	if err != nil {
		return err
	}
	b.later(func() { c.Close() })
	b.rows = append(b.rows, b.unaryRows("node", n.process, b.node)...)
	b.rows = append(b.rows,
		row{"node stream", n.process, func(ctx context.Context, depth int) (call, func(), error) {
			return b.streams(ctx, depth, b.node)
		}},
		b.pipelineRow("node Pipeline read", n.process, c, func(ctx context.Context, p *client.Pipeline) error {
			v, err := p.Get(b.key()).Wait(ctx)
			if err == nil && len(v.Bytes) != valueBytes {
				err = errors.New("a key is missing")
			}
			return err
		}),
		b.pipelineRow("node Pipeline write", n.process, c, func(ctx context.Context, p *client.Pipeline) error {
			_, err := p.Put(b.key(), b.value).Wait(ctx)
			return err
		}),
	)
	return nil
}

// pipelineRow has all workers share one stream.
func (b *bench) pipelineRow(name string, p *process, c *client.Client, do func(context.Context, *client.Pipeline) error) row {
	return row{name, p, func(ctx context.Context, _ int) (call, func(), error) {
		pipe, err := c.Pipeline(ctx)
		if err != nil {
			return nil, nil, err
		}
		return func(ctx context.Context, _ int) (int, error) { return 1, do(ctx, pipe) }, func() { pipe.Close() }, nil
	}}
}

// pod is a storage node with its compactor.
type pod struct {
	process    *process
	conn       *grpc.ClientConn
	addr, data string
}

func (b *bench) startPod(ctx context.Context, name string, env []string) (*pod, error) {
	var addrs [3]string
	for i := range addrs {
		var err error
		if addrs[i], err = freeAddr(); err != nil {
			return nil, err
		}
	}
	n := &pod{addr: addrs[0], data: filepath.Join(b.dir, name)}
	env = append([]string{
		"PAIRDB_NODE_ID=bench", "PAIRDB_JOIN=at-once", "PAIRDB_DATA_DIR=" + n.data, "PAIRDB_SOCKET=" + filepath.Join(b.dir, name+".sock"),
	}, env...)
	var err error
	n.process, err = startProcess(b.dir, name, append(env, "PAIRDB_GRPC_ADDR="+addrs[0], "PAIRDB_OPS_ADDR="+addrs[1], "PAIRDB_OPS_PPROF=true"), filepath.Join(b.binaries, "storage-node"))
	if err != nil {
		return nil, fmt.Errorf("%w (make build first)", err)
	}
	b.later(n.process.stop)
	fmt.Fprintf(b.progress, "%s: gRPC %s, ops %s\n", name, addrs[0], addrs[1])
	if err := until(ctx, name, func() bool { return httpOK("http://" + addrs[1] + "/ready") }); err != nil {
		return nil, err
	}
	worker, err := startProcess(b.dir, name+"-compactor", append(env, "PAIRDB_COMPACTOR_OPS_ADDR="+addrs[2]), filepath.Join(b.binaries, "compactor"))
	if err != nil {
		return nil, err
	}
	b.later(worker.stop)
	if err := until(ctx, name+"-compactor", func() bool { return httpOK("http://" + addrs[2] + "/ready") }); err != nil {
		return nil, err
	}
	if n.conn, err = dial(addrs[0]); err != nil {
		return nil, err
	}
	b.later(func() { n.conn.Close() })
	return n, nil
}

// fill writes keys, in batches.
func (b *bench) fill(ctx context.Context, c storagev1.StorageServiceClient, keys []string, value []byte) error {
	for len(keys) > 0 {
		n := min(len(keys), 500)
		req := &storagev1.BatchWriteRequest{Tenant: tenant, OmitClocks: true}
		for _, k := range keys[:n] {
			req.Ops = append(req.Ops, &storagev1.BatchOp{Key: k, Op: &storagev1.BatchOp_Put{Put: &storagev1.PutOp{Value: value}}})
		}
		if _, err := c.BatchWrite(ctx, req); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

func (b *bench) startEtcd(ctx context.Context) error {
	if !b.wants("etcd Put") && !b.wants("etcd Get") {
		return nil
	}
	p, addr, err := startSelf("etcd", filepath.Join(b.dir, "etcd"))
	if err != nil {
		return err
	}
	b.later(p.stop)
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{addr}, DialTimeout: 10 * time.Second})
	if err != nil {
		return err
	}
	b.later(func() { c.Close() })
	put := func(ctx context.Context, _ int) (int, error) {
		_, err := c.Put(ctx, b.key(), string(b.value))
		return 1, err
	}
	get := func(ctx context.Context, _ int) (int, error) {
		_, err := c.Get(ctx, b.key())
		return 1, err
	}
	same := func(do call) func(context.Context, int) (call, func(), error) {
		return func(context.Context, int) (call, func(), error) { return do, func() {}, nil }
	}
	b.rows = append(b.rows, row{"etcd Get", p, same(get)}, row{"etcd Put", p, same(put)})
	_, err = c.Put(ctx, "ready", "yes")
	return err
}

func (b *bench) startRedis(ctx context.Context) error {
	if !b.wants("redis GET") && !b.wants("redis SET") {
		return nil
	}
	if _, err := exec.LookPath("redis-server"); err != nil {
		return fmt.Errorf("%w: apt-get install redis-server", err)
	}
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	_, port, _ := strings.Cut(addr, ":")
	p, err := startProcess(b.dir, "redis", nil, "redis-server", "--bind", "127.0.0.1", "--port", port,
		"--dir", b.dir, "--appendonly", "yes", "--appendfsync", "always", "--save", "")
	if err != nil {
		return err
	}
	b.later(p.stop)
	if err := until(ctx, "redis", func() bool { return listening(addr) }); err != nil {
		return err
	}
	conn, err := dialRedis(addr)
	if err != nil {
		return err
	}
	defer conn.close()
	reply := make(chan error, 1)
	for _, k := range b.keys {
		if err := conn.do(ctx, reply, []byte("SET"), []byte(k), b.value); err != nil {
			return err
		}
	}
	for _, set := range []bool{false, true} {
		for _, one := range []bool{false, true} {
			b.rows = append(b.rows, b.redisRow(p, addr, set, one))
		}
	}
	return nil
}

// redisRow measures SET or GET over one pipelined connection, or over one connection a worker.
func (b *bench) redisRow(p *process, addr string, set, one bool) row {
	name := map[bool]string{false: "redis GET", true: "redis SET"}[set]
	if one {
		name += " pipelined"
	}
	return row{name, p, func(_ context.Context, depth int) (call, func(), error) {
		conns := make([]*redisConn, depth)
		replies := make([]chan error, depth)
		for i := range conns {
			replies[i] = make(chan error, 1)
			if one && i > 0 {
				conns[i] = conns[0]
				continue
			}
			var err error
			if conns[i], err = dialRedis(addr); err != nil {
				return nil, nil, err
			}
		}
		do := func(ctx context.Context, w int) (int, error) {
			if set {
				return 1, conns[w].do(ctx, replies[w], []byte("SET"), []byte(b.key()), b.value)
			}
			return 1, conns[w].do(ctx, replies[w], []byte("GET"), []byte(b.key()))
		}
		return do, func() {
			for i, c := range conns {
				if i == 0 || !one {
					c.close()
				}
			}
		}, nil
	}}
}

// measure runs every row at every depth, round after round, so that a slow minute of the machine
// meets all of them.
func (b *bench) measure(ctx context.Context) error {
	var rows []row
	for _, r := range b.rows {
		if b.wants(r.name) {
			rows = append(rows, r)
		}
	}
	b.rows = rows
	warm := b.size.each / 5
	for _, r := range b.rows {
		if _, err := b.once(ctx, r, b.size.depths[len(b.size.depths)-1], warm); err != nil {
			return fmt.Errorf("warm %s: %w", r.name, err)
		}
	}
	for round := range b.size.rounds {
		for _, depth := range b.size.depths {
			for _, r := range b.rows {
				s, err := b.once(ctx, r, depth, b.size.each)
				if err != nil {
					return fmt.Errorf("%s, %d in flight: %w", r.name, depth, err)
				}
				c := cell{r.name, depth}
				b.results[c] = append(b.results[c], s)
			}
			fmt.Fprintf(b.progress, "round %d of %d, %d in flight\n", round+1, b.size.rounds, depth)
		}
	}
	return nil
}

// once measures a row.
func (b *bench) once(ctx context.Context, r row, depth int, each time.Duration) (sample, error) {
	do, after, err := r.prepare(ctx, depth)
	if err != nil {
		return sample{}, err
	}
	defer after()
	calibration := calibrate()
	before, err := r.server.cpu()
	if err != nil {
		return sample{}, err
	}
	own := ownCPU()
	ops, took, h, err := drive(ctx, depth, each, do)
	own = ownCPU() - own
	if err != nil {
		return sample{}, err
	}
	used, err := r.server.cpu()
	if err != nil {
		return sample{}, err
	}
	cpu := (used - before + own) / time.Duration(max(ops, 1))
	return sample{rate: float64(ops) / took.Seconds(), cpu: cpu, calibration: calibration, latency: h}, nil
}
