package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/pairdb/pairdb/libs/client"
)

// A read-modify-write: the clock of the read says what was seen, so a concurrent write is kept beside
// ours and never lost.
func Example() {
	ctx := context.Background()
	c, err := client.New("127.0.0.1:8080", client.Options{Tenant: "shop"})
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
}

// A batch is sent with one call; refused items are named.
func ExampleClient_Write() {
	c, err := client.New("127.0.0.1:8080", client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	var b client.Batch
	b.Put("fruit/apple", []byte("red"))
	b.Put("fruit/pear", []byte("green"))
	b.Delete("fruit/plum")
	var refused *client.ItemError
	switch err := c.Write(context.Background(), &b); {
	case errors.As(err, &refused):
		fmt.Println("not stored:", refused.Index, refused.Reason)
	case err != nil:
		log.Fatal(err)
	}
}

// A walk over a range goes on where a broken connection cut it.
func ExampleClient_Scan() {
	c, err := client.New("127.0.0.1:8080", client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	for record, err := range c.Scan(context.Background(), "fruit/", "fruit0") {
		if err != nil {
			log.Fatal(err)
		}
		if value, found := client.Winner(record); found {
			fmt.Println(record.Key, string(value))
		}
	}
}

// Operations of a pipeline share messages and syncs: begin many, then wait.
func ExampleClient_Pipeline() {
	ctx := context.Background()
	c, err := client.New("127.0.0.1:8080", client.Options{})
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
}
