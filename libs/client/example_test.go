package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	"github.com/pairdb/pairdb/libs/client"
)

// A read-modify-write: the clock of the read says what was seen, so a concurrent write is kept beside
// ours and never lost.
func Example() {
	ctx := context.Background()
	c, err := client.New(addr, client.Options{Tenant: "shop"})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	cart, err := c.Get(ctx, "cart/42")
	if err != nil {
		log.Fatal(err)
	}
	r, err := c.Put(ctx, "cart/42", append(cart.Bytes, "apples\n"...), client.WithContext(cart.Clock), client.WithTTL(24*time.Hour))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(r.Outcome, r.Siblings)
	// Output: OUTCOME_APPLIED 1
}

// A condition makes a write depend on what is there, checked and applied as one step on the node. Here
// the first of two takes a name.
func ExampleClient_Put() {
	ctx := context.Background()
	c, err := client.New(addr, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	for _, owner := range []string{"ann", "bob"} {
		_, err := c.Put(ctx, "name/pairdb", []byte(owner), client.IfAbsent())
		switch {
		case client.ConditionFailed(err):
			fmt.Println(owner, "is too late")
		case err != nil:
			log.Fatal(err)
		default:
			fmt.Println(owner, "has it")
		}
	}
	// Output:
	// ann has it
	// bob is too late
}

// An absent key is an answer, not an error.
func ExampleClient_Get() {
	ctx := context.Background()
	c, err := client.New(addr, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	v, err := c.Get(ctx, "nobody")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(v.Found)
	// Output: false
}

// Only what was read is deleted: a value that came since stays.
func ExampleClient_Delete() {
	ctx := context.Background()
	c, err := client.New(addr, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Put(ctx, "session/7", []byte("ann")); err != nil {
		log.Fatal(err)
	}
	session, err := c.Get(ctx, "session/7")
	if err != nil {
		log.Fatal(err)
	}
	r, err := c.Delete(ctx, "session/7", client.WithContext(session.Clock))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(r.Outcome, r.Siblings)
	// Output: OUTCOME_APPLIED 0
}

// A key of one's own makes a write exact over restarts of the application: it is a name of the intent,
// kept with it.
func ExampleWithIdempotencyKey() {
	ctx := context.Background()
	c, err := client.New(addr, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	for range 2 {
		r, err := c.Put(ctx, "order/17", []byte("2 apples"), client.WithIdempotencyKey("order-17-created"))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(r.Outcome, r.Replayed)
	}
	// Output:
	// OUTCOME_APPLIED false
	// OUTCOME_APPLIED true
}

// The clock of a read as the condition: nothing was written since. Update does it in a loop.
func ExampleIfClock() {
	ctx := context.Background()
	c, err := client.New(addr, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	seen, err := c.Put(ctx, "leader", []byte("node-0"))
	if err != nil {
		log.Fatal(err)
	}
	if _, err := c.Put(ctx, "leader", []byte("node-1"), client.IfClock(seen.Clock)); err != nil {
		log.Fatal(err)
	}
	_, err = c.Put(ctx, "leader", []byte("node-2"), client.IfClock(seen.Clock))
	fmt.Println(client.ConditionFailed(err))
	// Output: true
}

// Every error of a call has an Error in it.
func ExampleError() {
	ctx := context.Background()
	c, err := client.New(addr, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	_, err = c.Put(ctx, "k", []byte("v"), client.IfAbsent(), client.IfValue([]byte("w")))
	var e *client.Error
	if errors.As(err, &e) {
		fmt.Println(e.Code, e.Reason, client.Retryable(err), client.MaybeApplied(err))
		fmt.Println(err)
	}
	// Output:
	// InvalidArgument INVALID_ARGUMENT_OPTIONS false false
	// put "k": a write has one condition, two are given (INVALID_ARGUMENT_OPTIONS)
}

// A counter: no update is lost, and none counts twice.
func ExampleClient_Update() {
	ctx := context.Background()
	c, err := client.New(addr, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	for range 3 {
		_, err := c.Update(ctx, "visits", func(v client.Value) ([]byte, error) {
			n := 0
			if v.Found {
				if _, err := fmt.Sscan(string(v.Bytes), &n); err != nil {
					return nil, err
				}
			}
			return fmt.Append(nil, n+1), nil
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	v, err := c.Get(ctx, "visits")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(v.Bytes))
	// Output: 3
}

// Two carts that were filled at the same time become one.
func ExampleClient_Resolve() {
	ctx := context.Background()
	c, err := client.New(addr, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	for _, goods := range []string{"apples", "pears"} { // neither has seen the other
		if _, err := c.Put(ctx, "cart/7", []byte(goods), client.WithContext(nil)); err != nil {
			log.Fatal(err)
		}
	}
	r, err := c.Resolve(ctx, "cart/7", func(siblings []*client.Sibling) ([]byte, error) {
		var all []string
		for _, s := range siblings {
			all = append(all, strings.Fields(string(s.Value))...)
		}
		slices.Sort(all)
		return []byte(strings.Join(slices.Compact(all), " ")), nil
	})
	if err != nil {
		log.Fatal(err)
	}
	v, err := c.Get(ctx, "cart/7")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(r.Siblings, string(v.Bytes))
	// Output: 1 apples pears
}

// A batch is sent with as few calls as the limits allow; refused items are named.
func ExampleClient_Write() {
	c, err := client.New(addr, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	var b client.Batch
	b.Put("fruit/apple", []byte("red"))
	b.Put("fruit/pear", []byte("green"))
	b.Put(strings.Repeat("long", 1000), nil)
	var refused *client.ItemError
	switch err := c.Write(context.Background(), &b); {
	case errors.As(err, &refused):
		fmt.Println("not stored:", refused.Index, refused.Reason)
	case err != nil:
		log.Fatal(err)
	}
	// Output: not stored: 2 INVALID_ARGUMENT_KEY
}

// The results say what each item did.
func ExampleClient_WriteResults() {
	c, err := client.New(addr, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	b := client.Batch{AtLeastOnce: true} // nobody else writes these keys
	b.Put("seat/1", []byte("ann"))
	b.Delete("seat/2")
	results, err := c.WriteResults(context.Background(), &b)
	if err != nil {
		log.Fatal(err)
	}
	for _, r := range results {
		fmt.Println(r.Outcome, r.Clock != nil)
	}
	// Output:
	// OUTCOME_APPLIED true
	// OUTCOME_APPLIED true
}

// The answers have the order of the keys.
func ExampleClient_GetMany() {
	ctx := context.Background()
	c, err := client.New(addr, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Put(ctx, "tree/oak", []byte("tall")); err != nil {
		log.Fatal(err)
	}
	values, err := c.GetMany(ctx, []string{"tree/bonsai", "tree/oak"})
	if err != nil {
		log.Fatal(err)
	}
	for _, v := range values {
		fmt.Printf("%t %q\n", v.Found, v.Bytes)
	}
	// Output:
	// false ""
	// true "tall"
}

// The keys that begin with a prefix.
func ExampleClient_Keys() {
	ctx := context.Background()
	c, err := client.New(addr, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	for _, key := range []string{"bird/owl", "bird/auk", "birds"} {
		if _, err := c.Put(ctx, key, nil); err != nil {
			log.Fatal(err)
		}
	}
	start, end := client.Prefix("bird/")
	for key, err := range c.Keys(ctx, start, end) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(key)
	}
	// Output:
	// bird/auk
	// bird/owl
}

// A walk over a range goes on where a broken connection cut it.
func ExampleClient_Scan() {
	ctx := context.Background()
	c, err := client.New(addr, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	for _, city := range []string{"rome", "athens"} {
		if _, err := c.Put(ctx, "city/"+city, []byte("old")); err != nil {
			log.Fatal(err)
		}
	}
	start, end := client.Prefix("city/")
	for record, err := range c.Scan(ctx, start, end) {
		if err != nil {
			log.Fatal(err)
		}
		if value, found := client.Winner(record); found {
			fmt.Println(record.Key, string(value))
		}
	}
	// Output:
	// city/athens old
	// city/rome old
}

// Changes as they happen. Event.After is where another watch goes on.
func ExampleClient_Watch() {
	ctx := context.Background()
	c, err := client.New(addr, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	before, err := c.Put(ctx, "price/apple", []byte("2"))
	if err != nil {
		log.Fatal(err)
	}
	start, end := client.Prefix("price/")
	for event, err := range c.Watch(ctx, start, end, 0) {
		if err != nil {
			log.Fatal(err)
		}
		if event.Kind == client.Progress { // the watch has begun
			if _, err := c.Put(ctx, "price/apple", []byte("3"), client.WithContext(before.Clock)); err != nil {
				log.Fatal(err)
			}
			continue
		}
		value, _ := client.Winner(event.Record)
		fmt.Println(event.Kind, event.Record.Key, string(value))
		break
	}
	// Output: written price/apple 3
}

// Operations of a pipeline share messages and syncs: begin many, then wait.
func ExampleClient_Pipeline() {
	ctx := context.Background()
	c, err := client.New(addr, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	p, err := c.Pipeline(ctx)
	if err != nil {
		log.Fatal(err)
	}
	var writes []*client.Future[client.Result]
	for i := range 1000 {
		writes = append(writes, p.Put(fmt.Sprintf("reading/%04d", i), []byte("21.5")))
	}
	for _, w := range writes {
		if _, err := w.Wait(ctx); err != nil { // durable when it is nil
			log.Print(err)
		}
	}
	first, err := p.Get("reading/0000").Wait(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(first.Bytes))
	if err := p.Close(); err != nil {
		log.Fatal(err)
	}
	// Output: 21.5
}

// spans stands for the handler of a tracer: otelgrpc.NewClientHandler() is one, too.
type spans struct{ stats.Handler }

func (spans) TagRPC(ctx context.Context, i *stats.RPCTagInfo) context.Context {
	fmt.Println("span", i.FullMethodName)
	return ctx
}
func (spans) HandleRPC(context.Context, stats.RPCStats)                         {}
func (spans) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (spans) HandleConn(context.Context, stats.ConnStats)                       {}

// A tracer is added as to any connection of gRPC.
func Example_tracing() {
	ctx := context.Background()
	c, err := client.New(addr, client.Options{DialOptions: []grpc.DialOption{grpc.WithStatsHandler(spans{})}})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Get(ctx, "k"); err != nil {
		log.Fatal(err)
	}
	// Output: span /pairdb.storage.v1.StorageService/Read
}
