// Package picker decides which tables are compacted next. It never does anything: its functions are
// pure, of a version, the jobs that run, the options and a few facts.
//
// # Shape
//
// Level 0 takes flushes; its tables overlap. Below, levels are sorted runs. The last level holds
// most of the data; how large the levels above it may be follows from its size, and the level that
// level 0 is merged into, the base, is the first whose target is not tiny. So a small store has
// level 0 and level 6 only, and the levels in between come into use as it grows.
//
// # What a plan must keep
//
//  1. Outputs are disjoint from everything else at their level: a merge takes every table of the output
//     level that overlaps the span of all its inputs, and running jobs claim the span that they will
//     write to.
//  2. For each key, what is above is newer: a table leaves level 0 only together with, or after, the
//     older ones there that it overlaps.
//  3. A table is in one job at a time. A quarantined one is in none, and blocks what would have to
//     pass it.
//  4. The size of a job is bounded. A table that overlaps more than a job may read is split first, at
//     its own level, so that each part overlaps less.
package picker
