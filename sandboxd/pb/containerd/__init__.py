"""Generated from proto/sandboxd/pb/containerd by `make proto`; never edited by hand."""
