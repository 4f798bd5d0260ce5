package check

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/pairdb/pairdb/integration/history"
)

// The rules of Linearizable.
const (
	NotLinearizable Rule = "history of a key is not linearizable"
	Undecided       Rule = "linearizability not decided in time"
)

// perKey bounds the search of one key; it takes milliseconds when few answers are missing.
const perKey = 30 * time.Second

// model is a register: blind writes, deletions, conditional writes and reads at one node. The state is the ID
// of the write that stands there, "" if none does.
var model = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, _ any) (bool, any) {
		stands, op := state.(string), input.(history.Op)
		if op.Kind == history.Read {
			if stands == "" {
				return len(op.Values) == 0, stands
			}
			return slices.Equal(op.Values, []string{stands}), stands
		}
		holds := (!op.IfAbsent || stands == "") && (op.IfValue == "" || op.IfValue == stands)
		next := op.ID
		if op.Kind == history.Delete {
			next = ""
		}
		switch {
		case op.Outcome == history.OK:
			return holds, next
		case op.Outcome == history.Failed: // refused by its condition
			return !holds, stands
		case holds: // an answer that was lost
			return true, next
		}
		return true, stands
	},
	DescribeOperation: func(input, _ any) string { return describe(input.(history.Op)) },
	DescribeState:     func(state any) string { return fmt.Sprintf("%q", state) },
}

// Linearizable requires that each of the keys, which are all written and read at one node, behaves like one
// register. Writes without an answer may have been made at any time after their start, or never.
func Linearizable(ops []history.Op, of func(key string) bool) []Violation {
	keys := map[string][]porcupine.Operation{}
	for _, op := range ops {
		if !of(op.Key) || op.Outcome == history.Failed && !op.Refused || op.Kind == history.Read && op.Outcome != history.OK {
			continue
		}
		end := int64(op.End)
		if op.Outcome == history.Unknown {
			end = math.MaxInt64
		}
		keys[op.Key] = append(keys[op.Key], porcupine.Operation{Input: op, Call: int64(op.Start), Return: end})
	}
	var out []Violation
	for key, operations := range keys {
		rule := NotLinearizable
		switch porcupine.CheckOperationsTimeout(model, operations, perKey) {
		case porcupine.Ok:
			continue
		case porcupine.Unknown:
			rule = Undecided
		}
		v := Violation{Rule: rule, Key: key, Text: fmt.Sprintf("%d operations", len(operations))}
		for _, o := range operations {
			v.Ops = append(v.Ops, o.Input.(history.Op))
		}
		out = append(out, v)
	}
	return out
}
