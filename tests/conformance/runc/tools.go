//go:build tools

// Package runc pins the current OCI runtime that the conformance tests run beside the distribution's.
//
// It is never built. The blank import keeps `go mod tidy` from dropping the requirement.
package runc

import _ "github.com/opencontainers/runc"
