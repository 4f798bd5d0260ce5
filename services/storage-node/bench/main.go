// Program bench measures PairDB's engine beside its peers. It is no part of the product, and never
// touches a data directory that it did not make.
//
// How it measures is in doc.go's sections below. See `make bench-engine`.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
