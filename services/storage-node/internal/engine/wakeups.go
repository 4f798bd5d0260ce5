package engine

// wakeups are the bells of the background goroutines. Each holds one ring, so that ringing never
// waits and nothing is missed.
type wakeups struct {
	sync, syncNow, flush, schedule, space, obsolete, memtable, shrink chan struct{}
}

func newWakeups() wakeups {
	bell := func() chan struct{} { return make(chan struct{}, 1) }
	return wakeups{sync: bell(), syncNow: bell(), flush: bell(), schedule: bell(), space: bell(), obsolete: bell(), memtable: bell(), shrink: bell()}
}

// notify rings a bell.
func notify(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}
