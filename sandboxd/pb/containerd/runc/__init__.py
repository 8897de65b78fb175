"""Generated from proto/sandboxd/pb/containerd/runc by `make proto`; never edited by hand."""
