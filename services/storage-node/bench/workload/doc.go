// Package workload makes the data of a benchmark: keys, values that compress like records do, and
// the order in which they are asked for. It never touches an engine, and the same arguments always
// give the same data, so that whatever an engine answers can be checked without keeping a copy.
package workload
