package migrator

import (
	"context"
	"errors"
	"fmt"

	"github.com/pairdb/pairdb/services/migrator/internal/compare"
	"github.com/pairdb/pairdb/services/migrator/internal/move"
)

func isDenied(err error) bool { return errors.Is(err, errDenied) }

// errUnequal says that a comparison could not show that the other side has everything.
var errUnequal = errors.New("keys are written to so often that they were never seen equal")

// comparisons is how often ranges are compared of which some keys are written to all the time. What the
// last snapshot had of them is at the other side all the same; what came after is the tail's business.
const comparisons = 3

// comparison returns how moves are verified.
func comparison(nodeID string) move.Compare {
	return func(ctx context.Context, c move.Comparison) (move.Compared, error) {
		var sum move.Compared
		unequal := 0
		for range comparisons {
			var told compare.Progress
			result, err := compare.Run(ctx, compare.Options{
				Own: compare.Side{Client: c.Own, Name: nodeID}, Other: compare.Side{Client: c.Other, Name: "the target"}, Peer: c.Peer,
				What: c.What, CollectedBefore: c.CollectedBefore, Both: c.BothWays, MoveID: c.MoveID,
				Limit: func(ctx context.Context, n int) error {
					for _, l := range c.Limits {
						if _, err := l.Wait(ctx, n); err != nil {
							return err
						}
					}
					return nil
				},
				Progress: func(p compare.Progress) {
					if c.Progress != nil {
						c.Progress(p.ComparedKeys-told.ComparedKeys, p.RepairedKeys-told.RepairedKeys)
					}
					told = p
				},
			})
			if err != nil {
				return sum, err
			}
			sum.ComparedKeys += result.ComparedKeys
			sum.RepairedKeys += result.RepairedKeys
			if unequal = len(result.UnequalRanges); result.Equal() {
				break
			}
		}
		if unequal > 0 {
			return sum, fmt.Errorf("%w: %d ranges, looked at %d times", errUnequal, unequal, comparisons)
		}
		return sum, nil
	}
}
