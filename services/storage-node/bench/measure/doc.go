// Package measure reads what an operation cost: time, processor, allocations, bytes to the disk; and
// what the machine could do at best. It never runs an engine.
package measure
