"""Generated from proto/sandboxd/pb/containerd/services/namespaces by `make proto`; never edited by hand."""
