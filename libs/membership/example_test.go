package membership_test

import (
	"fmt"

	"github.com/pairdb/pairdb/libs/membership"
)

func Example() {
	// A node declares itself, twice.
	want := membership.Declaration{NodeID: "n1", State: membership.Joining, Incarnation: "i1", GRPCAddr: "10.0.0.1:8080", VirtualNodes: 150}
	joining, _ := membership.Declare(membership.Declaration{}, want, 1000)
	want.State = membership.Up
	up, _ := membership.Declare(joining, want, 2000)

	// Another one hears of it in the wrong order.
	m := membership.Map{}
	for _, d := range []membership.Declaration{up, joining} {
		changed, err := m.Merge(d)
		fmt.Println(len(changed), err)
	}
	fmt.Println(m["n1"].State, m["n1"].Version)
	// Output:
	// 1 <nil>
	// 0 <nil>
	// UP 2
}
