"""Generated from proto/sandboxd/pb/containerd/runc/options by `make proto`; never edited by hand."""
