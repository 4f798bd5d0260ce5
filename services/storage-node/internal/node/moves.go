package node

import (
	"context"
	"errors"
	"strings"

	"github.com/pairdb/pairdb/libs/membership"
	"github.com/pairdb/pairdb/services/storage-node/internal/antientropy"
	"github.com/pairdb/pairdb/services/storage-node/internal/config"
	"github.com/pairdb/pairdb/services/storage-node/internal/members"
	"github.com/pairdb/pairdb/services/storage-node/internal/moves"
	"github.com/pairdb/pairdb/services/storage-node/internal/ownership"
	"github.com/pairdb/pairdb/services/storage-node/internal/replica"
	"github.com/pairdb/pairdb/services/storage-node/internal/server"
	"github.com/pairdb/pairdb/services/storage-node/internal/store"
)

// openMoves loads the moves of the node. Damage degrades the node and does not stop it.
func (n *Node) openMoves(st *store.Store, known *members.Registry) (*moves.Registry, error) {
	var r *moves.Registry
	r = moves.New(moves.Options{
		NodeID: n.cfg.NodeID, Incarnation: n.identity.Incarnation, JoinAtOnce: n.cfg.Join == config.JoinAtOnce, Log: n.log,
		Declared: func() membership.State { return n.declared(known.View()) },
		Changed:  func(c moves.Change) { n.moveEvents.changed(c, r.Drain) },
		Problem: func(err error) {
			n.state.set(func(s *state) {
				if s.moves = ""; err != nil {
					s.moves = text(strings.ReplaceAll(err.Error(), "\n", "; "))
				}
			})
		},
	})
	if err := r.Open(context.Background(), st); err != nil {
		return nil, err
	}
	return r, nil
}

// letGo returns what lets go of all that is held for a move that was called off: the log, and a fence that
// was on its way. What fails is done at the next start.
func (n *Node) letGo(r *replica.Replica, o *ownership.Registry) func(ctx context.Context, moveID string) {
	return func(ctx context.Context, moveID string) {
		if err := errors.Join(r.Release(moveID), o.Lift(ctx, moveID)); err != nil {
			n.log.Warn("release", "move", moveID, "error", err)
		}
	}
}

// sweepFences lifts the fences that a crash has left to moves that are not fenced: nobody would.
func (n *Node) sweepFences(o *ownership.Registry, known *moves.Registry) {
	for _, m := range known.View().Moves {
		if !m.HandOver || m.MayBeFenced() {
			continue
		}
		if err := o.Lift(context.Background(), m.ID); err != nil {
			n.log.Warn("fence not lifted", "move", m.ID, "error", err)
		}
	}
}

// declared returns what this data directory has declared of itself; 0 for nothing.
func (n *Node) declared(v members.View) membership.State {
	for i := range v.Members {
		if d := v.Members[i].Declared; d.NodeID == n.cfg.NodeID && d.Incarnation == n.identity.Incarnation {
			return d.State
		}
	}
	return 0
}

// settings are what the migrator goes by.
func (n *Node) settings(equal *antientropy.Registry) server.Settings {
	gc := func() string {
		if equal.InForce() {
			return antientropy.Repair.String()
		}
		return antientropy.Grace.String()
	}
	return server.Settings{GC: gc, GCGrace: n.cfg.GCGrace, MaxClockSkew: n.cfg.MaxClockSkew, Coordinated: n.cfg.CoordinatorAddr != ""}
}

// moveCounts returns numbers of moves while the engine is open.
func (n *Node) moveCounts() (c moves.Counts, ok bool) {
	ok = n.withStorage(func(s *storage) { c = s.moves.Counts() })
	return c, ok
}
