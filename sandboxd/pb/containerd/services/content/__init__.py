"""Generated from proto/sandboxd/pb/containerd/services/content by `make proto`; never edited by hand."""
