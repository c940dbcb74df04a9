//! Arithmetic on additive shares: products by correlated OT.
