"""Generated from proto/sandboxd/pb/containerd/services/version/v1 by `make proto`; never edited by hand."""
