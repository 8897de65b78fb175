"""Generated from proto/sandboxd/pb/containerd/services/introspection by `make proto`; never edited by hand."""
