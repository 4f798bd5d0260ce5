// Package inspect is the offline tools of the storage node: check verifies a data directory, dump
// shows what its files hold. It never changes anything, and it never works on the directory of a
// running node.
//
// Both read through the packages that the node itself reads with, so they see what the node would
// see. What is not as it should be is a finding, one line each:
//
//	severity file offset what
//
// where the file is relative to the data directory and an offset that is not known is "-".
// Severities: damage is data that is lost or wrong here; newer is data that a newer release wrote;
// error is a file that the operating system did not let us read; note costs no data. docs/OPERATIONS.md
// says what to do about each.
package inspect
