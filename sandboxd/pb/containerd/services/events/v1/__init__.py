"""Generated from proto/sandboxd/pb/containerd/services/events/v1 by `make proto`; never edited by hand."""
