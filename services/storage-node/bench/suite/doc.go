// Package suite runs the rows of the benchmark: which data, which operations, by how many, for how
// long. Each engine lives in a process of its own, so that allocations, processor time and bytes
// written are its own, and no engine's garbage collector stops another's; one process in front
// takes turns between them. It never decides what a figure means: that is the report's.
package suite
