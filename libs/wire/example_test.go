package wire_test

import (
	"fmt"

	"github.com/pairdb/pairdb/libs/wire"
)

func Example() {
	p, err := wire.GrantToProto(someGrant())
	if err != nil {
		panic(err)
	}
	g, err := wire.GrantFromProto(p)
	fmt.Println(g.Job.Inputs[0].Num, g.Lease, err)
	p.Inputs[0].Largest = []byte("no key")
	_, err = wire.GrantFromProto(p)
	fmt.Println(err)
	// Output:
	// 11 15s <nil>
	// invalid message: malformed key: 6 bytes, at least 8 expected
}
