"""Generated from proto/sandboxd/pb/containerd/services/snapshots by `make proto`; never edited by hand."""
