"""Generated from proto/sandboxd/pb/containerd/services/introspection/v1 by `make proto`; never edited by hand."""
