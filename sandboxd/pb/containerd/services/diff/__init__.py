"""Generated from proto/sandboxd/pb/containerd/services/diff by `make proto`; never edited by hand."""
