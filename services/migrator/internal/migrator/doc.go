// Package migrator is the process: it finds the node of the pod, watches what there is to do, and has
// it done, a few moves at a time. It never touches a record itself, and remembers nothing.
//
// What is done belongs to one session of the node. When the node restarts, everything that was begun
// ends, and begins again from what the node says then.
package migrator
