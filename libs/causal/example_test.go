package causal_test

import (
	"fmt"

	"github.com/pairdb/pairdb/libs/causal"
)

// Two clients read the same state and write through the same node: neither is lost.
func ExampleApply() {
	r, _, _ := causal.Apply(causal.Record{}, causal.Write{
		Value: []byte("milk"), Dot: causal.Dot{Node: "node-0/1", Counter: 1},
	}, causal.DefaultLimits)
	read := r.Clock()
	for i, v := range []string{"milk, eggs", "milk, bread"} {
		var outcome causal.Outcome
		r, outcome, _ = causal.Apply(r, causal.Write{
			Value: []byte(v), Context: read, HasContext: true,
			Dot: causal.Dot{Node: "node-0/1", Counter: uint64(2 + i)},
		}, causal.DefaultLimits)
		fmt.Println(outcome)
	}
	for _, s := range r.Siblings {
		fmt.Printf("%s\n", s.Value)
	}
	// Output:
	// APPLIED
	// SIBLING
	// milk, eggs
	// milk, bread
}

// A record survives its encoding, and bytes can be joined without decoding.
func ExampleJoinEncoded() {
	older := causal.Record{Siblings: []causal.Sibling{{Clock: causal.Clock{{Node: "c", Counter: 1}}, Value: []byte("old")}}}
	newer := causal.Record{Siblings: []causal.Sibling{{Clock: causal.Clock{{Node: "c", Counter: 2}}, Value: []byte("new")}}}
	joined, _ := causal.JoinEncoded(nil, newer.Encode(nil), older.Encode(nil))
	r, _ := causal.Decode(joined)
	fmt.Printf("%s\n", r.Siblings[0].Value)
	// Output: new
}
