// Package hot estimates which keys are asked for most, and which have the largest values. It never keeps
// a value, and never holds up a request: one of 64 operations is looked at, chosen by chance, and only
// those take a lock.
//
// # What is kept
//
// Reads and writes have a sketch each, of 512 counters: Space-Saving (Metwally, Agrawal, El Abbadi:
// Efficient Computation of Frequent and Top-k Elements in Data Streams, 2005). A key without a counter
// takes over the smallest one, and counts on from there. So for N operations that a sketch has seen
//
//  1. a count is never below the true one;
//  2. it is above it by the count that was taken over at most, which is at most N/512;
//  3. every key with more than N/512 operations has a counter.
//
// A key is listed if less than half of its count was taken over. From 2 it follows that every key with
// more than 2/512 of the operations is listed, and that no key is by chance.
//
// Counts are of a window of two minutes and the one before it: after each window the older sketches are
// emptied. Together with the largest values that is at most 4 MiB, for keys of the greatest length, and
// some 300 KiB for usual ones.
//
// # What it says
//
// A count of looked-at operations times 64 is the estimate of operations. For c looked-at ones its
// standard deviation is 64·√c: a key with 10,000 operations is estimated within 8 % in two of three cases.
// Values of 256 KiB and more are all looked at, others one of 64 times: a large value that is written
// once is not missed, a small one is not looked for.
package hot
