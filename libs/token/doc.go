// Package token makes and checks the tokens of applications: short-lived, signed statements that who has one
// may read or write the keys of some tenants of one cluster. It never says who may connect: package identity
// does, and a token counts beside a certificate only.
//
// # Form
//
// A token is a JSON Web Token (RFC 7519) that is signed with Ed25519 (EdDSA, RFC 8037). Its header names the
// key (kid), by KeyID. Its claims:
//
//	aud      "pairdb://<cluster>": one cluster
//	sub      who it was made for; stands in the log
//	tenants  names of tenants, or ["*"] for all
//	verbs    "read", "write" or both
//	iat, exp from when to when it counts, at most MaxLifetime apart
//
// # Keys
//
// Nodes know public keys only: a file of PEM blocks "PUBLIC KEY", several while one is replaced. It is read
// again within a second of a change. Content that can't be used changes nothing: the keys before stay, and
// Problem says why.
package token
