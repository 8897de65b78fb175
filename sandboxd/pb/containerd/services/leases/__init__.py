"""Generated from proto/sandboxd/pb/containerd/services/leases by `make proto`; never edited by hand."""
