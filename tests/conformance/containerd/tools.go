//go:build tools

// Package containerd pins the current containerd that the end-to-end tests run beside Debian's.
//
// It is never built, and a module of its own: containerd's dependencies and those of cri-tools must not choose
// each other's versions.
package containerd

import (
	_ "github.com/containerd/containerd/v2/cmd/containerd"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
	_ "github.com/containerd/containerd/v2/cmd/ctr"
)
