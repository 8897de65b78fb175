"""Generated from proto/sandboxd/pb/containerd/services by `make proto`; never edited by hand."""
