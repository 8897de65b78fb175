"""Generated from proto/sandboxd/pb/containerd/services/version by `make proto`; never edited by hand."""
