"""Generated from proto/sandboxd/pb/containerd/services/leases/v1 by `make proto`; never edited by hand."""
