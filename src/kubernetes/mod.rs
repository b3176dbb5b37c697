//! The border to Kubernetes: the only modules that name its types.
