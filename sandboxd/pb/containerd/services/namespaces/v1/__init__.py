"""Generated from proto/sandboxd/pb/containerd/services/namespaces/v1 by `make proto`; never edited by hand."""
