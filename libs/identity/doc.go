// Package identity says who is at the other end of a TCP connection, and what they may call: mutual TLS
// 1.3 with a certificate whose URI names a cluster and a role. It never decides what data is true, and
// never makes a certificate: package authority does, for development.
//
// # Who somebody is
//
// A certificate has one to eight URIs among its alternative names:
//
//	pairdb://<cluster>/<role>[/<name>]
//
// All are of one cluster. The roles are client (an application's data), coordinator (the contract of
// existing coordinators), node (pods among themselves), operator (administration) and monitor (metrics,
// and looking). What each may call is a Table of the server: it has a row for every method, and a method
// without one is refused to everybody.
//
// # Files
//
// Certificate, key and authorities are files. Source reads them again when they change, also when the
// directory they are in is a symbolic link that is swapped, as Kubernetes does with secrets: connections
// that are made from then on have the new ones, those that are there go on. Files that can't be used
// change nothing: the certificate before stays, and Problem says why.
package identity
