"""Generated from proto/sandboxd/pb/containerd/services/tasks/v1 by `make proto`; never edited by hand."""
