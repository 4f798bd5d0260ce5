package pairdbtest_test

import (
	"context"
	"fmt"
	"log"

	"github.com/pairdb/pairdb/integration/pairdbtest"
	"github.com/pairdb/pairdb/libs/client"
)

// In a test it is three lines; Start terminates the pod when the test ends:
//
//	pod := pairdbtest.Start(t, pairdbtest.Options{})
//	c, err := client.New(pod.Addr(), client.Options{})
//	require.NoError(t, err)
//
// Here the images are those that this package's own tests have built.
func Example() {
	ctx := context.Background()
	pod, err := pairdbtest.Run(ctx, pairdbtest.Options{Images: images})
	if err != nil {
		log.Fatal(err)
	}
	defer pod.Terminate(ctx)

	c, err := client.New(pod.Addr(), client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Put(ctx, "greeting", []byte("hello")); err != nil {
		log.Fatal(err)
	}
	v, err := c.Get(ctx, "greeting")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", v.Bytes)
	// Output: hello
}
