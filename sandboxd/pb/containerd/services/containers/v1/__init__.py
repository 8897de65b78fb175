"""Generated from proto/sandboxd/pb/containerd/services/containers/v1 by `make proto`; never edited by hand."""
