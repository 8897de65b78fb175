"""Generated from proto/sandboxd/pb/containerd/services/images/v1 by `make proto`; never edited by hand."""
