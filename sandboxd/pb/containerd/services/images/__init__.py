"""Generated from proto/sandboxd/pb/containerd/services/images by `make proto`; never edited by hand."""
