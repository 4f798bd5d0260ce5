package pairdbtest_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/pairdb/pairdb/integration/pairdbtest"
	"github.com/pairdb/pairdb/integration/pairdbtest/scratch"
)

// images are built before the tests, because an example can neither fail nor be skipped by itself.
var images pairdbtest.Images

func TestMain(m *testing.M) {
	if given := os.Getenv(victimImages); given != "" {
		victim(given)
	}
	var err error
	images, err = scratch.Build()
	switch {
	case errors.Is(err, scratch.ErrNoDocker) && os.Getenv("CI") != "true":
		fmt.Println("skipped:", err)
		os.Exit(0)
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(scratch.Main(m))
}
