"""Generated from proto/sandboxd/pb/containerd/services/containers by `make proto`; never edited by hand."""
