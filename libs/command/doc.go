// Package command answers commands for a node that come over NATS, by making the same calls of
// AdminService over the pod's socket that an operator could make there. It decides nothing: what is
// allowed, checked and done is the node's business, and who may ask is that of NATS.
//
// The commands of a sidecar are a NATS micro service; each verb is an endpoint with the subject
// pairdb.<cluster>.cmd.<node>.<verb>. A request is a JSON object:
//
//	{"request_id": "…", "node_id": "…", …}
//
// request_id is 1 to 128 characters of the sender's; node_id may be left out, and must be that of the
// node otherwise; what else there is are the fields of the call's request. The answer is
//
//	{"request_id": "…", "ok": true, "result": {…}}
//	{"request_id": "…", "ok": false, "error": {"reason": "…", "message": "…"}}
//
// A request that comes again under its id within ten minutes gets the first answer, or waits for it:
// a sender that heard nothing may repeat itself. What failed for the moment only is tried again.
//
// # Who may ask
//
// Whoever may publish to the subject: the permissions of NATS' users decide, and nothing here does.
// docs/EVENTS.md has an example. A sidecar itself may only subscribe to its own node's subjects.
package command
