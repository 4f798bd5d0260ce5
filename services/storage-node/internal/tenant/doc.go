// Package tenant knows the tenants of a node: which there are, what each may use, and how one ends. It
// never sees a key or a value of a tenant.
//
// # The registry
//
// Tenants are records of the system tenant "_tenants", under their names, written by read-modify-write
// like any other record: two nodes that change one concurrently leave siblings, and whoever reads them
// takes the one with the highest generation, then the one that is further on its way out, then the
// newest. A name is never forgotten: its generation tells old copies of the data from new ones.
//
// In memory the registry is an immutable map behind an atomic pointer. A request looks its tenant up,
// enters the gate of the tenant, and leaves it at the end. Changes make a new map.
//
// # Gates
//
// A gate counts the requests that are inside. Closing it refuses new ones and waits for the others:
// a request first counts itself and then looks whether the gate is closed, the one that closes first
// closes and then looks at the count, so that one of both sees the other. All tenants that are not
// known share a gate. It is closed and replaced when a tenant becomes known, because some of those
// inside may be of that tenant; its drop waits for them too.
//
// Streams are counted apart: a drop does not wait for a reader that takes nothing. A stream asks
// before each chunk whether its tenant is still what it was, and ends with an error if not.
//
// # Drop
//
// DROPPING is made durable, the gate is closed and empty, everything of the tenant is removed by range
// deletes in one durable batch, DROPPED is made durable. Each step can be repeated: the next open
// finishes what a crash interrupted. The range deletes have larger sequences than anything that a
// request of the tenant wrote, because those requests have ended.
//
// # Other nodes
//
// Nodes exchange the records and join them (JoinRecords). A node that learns that a tenant was dropped, or
// lives a later life, closes its gate in memory, waits, removes what is stored, and only then makes the
// joined record durable: a crash in between leaves the old record, and the next exchange does it again.
// Lives is what was agreed on: what another node sends for a life that has ended since is not taken. The
// log may still have changes of an ended life after the next one began; Floor tells them apart.
//
// # Quotas
//
// Rates are kept by a bucket of one second in its virtual scheduling form: the time at which it will
// be full again. A request is taken up when the bucket holds what the request needs, or is full, and
// pays all of it: a request larger than the bucket leaves a debt. What a read returned is paid
// afterwards, as a debt too. Requests that are refused pay nothing.
package tenant
