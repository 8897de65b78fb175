"""Generated from proto/sandboxd/pb/containerd/events by `make proto`; never edited by hand."""
