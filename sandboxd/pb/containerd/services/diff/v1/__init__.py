"""Generated from proto/sandboxd/pb/containerd/services/diff/v1 by `make proto`; never edited by hand."""
