//go:build !invariants

package invariant

const enabledByTag = false
