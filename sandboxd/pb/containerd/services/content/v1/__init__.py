"""Generated from proto/sandboxd/pb/containerd/services/content/v1 by `make proto`; never edited by hand."""
