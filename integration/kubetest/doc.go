// Package kubetest runs PairDB on a real Kubernetes: the overlay of the tests, under load, while an operator does
// what docs/DEPLOYMENT.md says, by the very commands of that page. It never touches a cluster that is not made
// for tests.
package kubetest
