//go:build invariants

package invariant

const enabledByTag = true
