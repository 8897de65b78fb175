"""Generated from proto/sandboxd/pb/containerd/types by `make proto`; never edited by hand."""
