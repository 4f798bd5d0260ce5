package pairdbtest

import (
	"context"
	"strings"
)

// IsDead and Self are what decides whether something in Docker is swept.
var (
	IsDead = isDead
	Self   = self
)

// OwnedBy returns what an owner of this machine has in Docker, images included; pid is its process.
func OwnedBy(ctx context.Context, pid string) ([]string, error) {
	return owned(ctx, func(t thing) bool { return strings.Split(t.owner, "/")[1] == pid })
}
