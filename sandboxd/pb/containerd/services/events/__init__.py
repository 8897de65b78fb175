"""Generated from proto/sandboxd/pb/containerd/services/events by `make proto`; never edited by hand."""
