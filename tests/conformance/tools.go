//go:build tools

// Package conformance pins the genuine CRI clients that the conformance tests run.
//
// It is never built. The blank imports keep `go mod tidy` from dropping the requirement: cmd/crictl is the
// client, the two libraries are what its sibling critest (a test package, so not importable) is made of, and
// ginkgo is the program that critest runs its specs in parallel with.
package conformance

import (
	_ "github.com/onsi/ginkgo/v2/ginkgo"
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
