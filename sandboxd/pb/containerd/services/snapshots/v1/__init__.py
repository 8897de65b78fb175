"""Generated from proto/sandboxd/pb/containerd/services/snapshots/v1 by `make proto`; never edited by hand."""
