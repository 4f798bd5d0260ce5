package gossip

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Times of joining.
const (
	// firstRetry to lastRetry is the back-off while no seed answers.
	firstRetry = 500 * time.Millisecond
	lastRetry  = 15 * time.Second
	// healEvery is how often members that went, and seeds that are none, are tried once joined.
	healEvery = 10 * time.Second
	// conflictEvery is how often a duplicate asks whether it still is one.
	conflictEvery = 3 * time.Second
	// maxTargets bounds one round: each may take a TCPTimeout.
	maxTargets = 8
	// enough seeds that answered; gossip does the rest.
	enough = 3
	// lookupTimeout bounds the resolution of one seed.
	lookupTimeout = 3 * time.Second
)

// dnsPrefix of a seed stands for all addresses of its name.
const dnsPrefix = "dns+"

// join keeps this agent joined until ctx ends.
func (g *Gossip) join(ctx context.Context) {
	retry := firstRetry
	failing := false
	for {
		wait := healEvery
		err := g.joinOnce(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case g.view.conflicting():
			wait = conflictEvery
		case g.view.isJoined():
			retry, failing = firstRetry, false
		default:
			if !failing {
				g.o.Log.Warn("no seed answers", "seeds", len(g.o.Seeds), "error", err)
				failing = true
				g.view.set(func(v *view) { v.unanswered = true })
			}
			wait = retry
			retry = min(2*retry, lastRetry)
		}
		timer := time.NewTimer(jitter(wait))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// jitter spreads what many agents do after one event: half to one and a half times.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// joinOnce tries some of those that are not seen and ought to be.
func (g *Gossip) joinOnce(ctx context.Context) error {
	targets, err := g.targets(ctx)
	if len(targets) == 0 && err == nil {
		g.setJoined() // nobody to join: this one is the first, or all are there
		return nil
	}
	reached, began := 0, time.Now()
	for _, addr := range targets {
		if ctx.Err() != nil || reached >= enough {
			break
		}
		if _, joinErr := g.list.Join([]string{addr}); joinErr != nil {
			err = errors.Join(err, joinErr)
			continue
		}
		reached++
	}
	if reached > 0 {
		g.view.unmet(began)
		g.setJoined()
	}
	return err
}

func (g *Gossip) setJoined() {
	if g.view.isJoined() {
		return
	}
	g.view.set(func(v *view) { v.joined, v.unanswered = true, false })
	g.o.Log.Info("gossip joined", "members", g.view.alive())
}

// targets are addresses to join, in any order: seeds that are not among those who answer, members that
// went; of a duplicate all seeds. The error says which seeds have no address now.
func (g *Gossip) targets(ctx context.Context) ([]string, error) {
	seeds, err := g.resolve(ctx)
	answering, lost := g.view.addresses()
	own := g.Addr()
	conflicting := g.view.conflicting()
	var targets []string
	for _, addr := range append(seeds, lost...) {
		if addr == own || slices.Contains(targets, addr) || !conflicting && slices.Contains(answering, addr) {
			continue
		}
		targets = append(targets, addr)
	}
	if conflicting && len(targets) == 0 {
		targets = answering
	}
	rand.Shuffle(len(targets), func(i, j int) { targets[i], targets[j] = targets[j], targets[i] })
	return targets[:min(len(targets), maxTargets)], err
}

// resolve turns the seeds into IP:port.
func (g *Gossip) resolve(ctx context.Context) ([]string, error) {
	var addrs []string
	var errs error
	for _, seed := range g.o.Seeds {
		hostport, all := strings.CutPrefix(seed, dnsPrefix)
		host, port, err := net.SplitHostPort(hostport)
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("seed %s: %w", seed, err))
			continue
		}
		found, err := g.lookup(ctx, host)
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("seed %s: %w", seed, err))
			continue
		}
		if !all {
			found = found[:1]
		}
		for _, ip := range found {
			addrs = append(addrs, net.JoinHostPort(ip, port))
		}
	}
	return addrs, errs
}

// lookup returns the addresses of a name, at least one: those of the family that this agent has itself, or
// the others when there are none.
func (g *Gossip) lookup(ctx context.Context, host string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	found, err := g.resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	own, err := netip.ParseAddrPort(g.Addr())
	if err != nil {
		return nil, err
	}
	var same, others []string
	for _, ip := range found {
		if ip = ip.Unmap(); ip.Is4() == own.Addr().Unmap().Is4() {
			same = append(same, ip.String())
		} else {
			others = append(others, ip.String())
		}
	}
	switch {
	case len(same) > 0:
		return same, nil
	case len(others) > 0:
		return others, nil
	}
	return nil, errors.New("the name has no address")
}
